"""Denoising loops as they were published, in torch's own operations: what "eager bf16" of a benchmark is.

LLaDA's is that of `generate.py` beside its weights, with a cache Fast-dLLM's (arXiv 2505.22618) of the same name;
Dream's that of its `generation_utils.py`, without a cache. A step is a forward pass, without kernels of ours, over the
whole canvas (behind a block's first step with a cache: over its window), logits of all tokens that it computes, softmax
of them (LLaDA's in float64), and commits row by row, each of which waits for the device. At temperature 0, where
LLaDA's own file draws float64 noise without effect, none is drawn, as in Fast-dLLM's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qspec.models.decoder import Decoder
from qspec.models.sampler import DreamSettings, SamplerSettings, Settings


def is_published(settings: Settings) -> bool:
    """Whether there is such a loop."""
    return isinstance(settings, SamplerSettings) or (isinstance(settings, DreamSettings) and settings.cache is None)


@torch.no_grad()
def published(model: Decoder, prompts: Tensor, settings: Settings) -> Tensor:
    """Ids [b, p + length] of prompts [b, p] of one length, at temperature 0, as `qspec.models.sampler.sample`."""
    x = torch.full((len(prompts), prompts.shape[1] + settings.length), model.shape.mask_token, device=model.device)
    x[:, : prompts.shape[1]] = prompts
    if isinstance(settings, DreamSettings):
        _dream(model, x, settings)
    else:
        assert isinstance(settings, SamplerSettings)
        for start in range(prompts.shape[1], x.shape[1], settings.block):
            _llada_block(model, x, start, settings)
    return x


def _llada_block(model: Decoder, x: Tensor, start: int, settings: SamplerSettings) -> None:
    """Fills x [b, t] from `start` on, a block."""
    end = start + settings.block
    whole = None if settings.cache is None else model.window(*x.shape)
    for index, count in enumerate(settings.commits()):
        window, tokens = whole, slice(0, x.shape[1])
        if whole is not None and index:
            tokens = slice(start, end if settings.cache == "dual" else x.shape[1])
            window = replace(whole, tokens=tokens)
        logits, own = model.finish(model.hidden(x, None, window)), x[:, tokens]
        x0 = logits.argmax(-1)
        p = logits.double().softmax(-1).gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        masked = own == model.shape.mask_token
        masked[:, end - tokens.start :] = False
        confidence = torch.where(masked, p, -torch.inf)
        chosen = torch.zeros_like(masked)
        for row in range(len(x)):
            chosen[row, confidence[row].topk(count).indices] = True
        own[chosen] = x0[chosen]


def _dream(model: Decoder, x: Tensor, settings: DreamSettings) -> None:
    """Fills the masks of x [b, t] by entropy."""
    for share in settings.shares():
        masked = x == model.shape.mask_token
        logits = model.finish(model.hidden(x))
        logits = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)[masked]  # a token is predicted by the one before it
        p = logits.softmax(-1)
        confidence = torch.full(x.shape, -torch.inf, device=x.device, dtype=p.dtype)
        confidence[masked] = (p * (p + 1e-10).log()).sum(-1)
        x0 = torch.zeros_like(x)
        x0[masked] = p.argmax(-1)
        count = int(masked.sum() / len(x) * share)
        if count:
            places = confidence.topk(count).indices
            x.scatter_(1, places, x0.gather(1, places))
