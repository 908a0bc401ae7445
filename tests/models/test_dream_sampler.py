"""Dream's sampler against the published algorithm written out position by position, and against sums by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qspec.errors import NumericsError, UsageError
from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.models.family import DecoderShape
from qspec.models.llada import LLADA
from qspec.models.sampler import DreamSettings, SamplerSettings, SampleStep, generate, sample, settings_for
from qspec.models.samplers import dream
from tests.models.counted import uniform
from tests.models.dream_layout import TINY_DREAM, predictions, random_weights
from tests.models.layout import TINY
from tests.models.test_sampler import Letters

MASK, VOCAB = TINY_DREAM["mask_token_id"], TINY_DREAM["vocab_size"]
WEIGHTS = random_weights(TINY_DREAM, seed=4)
WEIGHTS["lm_head.weight"][MASK] = 0  # hardly ever predicted: a row that keeps a mask changes the batch's mean


def build() -> Decoder:
    decoder = Decoder(DREAM, DREAM.shape(TINY_DREAM), dtype=torch.float64)
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in WEIGHTS.items()})
    return decoder.requires_grad_(False)


class Scripted:
    """A model whose logits [b, t, vocab], as they predict each position's own token, are any function of the canvas."""

    device = torch.device("cpu")
    absent: Tensor | None = None

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self.shape: DecoderShape = DREAM.shape(TINY_DREAM | {"max_position_embeddings": 8192})
        self.logits = logits

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits = self.logits(input_ids)
        return torch.cat((logits[:, 1:], logits[:, -1:]), dim=1)  # row i predicts token i + 1

    def finish(self, x: Tensor) -> Tensor:
        return x


def naive(prompt: list[int], row: int, settings: DreamSettings) -> list[int]:
    """One prompt alone, as published; the `row`-th of a batch."""
    canvas = np.array(prompt + [MASK] * settings.length)
    times = np.linspace(1, 1e-3, settings.steps + 1)
    for step in range(settings.steps):
        t, s = times[step], times[step + 1]
        last = step == settings.steps - 1
        masks = [i for i in range(len(canvas)) if canvas[i] == MASK]

        def drawn(purpose: int, i: int, step: int = step) -> float:
            return uniform(settings.seed, purpose, step, row, i - len(prompt))

        found = {}
        logits = predictions(TINY_DREAM, WEIGHTS, canvas)
        for i in masks:
            p = filtered(logits[i], settings)
            token = int(p.argmax())
            if settings.temperature > 0:
                token = int(np.nonzero(p.cumsum() > drawn(0, i))[0][0])
            first, second = sorted(p)[::-1][:2]
            confidence = {
                "maskgit_plus": p[token],
                "topk_margin": first - second,
                "entropy": sum(q * math.log(q) for q in p if q > 0),
            }
            found[i] = (confidence.get(settings.alg, 0.0), token)
        if settings.alg == "origin":
            chosen = [i for i in masks if last or drawn(1, i) < 1 - s / t]
        else:
            count = len(masks) if last else int(len(masks) * (1 - s / t))

            rank = {i: confidence for i, (confidence, _) in found.items()}
            if settings.alg_temp > 0:
                for i in masks:
                    rank[i] = rank[i] / settings.alg_temp - math.log(-math.log(drawn(1, i)))
            chosen = sorted(masks, key=lambda i: -rank[i])[:count]
        for i in chosen:
            canvas[i] = found[i][1]
    return canvas.tolist()


def filtered(logits: Any, settings: DreamSettings) -> Any:
    """Probabilities after temperature, top-p and top-k, by the words of the paper's code."""
    values = logits / settings.temperature if settings.temperature > 0 else logits
    p = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
    kept = sorted(range(len(p)), key=lambda j: -p[j])
    if settings.top_p < 1:
        running = np.cumsum([p[j] for j in kept])
        kept = kept[: int((running <= settings.top_p).sum()) + 1]
    kept = kept[: settings.top_k]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


