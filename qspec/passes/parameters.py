"""What a recipe can say of each of our passes, and what each requires, establishes and clears. No torch.

`qspec check` needs no more of a pass. The mathematics is `rewrite(params, block, uses)` in the module `algorithm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Lt

from qspec import hadamard_orders
from qspec.catalog import ROTATION_BLOCKS
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.language.fields import about, between
from qspec.language.spec import Fact, Pass
from qspec.models.family import DecoderShape, ModuleEntry

_FLOAT = frozenset({Fact.FLOAT_WEIGHTS})
_PLAIN = frozenset({Fact.FLOAT_WEIGHTS, Fact.PLAIN_INPUT, Fact.OPEN_RANGE})
FEW_TOKENS = 256  # an expert with fewer calibration tokens of its own is calibrated on all of its layer's


def few_tokens(experts: Mapping[int, int]) -> str:
    """Says so, of experts of one block with the tokens that were routed to them: `mlp.experts[3] (0), [7] (12)`."""
    listed = ", ".join(f"{'mlp.experts' * (not at)}[{e}] ({n})" for at, (e, n) in enumerate(experts.items()))
    return f"{listed}: fewer than {FEW_TOKENS} calibration tokens were routed there; calibrated on all of the layer's"


@dataclass(frozen=True)
class Smooth(Pass):
    """Moves outliers from activations into weights, by a factor for each input channel (arXiv 2211.10438)."""

    algorithm: ClassVar[str] = "qspec.passes.smooth"

    alpha: Annotated[
        Annotated[float, between(0, 1)] | Literal["search"],
        about("how much of the difficulty moves to the weights; `search` tries 0.3 … 0.95 for each input"),
    ] = 0.5

    requires: ClassVar[frozenset[Fact]] = _PLAIN
    rescales: ClassVar[bool] = True


@dataclass(frozen=True)
class Awq(Pass):
    """Scales input channels by their activations, as far as that helps attention and MLP; clips (arXiv 2306.00978)."""

    algorithm: ClassVar[str] = "qspec.passes.awq"

    clip: Annotated[bool, about("whether to search clips too")] = True
    tokens: Annotated[
        int, between(1, 1 << 24, "of the sample that factors are chosen on, in whole calibration batches")
    ] = 8192  # 128 x 512 in the paper of the diffusion LLMs' quantization (arXiv 2508.14896)

    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.OPEN_RANGE})
    rescales: ClassVar[bool] = True

    def ends(self) -> frozenset[Fact]:
        """Without the clip search, ranges stay open."""
        return self.clears if self.clip else frozenset()


@dataclass(frozen=True)
class ClipSearch(Pass):
    """Searches each group's clip for the least output error (AWQ's second half, arXiv 2306.00978)."""

    algorithm: ClassVar[str] = "qspec.passes.clip"

    grid: Annotated[int, between(2, 1000, "steps of the ratio from 1 to 0")] = 20
    shrink: Annotated[float, Gt(0), Lt(1), about("how far the search goes, to the ratio 1 - `shrink`")] = 0.5

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS, Fact.OPEN_RANGE})
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.OPEN_RANGE})


@dataclass(frozen=True)
class RotateDuquant(Pass):
    """Block rotation, zigzag permutation, block rotation of each input (DuQuant, arXiv 2406.01721)."""

    algorithm: ClassVar[str] = "qspec.passes.rotate_duquant"

    block: Annotated[int, between(16, 1024, "channels in a rotation")] = 128
    steps: Annotated[int, between(1, 4096, "greedy steps tried")] = 256

    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_INPUT})

    def rotations(self, entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
        """R1 and R2, on every input."""
        return (self.block, self.block)

    def fitting(self, channels: int) -> str | None:
        """The largest block that kernels rotate online and that divides all inputs."""
        sizes = [size for size in ROTATION_BLOCKS if channels % size == 0]
        return f"rotate_duquant(block = {max(sizes)})" if sizes else None


@dataclass(frozen=True)
class Quarot(Pass):
    """Hadamard rotations of the residual stream, of heads' values and of the MLP's hidden state (arXiv 2404.00456)."""

    algorithm: ClassVar[str] = "qspec.passes.quarot"

    residual: Annotated[bool, about("of the residual stream, which takes every layer of the blocks")] = True
    heads: Annotated[
        Literal["within", "across", "none"],
        about("of each head's values, or across all heads, at run time, before `o`"),
    ] = "within"
    online: Annotated[bool, about("of the input of `down`, at run time")] = True

    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_INPUT})

    @property
    def whole_model(self) -> bool:
        """With R1."""
        return self.residual

    def rewrite_outer_layers(self, outer: Any) -> None:
        """R1 of embedding and head."""
        import_module(self.algorithm).rewrite_outer_layers(self, outer)

    def check(self, shape: DecoderShape) -> None:
        """R1 needs a head of its own and R1, R2 Hadamard matrices of their widths."""
        if self.residual and shape.tied:
            raise InputError(
                "quarot cannot rotate the residual stream of a model whose head is its embedding",
                hint="write quarot(residual = false)",
            )
        if self.heads != "none" and not all(shape.attention(block).values for block in range(shape.layers)):
            raise InputError(
                "quarot cannot rotate the heads of a model whose values are its keys, which have positions",
                hint="write quarot(heads = none)",
            )
        wanted = {
            "residual = false": ("the residual stream", self.residual, shape.width),
            "heads = none": ("blocks[*].attention.v", self.heads != "none", shape.head_width),
        }
        missing = {
            without: (where, size)
            for without, (where, rotated, size) in wanted.items()
            if rotated and not hadamard_orders.exists(size)
        }
        if missing:
            sizes = " and ".join(str(size) for _, size in missing.values())
            raise InputError(
                f"quarot has no Hadamard matrix of order {sizes}",
                where=", ".join(where for where, _ in missing.values()),
                hint=f"write quarot({', '.join(missing)})",
            )

    def rotations(self, entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
        """R4's, and those of R2 across heads."""
        across = {"down": self.online, "o": self.heads == "across"}
        wanted = across.get(entry.role.name, False) and scheme.activations is not None
        return hadamard_orders.factors(entry.in_features, str(entry.role)) if wanted and entry.in_features else ()


