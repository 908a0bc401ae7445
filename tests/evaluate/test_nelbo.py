"""The masked NELBO of models that are known in closed form."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.data import TextData
from qspec.effort import NELBO_DRAWS as DRAWS
from qspec.errors import InputError, NumericsError
from qspec.evaluate import forward
from qspec.evaluate.nelbo import masked_rows, measure_nelbo, windows
from qspec.evaluate.statistics import average
from qspec.language.spec import NelboRequest
from tests.evaluate.models import MASK, SIZE, VOCAB, Characters, Known, shape, uniform, unigram
from tests.evaluate.test_likelihood import LENGTH, SYMBOLS, Digits, conditional_model, joint

A = VOCAB.index("a")


def text(*documents: str) -> TextData:
    return TextData("text", (Path("t.txt"),), documents)


def measure(baseline: Known, quantized: Known, data: TextData, samples: int = 64, seed: int = 0):
    return measure_nelbo(baseline, quantized, Characters(), data, NelboRequest(samples=samples), seed)


def test_uniform_logits_give_log_vocabulary_exactly() -> None:
    found = measure(uniform(), uniform(), text("a rather odd text.", "another one, 12 words"))
    assert found.metric.baseline == pytest.approx(math.log(SIZE), rel=1e-6)
    assert found.metric.quantized == pytest.approx(math.log(SIZE), rel=1e-6)
    assert found.metric.stderr == pytest.approx(0, abs=1e-7)
    assert (found.metric.n, found.metric.task, found.metric.metric) == (1, "wikitext2", "nelbo")
    assert all(bucket.kl == pytest.approx(0, abs=1e-6) for bucket in found.kl)


def test_a_model_that_knows_the_text_has_none() -> None:
    def knows(ids: Tensor, _: Tensor) -> Tensor:
        truth = torch.arange(ids.shape[1]).expand_as(ids) % 26
        return 60.0 * torch.nn.functional.one_hot(truth, SIZE).float()

    found = measure(Known(knows), uniform(), text(VOCAB[:26] * 2))
    assert found.metric.baseline == pytest.approx(0, abs=1e-6)
    assert found.metric.quantized == pytest.approx(math.log(SIZE), rel=1e-6)


def test_a_constant_text_under_two_unigram_models() -> None:
    baseline, quantized = unigram({A: 0.5}), unigram({A: 0.25})
    found = measure(baseline, quantized, text("a" * 40))
    assert found.metric.baseline == pytest.approx(math.log(2), rel=1e-5)
    assert found.metric.quantized == pytest.approx(math.log(4), rel=1e-5)
    assert found.metric.drop_percent == pytest.approx(100, rel=1e-4)
    # KL(quantized || unquantized) = 1/4 log(1/4 / 1/2) + 3/4 log(3/4 / 1/2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert [bucket.kl for bucket in found.kl] == pytest.approx([expected] * len(found.kl), rel=1e-4)


def test_estimates_converge_to_the_exact_bound() -> None:
    """On windows of three symbols, beside the sum over all masks; the mean within 3 standard errors."""
    table = (joint() / joint().sum()).double()
    model = Known(conditional_model().logits, shape(vocab=SYMBOLS + 1, mask=SYMBOLS, max_length=LENGTH))
    digits = torch.randint(SYMBOLS, (300,), generator=torch.Generator().manual_seed(2)).tolist()
    data = TextData("text", (Path("t.txt"),), ("".join(map(str, digits)),))
    found = measure_nelbo(model, model, Digits(), data, NelboRequest(samples=100), seed=5)

    def exact(window: tuple[int, ...]) -> float:
        """E over l = 1, 2, 3 and the masks of l places of 1/l sum -log p(masked | others)."""
        sums = []
        for count in range(1, LENGTH + 1):
            masks = list(itertools.combinations(range(LENGTH), count))
            values = [-p_of(place, window, mask).log() / count for mask in masks for place in mask]
            sums.append(sum(values) / len(masks))
        return float(sum(sums) / LENGTH)

    def p_of(place: int, window: tuple[int, ...], mask: tuple[int, ...]) -> Tensor:
        seen = table[tuple(slice(None) if i in mask else window[i] for i in range(LENGTH))]
        axis = sum(i in mask for i in range(place))
        return seen.movedim(axis, 0)[window[place]].sum() / seen.sum()

    windows_of = [tuple(digits[start : start + LENGTH]) for start in range(0, 300, LENGTH)]
    off = average([one - exact(window) for (one, _), window in zip(found.metric.items, windows_of, strict=True)])
    assert abs(off.mean) <= 3 * off.stderr
    assert 0 < off.stderr < 0.02


def test_the_mean_and_the_error_are_over_the_samples() -> None:
    b = VOCAB.index("b")
    model = unigram({A: 0.5, b: 0.125})
    found = measure(model, unigram({A: 0.25, b: 0.125}), text("a" * 64, "b" * 128))  # windows of 64 tokens
    assert found.metric.baseline == pytest.approx((math.log(2) + 2 * math.log(8)) / 3, rel=1e-5)
    # differences log 2, 0, 0: s^2 = (4/9 + 1/9 + 1/9) / 2 log(2)^2, by three
    assert found.metric.stderr == pytest.approx(math.log(2) / 3, rel=1e-4)
    assert found.metric.n == 3


def test_both_models_see_the_same_masks() -> None:
    baseline, quantized = uniform(), unigram({A: 0.3})
    measure(baseline, quantized, text("some words", "and a few words more"))
    assert len(baseline.seen) == len(quantized.seen) > 0
    assert all(torch.equal(one, other) for one, other in zip(baseline.seen, quantized.seen, strict=True))


def test_the_draws_depend_on_the_seed_alone() -> None:
    data = text("some words", "and a few words more")

    def seen(seed: int) -> list[Tensor]:
        model = uniform()
        measure(model, uniform(), data, seed=seed)
        return model.seen

    assert all(torch.equal(one, other) for one, other in zip(seen(1), seen(1), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(seen(1), seen(2), strict=True))


def test_mask_counts_are_stratified_over_samples_and_draws() -> None:
    samples = [torch.zeros(160, dtype=torch.int64) for _ in range(10)]
    rows = masked_rows(samples, 4, seed=3)
    counts = [int(row.masked.sum()) for row in rows]
    # forty strata of four counts each: every one is met once
    assert sorted((count - 1) // 4 for count in counts) == list(range(40))
    for sample in range(10):
        quarters = [(count - 1) // 40 for count in counts[4 * sample : 4 * sample + 4]]
        assert quarters == [0, 1, 2, 3]


def test_every_row_masks_at_least_one_token_and_at_most_all() -> None:
    rows = [row for seed in range(50) for row in masked_rows([torch.zeros(3, dtype=torch.int64)], 4, seed)]
    counts = {int(row.masked.sum()) for row in rows}
    assert counts == {1, 2, 3}


def test_buckets_cover_the_mask_ratios() -> None:
    found = measure(uniform(), uniform(), text("a" * 64 * 16))
    assert [(bucket.low, bucket.high) for bucket in found.kl] == [
        (0.0, 0.2),
        (0.2, 0.4),
        (0.4, 0.6),
        (0.6, 0.8),
        (0.8, 1.0),
    ]
    # 64 rows of 64 tokens with shares in even strata: the mean share is one half
    assert sum(bucket.positions for bucket in found.kl) == pytest.approx(64 * 32, rel=0.05)


def test_the_head_runs_at_masked_positions_alone() -> None:
    model, data = uniform(), text("a" * 50, "b" * 20)
    measure(model, uniform(), data)
    masked = sum(int((ids == MASK).sum()) for ids in model.seen)
    assert model.head_rows == masked < sum(ids.numel() for ids in model.seen)


def test_small_batches_and_small_heads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = text("some words, and a few words more. " * 8)
    whole = measure(unigram({A: 0.5}), unigram({A: 0.2}), data)
    monkeypatch.setattr(forward, "HEAD_VALUES", 3 * SIZE)
    monkeypatch.setattr(forward.batches, "__defaults__", (100,))
    parts = measure(unigram({A: 0.5}), unigram({A: 0.2}), data)
    assert parts.metric.quantized == pytest.approx(whole.metric.quantized, rel=1e-9)
    assert [b.kl for b in parts.kl] == pytest.approx([b.kl for b in whole.kl], rel=1e-9)


def test_a_shifted_model_is_read_one_position_before() -> None:
    def knows_the_next(ids: Tensor, _: Tensor) -> Tensor:
        following = (torch.arange(ids.shape[1]).expand_as(ids) + 1) % 26
        return 60.0 * torch.nn.functional.one_hot(following, SIZE).float()

    model = Known(knows_the_next, shape(shift=True))
    rows = [forward.MaskedRow(torch.arange(20), torch.arange(20) % 3 == 1)]
    batch = next(forward.batches(rows, model.shape, model.device))
    p = forward.log_probabilities(model, forward.hidden_at_masks(model, batch))
    assert p.argmax(-1).tolist() == [1, 4, 7, 10, 13, 16, 19]


def test_padding_is_neither_masked_nor_seen() -> None:
    rows = [
        forward.MaskedRow(torch.tensor([1, 2, 3]), torch.tensor([True, False, True])),
        forward.MaskedRow(torch.tensor([4]), torch.tensor([True])),
    ]
    batch = next(forward.batches(rows, shape(), torch.device("cpu")))
    assert batch.rows == (0, 1)
    assert batch.ids.tolist() == [[MASK, 2, MASK], [MASK, shape().pad_token, shape().pad_token]]
    assert batch.real.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.row_of.tolist() == [0, 0, 1]


def test_windows_of_the_joined_text() -> None:
    found = windows(text("a" * 15 + "b" * 10, "c" * 20), Characters(), SIZE, samples=10, length=20)
    assert ["".join(VOCAB[i] for i in window) for window in found] == ["a" * 15 + "b" * 5, "b" * 5 + "c" * 15]
    assert [len(one) for one in windows(text("a" * 200), Characters(), SIZE, samples=3, length=20)] == [20, 20, 20]
    assert [len(one) for one in windows(text("a" * 15), Characters(), SIZE, samples=3, length=20)] == [15]
    with pytest.raises(InputError, match="5 tokens, fewer than 8"):
        windows(text("short"), Characters(), SIZE, samples=3, length=20)


def test_logits_that_are_not_finite_stop_the_measurement() -> None:
    broken = Known(lambda ids, _: torch.full((*ids.shape, SIZE), float("nan")))
    with pytest.raises(NumericsError, match="NaN or Inf"):
        measure(uniform(), broken, text("a" * 10))


def test_progress_counts_every_row() -> None:
    seen: list[tuple[int, int]] = []
    data = text("a" * 64, "b" * 64)
    measure_nelbo(
        uniform(),
        uniform(),
        Characters(),
        data,
        NelboRequest(samples=9),
        0,
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (2 * DRAWS, 2 * DRAWS)