SETTINGS = {
    "entropy": DreamSettings(8, 8),
    "maskgit": DreamSettings(9, 4, alg="maskgit_plus"),
    "margin": DreamSettings(10, 5, alg="topk_margin"),
    "one step": DreamSettings(6, 1),
    "more steps than tokens": DreamSettings(5, 9),
    "origin": DreamSettings(12, 6, alg="origin", seed=2),
    "origin, temperature": DreamSettings(12, 6, alg="origin", temperature=0.8, seed=5),
    "temperature": DreamSettings(8, 4, temperature=0.7, seed=3),
    "top-p": DreamSettings(8, 4, temperature=1.0, top_p=0.8, alg="maskgit_plus", seed=1),
    "top-k": DreamSettings(8, 4, temperature=1.5, top_k=3, alg="topk_margin", seed=1),
    "both": DreamSettings(8, 4, temperature=1.2, top_p=0.9, top_k=5, seed=7),
    "alg_temp": DreamSettings(10, 5, alg_temp=0.3, seed=4),
    "all of it": DreamSettings(10, 5, 1.0, 0.95, 20, "maskgit_plus", 0.2, 9),
}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_padded_batch_equals_the_published_algorithm(settings: DreamSettings, padding: str) -> None:
    prompts = [[7, 30, 12, 5, 9, 22], [3], [44, 2, 2, 17]]
    width = max(map(len, prompts))
    ids, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if padding == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    out = sample(build(), ids, mask, settings)
    assert torch.equal(out[:, :width], ids)
    for row, prompt in enumerate(prompts):
        expected = naive(prompt, row, settings)
        assert out[row, width:].tolist() == expected[len(prompt) :]


def test_the_settings_of_this_test_differ_in_what_they_generate() -> None:
    """Guards the comparison above against settings that do nothing."""
    prompt = torch.tensor([[7, 30, 12, 5]])
    variants = [
        DreamSettings(24, 8),
        DreamSettings(24, 24),
        DreamSettings(24, 8, alg="maskgit_plus"),
        DreamSettings(24, 8, alg="topk_margin"),
        DreamSettings(24, 8, alg="origin"),
        DreamSettings(24, 8, alg_temp=1.0),
        DreamSettings(24, 8, temperature=1.0),
        DreamSettings(24, 8, temperature=1.0, seed=1),
        DreamSettings(24, 8, temperature=1.0, top_p=0.5),
        DreamSettings(24, 8, temperature=1.0, top_k=3),
    ]
    texts = {tuple(sample(build(), prompt, None, settings)[0].tolist()) for settings in variants}
    assert len(texts) == len(variants)


@pytest.mark.parametrize(
    ("length", "steps", "counts"),
    [
        # t = 1, .75025, .5005, .25075, .001: 8 x .24975 = 1.998; 7 x .33289 = 2.33; 5 x .49900 = 2.495; the rest
        (8, 4, [1, 2, 2, 3]),
        # t = 1, .8002, .6004, .4006, .2008, .001: 5 x .1998 = .999; 5 x .24969; 4 x .33278; 3 x .49875; the rest
        (5, 5, [0, 1, 1, 1, 2]),
        (7, 1, [7]),
    ],
)
def test_transfer_counts(length: int, steps: int, counts: list[int]) -> None:
    seen: list[SampleStep] = []
    model = Scripted(lambda canvas: torch.nn.functional.one_hot(torch.full_like(canvas, 5), VOCAB).float())
    out = sample(model, torch.tensor([[1, 2], [3, 4]]), None, DreamSettings(length, steps), seen.append)
    assert [step.index for step in seen] == list(range(steps))
    assert [step.committed.sum(1).tolist() for step in seen] == [[count] * 2 for count in counts]
    assert out[:, 2:].unique().tolist() == [5]


P = (0.5, 0.3, 0.15, 0.05)