@dataclass(frozen=True)
class Gptq(Pass):
    """Quantizes column by column; each makes up for the rounding of those before (arXiv 2210.17323)."""

    algorithm: ClassVar[str] = "qspec.passes.gptq"

    damp: Annotated[float, Gt(0), Lt(1), about("added to the Hessian, times the mean of its diagonal")] = 0.01
    order: Annotated[Literal["activation", "natural"], about("of columns, the most active first or as they stand")] = (
        "activation"
    )
    block: Annotated[int, between(1, 4096, "columns of a lazy update")] = 128

    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True


@dataclass(frozen=True)
class Gptaq(Pass):
    """As `gptq`, making up for the rounding of everything before this linear too (arXiv 2504.02692)."""

    algorithm: ClassVar[str] = "qspec.passes.gptaq"

    damp: Annotated[float, Gt(0), Lt(1), about("added to the Hessian, times the mean of its diagonal")] = 0.01
    order: Annotated[Literal["activation", "natural"], about("of columns, the most active first or as they stand")] = (
        "activation"
    )
    block: Annotated[int, between(1, 4096, "columns of a lazy update")] = 128
    strength: Annotated[float, between(0, 1, "of the correction; the authors' code has 0.25, the paper 1")] = 0.25

    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True
    follows_exact: ClassVar[bool] = True


@dataclass(frozen=True)
class Rtn(Pass):
    """Quantizes by rounding to nearest."""

    algorithm: ClassVar[str] = "qspec.passes.rtn"
    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True
