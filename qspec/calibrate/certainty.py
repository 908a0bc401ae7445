"""How sure the unquantized model is of the tokens that it does not see: weights for certainty-guided Hessians."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.models.sampler import Denoiser
from qspec.models.samplers.block import decoder_of
from qspec.models.samplers.common import HEAD_VALUES, token_logits
from qspec.models.shift import noised_predictors, predictors

BATCH_TOKENS = 8192  # tokens of one forward pass


@torch.no_grad()
def certainty(model: Denoiser, ids: Tensor, masked: Tensor) -> Tensor:
    """c_i = max_v softmax(l_i)_v where position i is masked, 1 where it is visible; float32 [rows, length], on the CPU.

    ids int64 and masked bool, both [rows, length], as `CalibrationTokens` has them. With these weights a Hessian is
    H = 2 X diag(c) X^T, the form of certainty-guided quantization (CGQ of DLLMQuant, arXiv 2508.14090), which weighs by
    mask state and token score. We follow the idea, not their code: the score here is the confidence by which LLaDA's
    sampler orders its commits, taken once from the unquantized model, the same for all layers, and not scaled to a mean
    of 1.
    Raises NumericsError where the model's logits are not finite.
    """
    weights = torch.ones(ids.shape)
    size, head = max(1, BATCH_TOKENS // ids.shape[1]), max(1, HEAD_VALUES // model.shape.vocab)
    for start in range(0, ids.shape[0], size):
        chosen = slice(start, start + size)
        positions = masked[chosen, : masked.shape[1] // (1 if model.shape.block is None else 2)]
        hidden = _predicting(model, ids[chosen].to(model.device))[positions.to(model.device)]
        confident = [_confidence(model, part) for part in torch.split(hidden, head)]
        weights[chosen, : positions.shape[1]][positions] = torch.cat(confident).cpu()
    return weights


def _predicting(model: Denoiser, ids: Tensor) -> Tensor:
    """What predicts the tokens of rows; of a block-causal model those of their noised half."""
    if model.shape.block is None:
        return predictors(model.hidden(ids), model.shape)
    decoder = decoder_of(model)
    x = decoder.rows_through(ids, decoder.calibration_context(ids))
    return noised_predictors(x, model.shape, torch.ones_like(ids.chunk(2, dim=1)[0]))


def _confidence(model: Denoiser, hidden: Tensor) -> Tensor:
    """hidden [positions, d] -> float32 [positions]; in float32 whatever the model computes in, as in the sampler."""
    return token_logits(model, hidden).softmax(-1).amax(-1)