def table(p: Sequence[float]) -> Tensor:
    return torch.tensor([p], dtype=torch.float64).log().float()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "expected"),
    [
        (0.0, 1.0, None, P),
        (1.0, 0.7, None, (0.625, 0.375, 0, 0)),  # .5 and .8: the one that crosses .7 stays
        (1.0, 0.4, None, (1, 0, 0, 0)),
        (1.0, 0.97, None, P),
        (1.0, 1.0, 3, (10 / 19, 6 / 19, 3 / 19, 0)),
        (1.0, 0.7, 1, (1, 0, 0, 0)),
        (1.0, 0.9, 2, (0.625, 0.375, 0, 0)),
        (1.0, 1.0, 9, P),
        (0.5, 1.0, None, (0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365)),  # squares
        (0.5, 0.8, None, (25 / 34, 9 / 34, 0, 0)),  # temperature first: .685, .932
    ],
)
def test_filters(temperature: float, top_p: float, top_k: int | None, expected: Sequence[float]) -> None:
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        found = dream.probabilities(table([P[j] for j in order]), temperature, top_p, top_k)[0].tolist()
        assert found == pytest.approx([expected[j] for j in order], abs=1e-6)


def test_equal_tokens_at_the_border_of_top_k_stay() -> None:
    """As published: what is less than the k-th is removed, and nothing is less than its equal."""
    assert dream.probabilities(table((0.4, 0.2, 0.2, 0.2)), 1.0, 1.0, 2)[0].tolist() == pytest.approx(
        [0.4, 0.2, 0.2, 0.2]
    )


@pytest.mark.parametrize(
    ("alg", "expected"),
    [
        ("maskgit_plus", 0.5),
        ("topk_margin", 0.2),
        ("entropy", 0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)),
    ],
)
def test_confidences(alg: Any, expected: float) -> None:
    logits = torch.full((4, VOCAB), -80.0)
    logits[:, [8, 3, 11]] = table((0.3, 0.5, 0.2))[0]
    steps: list[SampleStep] = []
    model = Scripted(lambda canvas: logits.expand(len(canvas), -1, -1))
    out = sample(model, torch.tensor([[1, 2]]), None, DreamSettings(2, 1, alg=alg), steps.append)
    assert out.tolist() == [[1, 2, 3, 3]]
    assert steps[0].confidence[0].tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_each_alg_has_an_order_of_its_own() -> None:
    """Four positions whose distributions the three algorithms rank differently; one is committed in the second step."""
    rows = torch.full((6, VOCAB), -80.0)
    spread = 0.5 / 20
    for place, p in enumerate(((0.45, 0.44, 0.11), (0.4, 0.3, 0.3), (0.5, *[spread] * 20), (0.3, 0.3, 0.4))):
        rows[2 + place, 10 : 10 + len(p)] = table(p)[0]
    # probability: .45 .4 .5 .4; margin: .01 .1 .475 .1; entropy: -.96 -1.09 -2.19 -1.09
    first = {"maskgit_plus": 2, "topk_margin": 2, "entropy": 0}
    for alg, place in first.items():
        steps: list[SampleStep] = []
        model = Scripted(lambda canvas: rows.expand(len(canvas), -1, -1))
        sample(model, torch.tensor([[1, 2]]), None, DreamSettings(4, 4, alg=alg), steps.append)  # type: ignore[arg-type]
        assert steps[1].committed[0].nonzero().flatten().tolist() == [place], alg


def test_tokens_are_drawn_with_their_probabilities() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.2])
    rows = torch.full((2001, VOCAB), -60.0)
    rows[:, :3] = wanted.log()
    model = Scripted(lambda canvas: rows.expand(len(canvas), -1, -1))
    out = sample(model, torch.tensor([[7]]), None, DreamSettings(2000, 1, temperature=1.0, seed=2))
    shares = torch.bincount(out[0, 1:], minlength=3) / 2000
    assert torch.allclose(shares[:3], wanted, atol=0.04)  # 3.6 standard errors


