"""What a recipe can say of each of our passes, and what each requires, establishes and clears. No torch.

`qspec check` needs no more of a pass. The mathematics is `rewrite(params, block, uses)` in the module `algorithm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from qspec import hadamard_orders
from qspec.catalog import ROTATION_BLOCKS
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.language.spec import Fact, Pass
from qspec.models.family import DecoderShape, ModuleEntry

_FLOAT = frozenset({Fact.FLOAT_WEIGHTS})
_PLAIN = frozenset({Fact.FLOAT_WEIGHTS, Fact.PLAIN_INPUT, Fact.OPEN_RANGE})


@dataclass(frozen=True)
class Smooth(Pass):
    """x, W --> x / s, W s: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)  (arXiv 2211.10438, eq. 4).

    Parameters: alpha, how much of the difficulty moves to the weights; 0.5 in the paper, 0.8-0.9 tuned on LLaMA.
    """

    algorithm: ClassVar[str] = "qspec.passes.smooth"

    alpha: Annotated[float, Ge(0), Le(1)] | Literal["search"] = 0.5

    requires: ClassVar[frozenset[Fact]] = _PLAIN


@dataclass(frozen=True)
class Awq(Pass):
    """x, W --> x / s, W s: s_j = (mean|X_j|)^r, the r with the least error behind rounded weights  (arXiv 2306.00978).

    Parameters: clip; tokens, the size of the sample that r is chosen on, in whole calibration batches: 128 x 512 in the
    paper of the diffusion LLMs' quantization (arXiv 2508.14896). Means and clips always see every token.
    """

    algorithm: ClassVar[str] = "qspec.passes.awq"

    clip: bool = True
    tokens: Annotated[int, Ge(1), Le(1 << 24)] = 8192

    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.OPEN_RANGE})

    def ends(self) -> frozenset[Fact]:
        """Without the clip search, ranges stay open."""
        return self.clears if self.clip else frozenset()


@dataclass(frozen=True)
class ClipSearch(Pass):
    """Chooses the clip ratio of every group of W for the quantizer that comes; W itself stays  (arXiv 2306.00978).

    Parameters: grid, steps of the ratio from 1 to 0; shrink, how far the search goes.
    """

    algorithm: ClassVar[str] = "qspec.passes.clip"

    grid: Annotated[int, Ge(2), Le(1000)] = 20
    shrink: Annotated[float, Gt(0), Lt(1)] = 0.5

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS, Fact.OPEN_RANGE})
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.OPEN_RANGE})


@dataclass(frozen=True)
class RotateDuquant(Pass):
    """x W^T --> T(x) (W T^-1)^T,  T(x) = (x R1)[zigzag] R2  (arXiv 2406.01721, sections 3.2-3.3).

    Parameters: block, channels in a rotation; steps, greedy steps tried.
    """

    algorithm: ClassVar[str] = "qspec.passes.rotate_duquant"

    block: Annotated[int, Ge(16), Le(1024)] = 128
    steps: Annotated[int, Ge(1), Le(4096)] = 256

    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_INPUT})

    def rotations(self, entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
        """R1 and R2, on every input."""
        return (self.block, self.block)

    def fitting(self, channels: int) -> str | None:
        """The largest block that row kernels take and that divides all inputs."""
        sizes = [size for size in ROTATION_BLOCKS if channels % size == 0]
        return f"rotate_duquant(block = {max(sizes)})" if sizes else None


@dataclass(frozen=True)
class Quarot(Pass):
    """Rotates the residual stream, the heads' values and the MLP's hidden state (arXiv 2404.00456, section 4.1).

    Parameters: residual, online, whether to do each; heads, which rotation the heads' values get.
    """

    algorithm: ClassVar[str] = "qspec.passes.quarot"

    residual: bool = True
    heads: Literal["within", "across", "none"] = "within"
    online: bool = True

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
        across = {"mlp.down": self.online, "attention.o": self.heads == "across"}
        wanted = across.get(entry.role.part, False) and scheme.activations is not None
        return hadamard_orders.factors(entry.in_features, str(entry.role)) if wanted and entry.in_features else ()


@dataclass(frozen=True)
class Gptq(Pass):
    """W --> codes(W) with least ||(W - W^) X||^2, column by column (arXiv 2210.17323, algorithm 1).

    Parameters: damp; order, "activation" (largest diag H first) or "natural"; block, columns of a lazy update.
    """

    algorithm: ClassVar[str] = "qspec.passes.gptq"

    damp: Annotated[float, Gt(0), Lt(1)] = 0.01
    order: Literal["activation", "natural"] = "activation"
    block: Annotated[int, Ge(1), Le(4096)] = 128

    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True


@dataclass(frozen=True)
class Gptaq(Pass):
    """W --> codes(W) with least ||W X_fp - W^ X||^2  (arXiv 2504.02692, algorithm 1).

    Parameters: damp, order, block as in `gptq`; strength, a factor of P: the code's by default, 1 is the paper's.
    """

    algorithm: ClassVar[str] = "qspec.passes.gptaq"

    damp: Annotated[float, Gt(0), Lt(1)] = 0.01
    order: Literal["activation", "natural"] = "activation"
    block: Annotated[int, Ge(1), Le(4096)] = 128
    strength: Annotated[float, Ge(0), Le(1)] = 0.25

    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True
    follows_exact: ClassVar[bool] = True


@dataclass(frozen=True)
class Rtn(Pass):
    """W --> codes(W): round to nearest, with the clip of the scheme (ratio, or searched by MSE)."""

    algorithm: ClassVar[str] = "qspec.passes.rtn"
    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True
