"""A recipe's `calibrate` block -> the rows that all statistics are taken from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.calibrate.certainty import certainty
from qspec.calibrate.rollouts import record
from qspec.calibrate.tokens import CalibrationTokens, draw_masks, windows
from qspec.errors import InputError
from qspec.language.contradictions import contradictions
from qspec.language.spec import Rollouts
from qspec.models.family import DecoderShape
from qspec.models.tokens import Encodes

if TYPE_CHECKING:
    from qspec.language.spec import Calibration, Weighting
    from qspec.models.sampler import Denoiser


def calibration_rows(
    texts: Sequence[str], tokenizer: Encodes, wanted: Calibration, shape: DecoderShape, load: Callable[[], Denoiser]
) -> CalibrationTokens:
    """The rows that `wanted` describes, the same for the same text, tokenizer, model and seed.

    load: gives the unquantized model; called once, and only where `wanted.runs_model`.
    Raises InputError where the text is too short or has tokens that the model lacks, the settings cannot be
    together, or no token has a weight.
    """
    for _, message, hint in contradictions(wanted):
        raise InputError(message, hint=f"{hint}, in the calibrate block")
    generator = torch.Generator().manual_seed(wanted.seed)
    tokens = wanted.text.prompt if isinstance(wanted.text, Rollouts) else wanted.length
    samples = windows(texts, tokenizer, shape.vocab, wanted.samples, tokens, generator)
    model = load() if wanted.runs_model else None  # after all that the text alone decides
    if isinstance(wanted.text, Rollouts):
        assert model is not None
        recorded = record(model, samples.ids, wanted.text, wanted.length, wanted.draws, wanted.seed)
        ids, masked, ratio = recorded.ids, recorded.ids == shape.mask_token, recorded.ratio
    else:
        assert wanted.mask is not None
        masked, ratio = draw_masks(wanted.mask, wanted.samples, wanted.draws, wanted.length, generator)
        ids = samples.ids.repeat_interleave(wanted.draws, dim=0).masked_fill(masked, shape.mask_token)
    weights = _weights(wanted.weigh, ids, masked, model)
    return CalibrationTokens(ids, masked, weights, ratio, samples.distinct, samples.drawn)


def _weights(weigh: Weighting, ids: Tensor, masked: Tensor, model: Denoiser | None) -> Tensor:
    """float32 [rows, length]: `masked` (times the model's certainty) or `unmasked`."""
    weight = torch.where(masked, weigh.masked, weigh.unmasked)
    if weigh.certainty:
        assert model is not None
        weight = weight * certainty(model, ids, masked)
    if not bool((weight > 0).any()):
        raise InputError("every calibration token weighs nothing", hint="mask more of the text, or change `weigh`")
    return weight
