"""Likelihood of choices, against exact enumeration of a small joint distribution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from qspec.data import CHOICES, Choice, TaskData, TaskItem
from qspec.errors import InputError
from qspec.evaluate import likelihood
from qspec.evaluate.forward import MaskedRow
from qspec.evaluate.likelihood import (
    RatedChoice,
    encode_choice,
    likelihoods,
    log_likelihoods,
    masked_counts,
    measure_choices,
    rate,
)
from qspec.evaluate.statistics import average
from tests.evaluate.models import VOCAB, Characters, Known, shape, unigram

SYMBOLS, LENGTH = 3, 3
TINY = shape(vocab=SYMBOLS + 1, mask=SYMBOLS)


def joint() -> Tensor:
    """A random joint distribution over 27 texts of three symbols."""
    return torch.rand(SYMBOLS, SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(5)).div_(13)


def conditional_model() -> Known:
    """Predicts each masked position by its exact distribution given the positions that are not masked."""
    table = joint() / joint().sum()

    def logits(ids: Tensor, _: Tensor) -> Tensor:
        out = torch.zeros(*ids.shape, SYMBOLS + 1)
        for row, tokens in enumerate(ids.tolist()):
            for place in range(LENGTH):
                mass = [
                    sum(
                        float(table[full])
                        for full in itertools.product(range(SYMBOLS), repeat=LENGTH)
                        if full[place] == symbol and all(t in (SYMBOLS, f) for t, f in zip(tokens, full, strict=True))
                    )
                    for symbol in range(SYMBOLS)
                ]
                out[row, place] = torch.tensor([*mass, 1e-30]).log()
        return out

    return Known(logits, TINY)


def every_draw(tokens: Tensor) -> RatedChoice:
    """All masks, such that each count l = 1, 2, 3 has the same weight: the expectation, not an estimate."""
    rows, weights = [], []
    for count in range(1, LENGTH + 1):
        subsets = list(itertools.combinations(range(LENGTH), count))
        for chosen in subsets * (3 // len(subsets)):
            masked = torch.zeros(LENGTH, dtype=torch.bool)
            masked[list(chosen)] = True
            rows.append(MaskedRow(tokens, masked))
            weights.append(LENGTH / count)
    return RatedChoice(tuple(rows), tuple(weights))


def test_the_expectation_is_the_exact_likelihood() -> None:
    table = joint() / joint().sum()
    texts = list(itertools.product(range(SYMBOLS), repeat=LENGTH))
    found = log_likelihoods(conditional_model(), [every_draw(torch.tensor(one)) for one in texts])
    assert found == pytest.approx([math.log(float(table[one])) for one in texts], abs=1e-4)


class Digits:
    """One token a digit."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [int(one) for one in text if not add_special_tokens]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(str, token_ids)) if skip_special_tokens else ""


@pytest.mark.parametrize("text", ["012", "210", "111"])
def test_estimates_converge_to_the_exact_likelihood(text: str) -> None:
    """Independent estimates of 8 draws, and their mean within 3 standard errors of what enumeration gives."""
    table = joint() / joint().sum()
    exact = math.log(float(table[tuple(map(int, text))]))
    rated = [rate(Choice("", text), Digits(), shape(max_length=10), 8, seed) for seed in range(400)]
    estimates = log_likelihoods(conditional_model(), rated)
    few, many = average(estimates[:100]), average(estimates)
    assert abs(many.mean - exact) <= 3 * many.stderr
    assert 0 < many.stderr < 0.02
    assert many.stderr == pytest.approx(few.stderr / 2, rel=0.3)


def test_identical_inputs_share_a_forward_pass() -> None:
    model = conditional_model()
    one, other = every_draw(torch.tensor([0, 1, 2])), every_draw(torch.tensor([0, 1, 1]))
    log_likelihoods(model, [one, other])
    # 7 masks each, one of which hides the first two texts' only difference in 4 of its masks
    assert sum(ids.shape[0] for ids in model.seen) == 7 + 3


