"""Training batches: prompts with their answers, and windows of running text, as tensors on one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dataset import training_documents, training_items
from tasks import KINDS
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import EOS

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
    """The pool of one kind: ids int16 [n, t], filled with end-of-text tokens; start [n]: where the answer begins.

    length: tokens of the answer. block: of a block-causal model, which fills the last block of an answer to its end.
    """

    ids: Tensor
    start: Tensor
    length: int
    block: int

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids, target and real of some rows."""
        ids = self.ids[rows].long()
        start = self.start[rows, None]
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        real = places < -(-(start + self.length) // self.block) * self.block
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


def build_pool(tokenizer: Tokenizer, size: int, block: int, device: torch.device) -> Pool:
    """`size` items of arithmetic, half as many of the other kinds, and a quarter as many documents.

    block: as that of `Items`, 1 for a model without blocks.
    """
    shares = {"recall": 0.25, "arithmetic": 0.45, "brackets": 0.3}
    pools = []
    for kind in KINDS:
        count = size if kind.name == "arithmetic" else size // 2
        pairs = [(item.prompt, f" {item.answer}") for item in training_items(kind, count)]
        pools.append(_encode(tokenizer, pairs, kind.length, block, device))
    documents = tokenizer.encode_batch(training_documents(size // 4))
    stream = torch.tensor([i for d in documents for i in d.ids], dtype=torch.int16, device=device)
    return Pool(tuple(pools), tuple(shares[kind.name] for kind in KINDS), stream)


def _encode(tokenizer: Tokenizer, pairs: list[tuple[str, str]], length: int, block: int, device: torch.device) -> Items:
    """Prompts and answers, the answers filled with end-of-text tokens to `length` and beyond."""
    assert ITEM_LENGTH % block == 0, "the last block of the longest item is cut"
    eos = tokenizer.token_to_id(EOS)
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    answers = tokenizer.encode_batch([answer for _, answer in pairs])
    rows, start = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        row = prompt.ids + answer.ids
        assert len(answer.ids) < length, "an answer leaves no room for its end"
        assert len(prompt.ids) + length <= ITEM_LENGTH, f"an item has {len(prompt.ids) + length} tokens"
        rows.append(row + [eos] * (ITEM_LENGTH - len(row)))
        start.append(len(prompt.ids))
    return Items(
        torch.tensor(rows, dtype=torch.int16, device=device), torch.tensor(start, device=device), length, block
    )
