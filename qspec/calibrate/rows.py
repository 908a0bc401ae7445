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
from qspec.models.chat import around_user, uses_chat
from qspec.models.family import DecoderShape
from qspec.models.noising import noised
from qspec.models.tokens import Encodes, encode

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
    rollouts = wanted.text if isinstance(wanted.text, Rollouts) else None
    around = _around(rollouts, tokenizer, shape.vocab) if rollouts else None
    tokens = rollouts.prompt if rollouts else wanted.length
    if around:
        tokens -= sum(part.numel() for part in around)
    samples = windows(texts, tokenizer, shape.vocab, wanted.samples, tokens, generator)
    model = load() if wanted.runs_model else None  # after all that the text alone decides
    finished = samples.ids.repeat_interleave(wanted.draws, dim=0)  # what blocks are denoised behind
    if rollouts:
        assert model is not None
        prompts = _inside(around, samples.ids) if around else samples.ids
        recorded = record(model, prompts, rollouts, wanted.length, wanted.draws, wanted.seed)
        ids, masked, ratio = recorded.ids, recorded.ids == shape.mask_token, recorded.ratio
        finished = finished if recorded.finished is None else recorded.finished
    else:
        assert wanted.mask is not None
        masked, ratio = draw_masks(wanted.mask, wanted.samples, wanted.draws, wanted.length, generator)
        ids = noised(finished, masked, shape, generator)
    if shape.block is not None:
        ids, masked = torch.cat((ids, finished), dim=1), torch.cat((masked, torch.zeros_like(masked)), dim=1)
    weights = _weights(wanted.weigh, ids, masked, model)
    return CalibrationTokens(ids, masked, weights, ratio, samples.distinct, samples.drawn, chat=around is not None)


def _around(rollouts: Rollouts, tokenizer: Encodes, vocab: int) -> tuple[Tensor, Tensor] | None:
    """The chat template's tokens before and behind a prompt, int64; None where it is not used."""
    where = "rollouts in the calibrate block"
    if not uses_chat(rollouts.chat, tokenizer, where):
        return None
    before, behind = (torch.tensor(encode(tokenizer, text, vocab)) for text in around_user(tokenizer, where))
    if before.numel() + behind.numel() >= rollouts.prompt:
        what = f"the chat template takes {before.numel() + behind.numel()} tokens, all {rollouts.prompt} of a prompt"
        raise InputError(what, where=where, hint="raise `prompt`, or write chat = off")
    return before, behind


def _inside(around: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
    """Rows [samples, tokens] with the same tokens before and behind each."""
    before, behind = (part.expand(ids.shape[0], -1) for part in around)
    return torch.cat((before, ids, behind), dim=1)


def _weights(weigh: Weighting, ids: Tensor, masked: Tensor, model: Denoiser | None) -> Tensor:
    """float32 [rows, length]: `masked` (times the model's certainty) or `unmasked`."""
    weight = torch.where(masked, weigh.masked, weigh.unmasked)
    if weigh.certainty:
        assert model is not None
        weight = weight * certainty(model, ids, masked)
    if not bool((weight > 0).any()):
        raise InputError("every calibration token weighs nothing", hint="mask more of the text, or change `weigh`")
    return weight
