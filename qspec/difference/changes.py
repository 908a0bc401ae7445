"""What differs, as values: the renderings and the JSON show these and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Number = int | float


@dataclass(frozen=True)
class Fate:
    """What happens to a module. scheme: its name, None where the module is kept. weights, activations: formats.

    rotations: block sizes of the rotations that its input gets online. Of a model whose config is known also: bits,
    stored for a weight; kernel, the kernels that run it; gemm, the linears that one GEMM computes with it, itself
    among them, empty where it is alone. offered: the choices of a search.
    """

    scheme: str | None
    weights: str
    activations: str
    offered: tuple[str, ...] = ()
    rotations: tuple[int, ...] = ()
    bits: float | None = None
    kernel: str | None = None
    gemm: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModuleChange:
    """before, after: None where that model has no such module."""

    role: str
    before: Fate | None
    after: Fate | None


@dataclass(frozen=True)
class LayerChange:
    """Modules whose formats changed alike. selector: these and no others, as a recipe names them."""

    selector: str
    modules: tuple[ModuleChange, ...]


@dataclass(frozen=True)
class PassChange:
    """A pass as it is written, and which one it is in order, from 1. "changed": other parameters, or other modules."""

    kind: Literal["added", "removed", "moved", "changed"]
    before: str | None
    after: str | None
    place_before: int | None
    place_after: int | None


@dataclass(frozen=True)
class SettingChange:
    """A setting of a block, as a recipe writes it. before, after: None where the block does not have it.

    key: empty where all of the block was added or removed; then the value has its settings.
    """

    block: str
    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class TotalChange:
    """A number of the plan. key: where `qspec plan --json` has it, or `time.REGIME`: nanoseconds of the linears."""

    key: str
    before: Number
    after: Number


@dataclass(frozen=True)
class KernelChange:
    kind: Literal["added", "removed"]
    name: str


@dataclass(frozen=True)
class Measured:
    """One measure of the quantized model: its score and how much worse than the unquantized model's it is."""

    score: float
    drop_percent: float | None
    n: int


@dataclass(frozen=True)
class MeasureChange:
    """task: as people read it. metric: "nelbo" and so on. before, after: None where it was not measured.

    interval: of 95 %, of the mean of NEW's scores - OLD's, paired over the items. noise: whether the items do not show
    that there is a difference. Both None where they were not measured on the same items.
    """

    task: str
    metric: str
    before: Measured | None
    after: Measured | None
    interval: tuple[float, float] | None = None
    noise: bool | None = None


@dataclass(frozen=True)
class Difference:
    """Everything in which NEW differs from OLD; false where nothing does.

    old, new: as they were given. models: of which the modules are, OLD's and NEW's; None where no config was here.
    notes: what could not be compared, and what times rest on.
    """

    old: str
    new: str
    models: tuple[str, str] | None
    totals: tuple[TotalChange, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    passes: tuple[PassChange, ...] = ()
    settings: tuple[SettingChange, ...] = ()
    kernels: tuple[KernelChange, ...] = ()
    measured: tuple[MeasureChange, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.totals, self.layers, self.passes, self.settings, self.kernels, self.measured))

    def modules(self) -> Iterator[ModuleChange]:
        """Every module that changed."""
        return (module for layer in self.layers for module in layer.modules)

    def as_json(self) -> dict[str, Any]:
        """The stable form that `qspec diff --json` prints."""
        return {"differs": bool(self), **asdict(self)}

    def __str__(self) -> str:
        from qspec.difference.text import render

        return render(self)

    def _repr_markdown_(self) -> str:
        from qspec.difference.markdown import render

        return render(self)
