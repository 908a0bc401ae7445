"""Training batches: prompts with their answers, and windows of running text, as tensors on one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dataset import training_documents, training_items
from tasks import KINDS
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import EOS, PAD

ITEM_LENGTH = 80  # the longest prompt with its answer has 78 tokens
TEXT_LENGTH = 256


@dataclass(frozen=True)
class Batch:
    """ids: int64 [b, t]. target: bool [b, t], the tokens that may be masked. real: bool [b, t], not padding;
    None where all are."""

    ids: Tensor
    target: Tensor
    real: Tensor | None


@dataclass(frozen=True)
class Items:
    """The pool of one kind: ids int16 [n, t], filled with padding; start, stop [n]: where the answer's tokens lie."""

    ids: Tensor
    start: Tensor
    length: int

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids, target and real of some rows."""
        ids = self.ids[rows].long()
        start = self.start[rows, None]
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        real = places < start + self.length
        return ids, real & (places >= start), real


@dataclass(frozen=True)
class Pool:
    """All that training draws from. shares: of each kind of items."""

    items: tuple[Items, ...]
    shares: tuple[float, ...]
    stream: Tensor

    def draw_items(self, count: int) -> Batch:
        parts = []
        for pool, share in zip(self.items, self.shares, strict=True):
            rows = torch.randint(len(pool.ids), (int(count * share),), device=pool.ids.device)
            parts.append(pool.rows(rows))
        ids, target, real = (torch.cat(column) for column in zip(*parts, strict=True))
        return Batch(ids, target, real)

    def draw_text(self, count: int) -> Batch:
        starts = torch.randint(len(self.stream) - TEXT_LENGTH, (count, 1), device=self.stream.device)
        ids = self.stream[starts + torch.arange(TEXT_LENGTH, device=starts.device)].long()
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool), None)


def build_pool(tokenizer: Tokenizer, size: int, device: torch.device) -> Pool:
    """`size` items of arithmetic, half as many of the other kinds, and a quarter as many documents."""
    shares = {"recall": 0.25, "arithmetic": 0.45, "brackets": 0.3}
    pools = []
    for kind in KINDS:
        count = size if kind.name == "arithmetic" else size // 2
        pairs = [(item.prompt, f" {item.answer}") for item in training_items(kind, count)]
        pools.append(_encode(tokenizer, pairs, kind.length, device))
    documents = tokenizer.encode_batch(training_documents(size // 4))
    stream = torch.tensor([i for d in documents for i in d.ids], dtype=torch.int16, device=device)
    return Pool(tuple(pools), tuple(shares[kind.name] for kind in KINDS), stream)


def _encode(tokenizer: Tokenizer, pairs: list[tuple[str, str]], length: int, device: torch.device) -> Items:
    """Prompts and answers, the answers filled with end-of-text tokens to `length`."""
    eos, pad = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    answers = tokenizer.encode_batch([answer for _, answer in pairs])
    rows, start = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        row = prompt.ids + answer.ids + [eos] * (length - len(answer.ids))
        assert len(answer.ids) < length, "an answer leaves no room for its end"
        assert len(row) <= ITEM_LENGTH, f"an item has {len(row)} tokens"
        rows.append(row + [pad] * (ITEM_LENGTH - len(row)))
        start.append(len(prompt.ids))
    return Items(torch.tensor(rows, dtype=torch.int16, device=device), torch.tensor(start, device=device), length)