def test_alg_temp_draws_positions_with_the_softmax_of_confidence() -> None:
    """Two steps over three positions commit one of them first: int(3 x .4995). Weights exp(c / .5), c = .9, .6, .3."""
    rows = torch.full((4, VOCAB), -80.0)
    for place, p in enumerate((0.9, 0.6, 0.3)):
        rows[1 + place, 5] = math.log(p)
        rows[1 + place, 10:20] = math.log((1 - p) / 10)
    model = Scripted(lambda canvas: rows.expand(len(canvas), -1, -1))
    steps: list[SampleStep] = []
    prompts = torch.full((3000, 1), 7)
    sample(model, prompts, None, DreamSettings(3, 2, alg="maskgit_plus", alg_temp=0.5), steps.append)
    assert steps[0].committed.sum(1).unique().tolist() == [1]
    shares = steps[0].committed.float().mean(0)
    expected = torch.tensor([0.9, 0.6, 0.3]).div(0.5).softmax(0)
    assert torch.allclose(shares, expected, atol=0.035)  # 3.8 standard errors


def test_origin_moves_every_mask_by_its_own_coin() -> None:
    """Four steps move .24975 of the masks, then .33289, .49900 and all of what is left."""
    model = Scripted(lambda canvas: torch.nn.functional.one_hot(torch.full_like(canvas, 5), VOCAB).float())
    steps: list[SampleStep] = []
    sample(model, torch.tensor([[1]]), None, DreamSettings(4000, 4, alg="origin"), steps.append)
    left = 4000
    for step, share in zip(steps, (0.24975, 0.33289, 0.49900, 1.0), strict=True):
        moved = int(step.committed.sum())
        assert moved == pytest.approx(left * share, abs=4 * math.sqrt(left * share * (1 - share)) + 1e-9)
        left -= moved
    assert left == 0


def test_a_row_with_fewer_masks_keeps_what_it_decided() -> None:
    """Row 0 commits the mask token in the first step, so it has more masks than row 1; the count is of their mean.

    Six tokens in three steps: t = 1, .667, .334, .001; int(6 x .333) = 1, int(5.5 x .49925) = 2, then int((4 + 3) / 2).
    """
    calls = []

    def logits(canvas: Tensor) -> Tensor:
        out = torch.zeros(*canvas.shape, VOCAB)
        out[..., 5] = 9.0
        out[0, 1, MASK] = 0.0 if calls else 20.0
        calls.append(canvas.clone())
        return out

    steps: list[SampleStep] = []
    out = sample(Scripted(logits), torch.tensor([[1], [2]]), None, DreamSettings(6, 3), steps.append)
    assert [(canvas == MASK).sum(1).tolist() for canvas in calls] == [[6, 6], [6, 5], [4, 3]]
    assert [step.committed.sum(1).tolist() for step in steps] == [[1, 1], [2, 2], [3, 3]]
    assert (out == MASK).sum(1).tolist() == [1, 0]
    assert out[:, 0].tolist() == [1, 2]


def test_no_more_is_committed_than_there_are_masks() -> None:
    """int(8 x .4995) = 3 in the first step, where three of four rows commit mask tokens; then int(29 / 4) = 7."""
    calls = []

    def logits(canvas: Tensor) -> Tensor:
        out = torch.zeros(*canvas.shape, VOCAB)
        out[..., 5] = 9.0
        out[:3, :, MASK] = 0.0 if calls else 20.0
        calls.append(canvas.clone())
        return out

    steps: list[SampleStep] = []
    out = sample(Scripted(logits), torch.full((4, 1), 2), None, DreamSettings(8, 2), steps.append)
    assert [step.committed.sum(1).tolist() for step in steps] == [[3] * 4, [7, 7, 7, 5]]
    assert (out == MASK).sum(1).tolist() == [1, 1, 1, 0]
    assert out[3].tolist() == [2, *[5] * 8]


