"""What all samplers share: what they ask of a model, what they report, logits of a part of the canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from qspec.errors import NumericsError, UsageError
from qspec.models.decoder import Decoder
from qspec.models.family import DecoderShape
from qspec.models.likeliest import Measure, rated
from qspec.models.operations import TORCH, Operations
from qspec.models.shift import predictors
from qspec.seeds import LARGEST_SEED

HEAD_VALUES = 1 << 25  # logits held at once: 128 MB in float32


class Denoiser(Protocol):
    """What a sampler asks of a model; `Decoder` has it."""

    @property
    def shape(self) -> DecoderShape: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def absent(self) -> Tensor | None: ...

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor: ...

    def finish(self, x: Tensor) -> Tensor: ...


M = TypeVar("M", bound=Denoiser)


class Around(Generic[M]):
    """A denoiser around another one, which has its own way to `hidden`."""

    def __init__(self, model: M) -> None:
        self.model = model

    @property
    def shape(self) -> DecoderShape:
        return self.model.shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def absent(self) -> Tensor | None:
        return self.model.absent

    def finish(self, x: Tensor) -> Tensor:
        return self.model.finish(x)


@dataclass(frozen=True)
class SampleStep:
    """What one step decided: `tokens` with `confidence` where `committed`; [b, length] each, over the generated text.

    index: 0 .. steps - 1. tokens and confidence mean nothing where nothing was committed. A token may be the mask: an
    edit has taken back what stood there.
    """

    index: int
    committed: Tensor
    tokens: Tensor
    confidence: Tensor


def predicting(model: Denoiser, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """One forward pass: x [b, t, d] that `model.finish` turns into the logits of the tokens."""
    return predictors(model.hidden(ids, attention_mask), model.shape, attention_mask)


def token_logits(model: Denoiser, hidden: Tensor, finite: Tensor | None = None) -> Tensor:
    """float32 logits [..., vocab] of hidden [..., d], whatever the model computes in: all that becomes a probability.

    Ids that are no token (`Denoiser.absent`) get the lowest float32. finite: bool [], which becomes False where a logit
    is NaN or Inf; None raises NumericsError there, for which it waits for the device.
    """
    noted = torch.ones((), dtype=torch.bool, device=hidden.device) if finite is None else finite
    logits = rated(model.finish(hidden), model.absent, noted)
    if finite is None and not bool(noted):
        raise not_finite(model, hidden.dtype)
    return logits


def likeliest(
    model: Denoiser, hidden: Tensor, measure: Measure, finite: Tensor, absent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The likeliest token and its confidence [...] of hidden [..., d] (`qspec.models.likeliest`).

    Float32 logits are not written down where the model runs by our kernels.

    finite: as in `token_logits`. absent: bool [vocab], ids that are not taken; None, those that are no token.
    """
    absent = model.absent if absent is None else absent
    return operations_of(model).likeliest(model.finish(hidden), absent, finite, measure)


def operations_of(model: Denoiser) -> Operations:
    """Those of its decoder; torch's where it has none."""
    while isinstance(model, Around):
        model = model.model
    return model.operations if isinstance(model, Decoder) else TORCH


def without(model: Denoiser, *tokens: int) -> Tensor:
    """bool [vocab]: ids that are no token, and these."""
    barred = torch.zeros(model.shape.vocab, dtype=torch.bool, device=model.device)
    for token in tokens:
        barred[token].fill_(True)  # a list of them would be copied from the host, which a graph cannot hold
    return barred if model.absent is None else barred | model.absent


def not_finite(model: Denoiser, dtype: torch.dtype) -> NumericsError:
    """The error for logits that are NaN or Inf, of a model that computes in `dtype`: it names the cause.

    Finite weights and scales can leave the range of float16 alone; other dtypes reach to 3.4e38.
    """
    what = "the model's logits are NaN or Inf"
    if dtype == torch.float16 and _all_finite(model):
        largest = torch.finfo(dtype).max
        return NumericsError(
            f"{what}: its weights are finite, and its activations exceed {largest:.0f}, the largest number of float16",
            hint="run it in bfloat16: qspec.load(folder, dtype=torch.bfloat16)",
        )
    return NumericsError(what, hint="its weights or scales are broken: compile or download the model again")


def _all_finite(model: Denoiser) -> bool:
    """Whether every weight and scale that the model holds is a finite number; numbers of one byte are codes."""
    while isinstance(model, Around):
        model = model.model
    tensors = model.state_dict().values() if isinstance(model, nn.Module) else ()
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point() and t.itemsize > 1)


def check_positive(**values: int) -> None:
    """Errors: UsageError naming the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def check_finite(**values: float) -> None:
    """Errors: UsageError naming the first value that is negative, infinite or NaN."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} is {value}; it must be a finite number from 0 on")


def check_seed(seed: int) -> None:
    """Errors: UsageError for a seed that torch's generator does not tell from another."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is {seed}; it must lie in 0..{LARGEST_SEED}")