def test_counts_are_stratified() -> None:
    generator = torch.Generator().manual_seed(0)
    assert sorted(masked_counts(8, 8, generator)) == list(range(1, 9))
    assert sorted(masked_counts(4, 8, generator)) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert masked_counts(1, 5, generator) == [1] * 5
    halves = [masked_counts(4, 8, torch.Generator().manual_seed(seed)).count(1) for seed in range(40)]
    assert set(halves) == {2}
    long = masked_counts(160, 8, generator)
    steps = sorted((count - long[0]) % 160 for count in long)
    assert steps == [0, 20, 40, 60, 80, 100, 120, 140]
    assert len(masked_counts(7, 19, generator)) == 19


def test_the_context_is_never_masked() -> None:
    rated = rate(Choice("abc", "defg"), Characters(), shape(), 32, seed=1)
    for row, weight in zip(rated.rows, rated.weights, strict=True):
        assert row.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert not row.masked[:3].any()
        assert weight == 4 / int(row.masked.sum())


def test_a_long_context_loses_its_beginning() -> None:
    context, target = encode_choice(Choice("abcdef", "xyz"), Characters(), shape(max_length=7))
    assert [VOCAB[i] for i in context + target] == list("cdefxyz")
    with pytest.raises(InputError, match="3 tokens"):
        encode_choice(Choice("abcdef", "xyz"), Characters(), shape(max_length=3))
    with pytest.raises(InputError, match="0 tokens"):
        encode_choice(Choice("abcdef", ""), Characters(), shape(max_length=7))


def test_a_tokenizer_that_merges_across_the_border() -> None:
    class Merging(Characters):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return super().encode(text.replace("ab", "z"), add_special_tokens=add_special_tokens)

    context, target = encode_choice(Choice("xa", "b"), Merging(), shape())
    assert [VOCAB[i] for i in context] == ["x", "a"]
    assert [VOCAB[i] for i in target] == ["b"]


def test_white_space_that_ends_the_context_belongs_to_the_target() -> None:
    """As lm-eval splits: the text is encoded as it is, and what follows the stripped context is rated."""

    class Spaced(Characters):
        """A space and the letter behind it are one token, as in every byte-level vocabulary."""

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return super().encode(text.replace(" b", "z"), add_special_tokens=add_special_tokens)

    for context, text in (("ca", " b"), ("ca ", "b")):
        before, target = encode_choice(Choice(context, text), Spaced(), shape())
        assert ([VOCAB[i] for i in before], [VOCAB[i] for i in target]) == (["c", "a"], ["z"])
    before, target = encode_choice(Choice("  ", "b"), Spaced(), shape())
    assert (before, [VOCAB[i] for i in target]) == ([], [" ", "z"])


def task(*items: TaskItem, draws: int = 8) -> TaskData:
    return TaskData("mmlu", "recall", (CHOICES,), items, 8, 8, 8, draws=draws)


def item(right: int, *options: str) -> TaskItem:
    return TaskItem("q", options[right], tuple(Choice("q", one) for one in options), right)


def test_the_likeliest_choice_wins() -> None:
    a, b = VOCAB.index("a"), VOCAB.index("b")
    likes_a, likes_b = unigram({a: 0.5, b: 0.1}), unigram({a: 0.1, b: 0.5})
    items = (item(0, "aa", "bb"), item(1, "ba", "aa", "ab"), item(2, "ab", "ba", "bb"))
    found = measure_choices(likes_a, likes_b, Characters(), task(*items), CHOICES, seed=0)
    # the first model takes aa, aa and the first of ab, ba; the second bb, the first of ba, ab, and bb
    assert (found.baseline, found.quantized) == (2 / 3, 1 / 3)
    assert (found.metric, found.n) == ("choice_accuracy", 3)