def test_steps_say_what_was_committed() -> None:
    model, steps = build(), list[SampleStep]()
    prompt = torch.tensor([[7, 30], [12, 5]])
    out = sample(model, prompt, None, DreamSettings(15, 6, alg="origin"), steps.append)
    decided = torch.stack([step.committed for step in steps])
    assert decided.sum(0).unique().tolist() == [1]
    for step in steps:
        assert torch.equal(out[:, 2:][step.committed], step.tokens[step.committed])


def test_logits_that_are_not_finite_stop_it() -> None:
    model = Scripted(lambda canvas: torch.full((*canvas.shape, VOCAB), math.nan))
    with pytest.raises(NumericsError, match="logits are NaN or Inf"):
        sample(model, torch.tensor([[1]]), None, DreamSettings(4, 4))


def test_small_temperatures_do_not_overflow() -> None:
    greedy = sample(build(), torch.tensor([[7, 30]]), None, DreamSettings(6, 1))
    assert torch.equal(sample(build(), torch.tensor([[7, 30]]), None, DreamSettings(6, 1, temperature=1e-38)), greedy)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"length": 0}, "length is 0; it must be at least 1"),
        ({"steps": -1}, "steps is -1"),
        ({"alg": "random"}, "unknown alg 'random'"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"alg_temp": math.inf}, "alg_temp is inf"),
        ({"alg": "origin", "alg_temp": 0.5}, "alg origin has no confidence"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        DreamSettings(**({"length": 8, "steps": 8} | values))
    assert what in caught.value.what


def test_each_family_has_its_own_sampler_and_refuses_the_settings_of_the_other() -> None:
    llada, own = LLADA.shape(TINY), DREAM.shape(TINY_DREAM)
    assert settings_for(llada, 8, 4, 2, seed=3, alg=None) == SamplerSettings(8, 4, 2, seed=3)
    assert settings_for(llada, 8) == SamplerSettings(8, 8, 8)
    assert settings_for(own, 8, 4, 2, seed=3, cfg=None) == DreamSettings(8, 4, seed=3)  # no blocks
    assert settings_for(own, 8, alg="origin", top_k=3) == DreamSettings(8, 8, alg="origin", top_k=3)
    with pytest.raises(UsageError, match="alg_temp is not a setting of the llada sampler"):
        settings_for(llada, 8, alg_temp=0.0)
    with pytest.raises(UsageError, match="cfg is not a setting of the dream sampler") as caught:
        settings_for(own, 8, cfg=1.0)
    assert caught.value.hint == "it has temperature, top_p, top_k, alg, alg_temp, seed, cache"


def test_generate_uses_the_familys_sampler() -> None:
    model, tokenizer = build(), Letters()
    prompts = ["&'(", ")", "*+,-"]
    texts = generate(model, tokenizer, prompts, length=8, alg="maskgit_plus", block=8)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        row = naive(ids, 0, DreamSettings(8, 8, alg="maskgit_plus"))[len(ids) :]
        assert text == tokenizer.decode(row[: row.index(1)] if 1 in row else row, skip_special_tokens=True)
    with pytest.raises(UsageError, match="the dream sampler has no blocks"):
        generate(model, tokenizer, "&", length=8, block=4)
    with pytest.raises(UsageError, match="remasking is not a setting"):
        generate(model, tokenizer, "&", length=8, remasking="random")


def test_llada_s_sampler_on_a_shifted_model() -> None:
    """Block by block on Dream: logits are moved there too."""
    settings = SamplerSettings(8, 8, 2)
    prompt = [7, 30, 12]
    out = sample(build(), torch.tensor([prompt]), None, settings)[0].tolist()
    canvas = np.array(prompt + [MASK] * 8)
    for step in range(8):
        logits = predictions(TINY_DREAM, WEIGHTS, canvas)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        block = range(3 + step // 2 * 2, 5 + step // 2 * 2)
        place = max((i for i in block if canvas[i] == MASK), key=lambda i: p[i].max())
        canvas[place] = p[place].argmax()
    assert out == canvas.tolist()
