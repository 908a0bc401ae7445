"""Models that are known in closed form, and a tokenizer of single characters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from qspec.models.family import DecoderShape

VOCAB = "abcdefghijklmnopqrstuvwxyz0123456789 =+#?.,"
PAD, EOS, MASK = len(VOCAB), len(VOCAB) + 1, len(VOCAB) + 2
SIZE = len(VOCAB) + 3


def shape(vocab: int = SIZE, max_length: int = 64, mask: int = MASK, shift: bool = False) -> DecoderShape:
    """A shape of which evaluation reads vocab, lengths and the special tokens."""
    return DecoderShape(
        layers=1,
        width=4,
        heads=1,
        kv_heads=1,
        head_width=4,
        ffn=4,
        vocab=vocab,
        max_length=max_length,
        norm_eps=1e-5,
        rope_theta=1e4,
        qkv_bias=False,
        bias=False,
        tied=False,
        shift=shift,
        sampler="dream" if shift else "llada",
        mask_token=mask,
        eos_token=EOS if vocab == SIZE else 0,
        pad_token=PAD if vocab == SIZE else 0,
    )


class Characters:
    """One token a character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [VOCAB.index(one) for one in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(VOCAB[one] for one in token_ids if one < len(VOCAB))


class Known:
    """A model whose logits are a function of (ids, attention mask); it records the ids that it was given."""

    def __init__(self, logits: Callable[[Tensor, Tensor], Tensor], own: DecoderShape | None = None) -> None:
        self.logits = logits
        self.own = own or shape()
        self.seen: list[Tensor] = []
        self.head_rows = 0
        self.absent: Tensor | None = None

    @property
    def shape(self) -> DecoderShape:
        return self.own

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.seen.append(input_ids.clone())
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.logits(input_ids, mask)

    def finish(self, x: Tensor) -> Tensor:
        self.head_rows += x.shape[:-1].numel()
        return x


def uniform(own: DecoderShape | None = None) -> Known:
    """Every token is as likely as any other."""
    size = (own or shape()).vocab
    return Known(lambda ids, _: torch.zeros(*ids.shape, size), own)


def unigram(probabilities: Mapping[int, float], own: DecoderShape | None = None) -> Known:
    """The same distribution at every position; tokens that are not named share what is left."""
    size = (own or shape()).vocab
    rest = (1 - sum(probabilities.values())) / (size - len(probabilities))
    logits = torch.full((size,), math.log(rest))
    for token, probability in probabilities.items():
        logits[token] = math.log(probability)
    return Known(lambda ids, _: logits.expand(*ids.shape, size), own)


def oracle(answers: Mapping[str, str], backwards: bool = False) -> Known:
    """Continues each prompt with its answer and then ends of text; surest of early (late) positions."""
    tokens = {
        tuple(VOCAB.index(c) for c in prompt): [VOCAB.index(c) for c in answer] for prompt, answer in answers.items()
    }

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        out = torch.zeros(*ids.shape, SIZE)
        for row in range(ids.shape[0]):
            start = int(mask[row].argmax())
            for prompt, answer in tokens.items():
                if tuple(ids[row, start : start + len(prompt)].tolist()) == prompt:
                    first = start + len(prompt)
                    for place in range(first, ids.shape[1]):
                        at = place - first
                        sure = 10 + (at if backwards else -at) * 0.1
                        out[row, place, answer[at] if at < len(answer) else EOS] = sure
        return out

    return Known(logits)