def test_every_model_gets_the_same_draws() -> None:
    one, other = unigram({0: 0.5}), unigram({1: 0.5})
    measure_choices(one, other, Characters(), task(item(0, "abc", "bcd"), item(1, "a", "dddd")), CHOICES, seed=4)
    assert len(one.seen) == len(other.seen) > 0
    assert all(torch.equal(x, y) for x, y in zip(one.seen, other.seen, strict=True))


def test_draws_do_not_depend_on_the_other_items() -> None:
    alone = rate(Choice("q", "abcdef"), Characters(), shape(), 8, seed=2)
    again = rate(Choice("q", "abcdef"), Characters(), shape(), 8, seed=2)
    other = rate(Choice("q", "abcdef"), Characters(), shape(), 8, seed=3)

    def masks(rated: RatedChoice) -> list[list[bool]]:
        return [row.masked.tolist() for row in rated.rows]

    assert masks(alone) == masks(again) != masks(other)


def test_a_target_of_one_token_has_one_draw() -> None:
    assert len(rate(Choice("q", "a"), Characters(), shape(), 128, seed=2).rows) == 1
    assert len(rate(Choice("q", "ab"), Characters(), shape(), 128, seed=2).rows) == 128


def test_few_choices_at_a_time_are_rated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [Choice("q", text) for text in ("abc", "d", "bcd", "aabb")]
    model = unigram({0: 0.5, 1: 0.25})
    whole = likelihoods(model, Characters(), choices, 4, 0)
    monkeypatch.setattr(likelihood, "ROWS", 5)
    counted: list[int] = []
    assert likelihoods(model, Characters(), choices, 4, 0, lambda done, _: counted.append(done)) == whole
    assert counted == [1, 2, 3, 4]


def test_the_official_estimators_masks_give_the_official_number() -> None:
    """LLaDA's evaluation (github.com/ML-GSAI/LLaDA, eval_llada.py), in its own terms: a batch of b rows shares one k;
    row i masks the x_i = ((round(k + i L'/b) - 1) mod L') + 1 targets that a permutation puts first; the loss is the
    sum of cross-entropies over p = x / L', divided by b; log p is minus the mean of the batches' losses."""
    generator = torch.Generator().manual_seed(3)
    prefix, target, batch, draws = [4, 9, 1], [2, 2, 7, 5, 3], 8, 16
    model = random_model()
    sequence = torch.tensor([[*prefix, *target]] * batch)
    losses, rows, weights = [], [], []
    for _ in range(draws // batch):
        k = int(torch.randint(1, len(target) + 1, (), generator=generator))
        x = torch.round(torch.linspace(float(k), k + (batch - 1) * (len(target) / batch), steps=batch)).long()
        x = (x - 1) % len(target) + 1
        masked = torch.zeros_like(sequence, dtype=torch.bool)
        for row in range(batch):
            masked[row, len(prefix) + torch.randperm(len(target), generator=generator)[: x[row]]] = True
        p_mask = (x / len(target))[:, None].expand_as(sequence)
        logits = model.finish(model.hidden(sequence.masked_fill(masked, model.shape.mask_token)))
        loss = torch.nn.functional.cross_entropy(logits[masked], sequence[masked], reduction="none") / p_mask[masked]
        losses.append(float(loss.sum() / batch))
        rows += [MaskedRow(sequence[row], masked[row]) for row in range(batch)]
        weights += [len(target) / int(count) for count in x]
    official = -sum(losses) / len(losses)
    (found,) = log_likelihoods(model, [RatedChoice(tuple(rows), tuple(weights))])
    assert found == pytest.approx(official, rel=1e-5)


def random_model() -> Known:
    """Logits that depend on every token of the row."""
    table = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))

    def logits(ids: Tensor, _: Tensor) -> Tensor:
        return table[ids] + table[ids].sum(1, keepdim=True)

    return Known(logits, shape(vocab=12, mask=11))
