from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qspec.errors import InputError, NumericsError, UsageError
from qspec.models.decoder import Decoder
from qspec.models.family import DecoderShape
from qspec.models.llada import LLADA
from qspec.models.sampler import SamplerSettings, SampleStep, generate, left_padded, sample, until
from tests.models.counted import uniform
from tests.models.layout import TINY, random_weights

MASK, EOS = TINY["mask_token_id"], TINY["eos_token_id"]
VOCAB = TINY["embedding_size"]


def build(dtype: torch.dtype = torch.float64) -> Decoder:
    config = TINY | {"n_kv_heads": 2}
    decoder = Decoder(LLADA, LLADA.shape(config), dtype=dtype)
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in random_weights(config, seed=4).items()})
    return decoder.requires_grad_(False)


class Scripted:
    """A model whose logits [b, t, vocab] are any function of the canvas."""

    shape: DecoderShape = LLADA.shape(TINY)
    device = torch.device("cpu")
    absent: Tensor | None = None

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self.logits = logits
        self.finished: list[tuple[int, ...]] = []

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.logits(input_ids)

    def finish(self, x: Tensor) -> Tensor:
        self.finished.append(tuple(x.shape))
        return x


def naive(model: Decoder, prompt: list[int], row: int, settings: SamplerSettings) -> list[int]:
    """One prompt alone, position by position, as the paper's published algorithm has it; the `row`-th of a batch."""
    canvas = prompt + [MASK] * settings.length
    per_block = settings.steps // (settings.length // settings.block)
    for start in range(len(prompt), len(canvas), settings.block):
        places = range(start, start + settings.block)
        masks = sum(canvas[i] == MASK for i in places)
        commits = [masks // per_block] * per_block
        for step in range(masks % per_block):
            commits[step] += 1
        for number, count in enumerate(commits):
            step = (start - len(prompt)) // settings.block * per_block + number
            logits = full_logits(model, canvas)
            if settings.cfg > 0:
                blank = [MASK] * len(prompt) + canvas[len(prompt) :]
                unguided = full_logits(model, blank)
                logits = unguided + (settings.cfg + 1) * (logits - unguided)
            candidates = []
            for i in places:
                if canvas[i] != MASK:
                    continue
                score = logits[i]
                if settings.temperature > 0:
                    u = np.array([uniform(settings.seed, 0, step, row, i - len(prompt), v) for v in range(VOCAB)])
                    score = np.exp(logits[i]) / (-np.log(u)) ** settings.temperature
                if settings.logits_eos_inf:
                    logits[i][EOS] = score[EOS] = -1e30
                token = int(np.argmax(score))
                probabilities = np.exp(logits[i]) / np.exp(logits[i]).sum()
                sure = probabilities[token]
                if settings.remasking == "random":
                    sure = uniform(settings.seed, 1, step, row, i - len(prompt))
                if settings.confidence_eos_eot_inf and token == EOS:
                    sure = -1
                candidates.append((sure, i, token))
            candidates.sort(reverse=True)
            for _, i, token in candidates[: max(count, number_of_sure([c[0] for c in candidates], settings))]:
                canvas[i] = token
        if settings.stop and EOS in canvas[len(prompt) :]:
            return canvas[: places.stop] + [EOS] * (len(canvas) - places.stop)
    return canvas


def number_of_sure(confidences: list[float], settings: SamplerSettings) -> int:
    """Of confidences, the largest first: how many Fast-dLLM commits (arXiv 2505.22618, section 3.3)."""
    if settings.threshold is not None:
        return sum(c >= settings.threshold for c in confidences)
    if settings.factor is None:
        return 0
    fails = (n for n, c in enumerate(confidences, 1) if (n + 1) * (1 - c) > settings.factor)
    return next(fails, len(confidences) + 1) - 1


def full_logits(model: Decoder, canvas: list[int]) -> Any:
    return model(torch.tensor([canvas])).logits[0].to(torch.float32).double().numpy()


SETTINGS = {
    "one token a step": SamplerSettings(8, 8, 8),
    "three blocks": SamplerSettings(12, 12, 4),
    "remainder to the first steps": SamplerSettings(15, 6, 5),
    "remainder in one block": SamplerSettings(10, 3, 10),
    "one step": SamplerSettings(6, 1, 6),
    "guidance": SamplerSettings(8, 4, 4, cfg=1.5),
    "temperature": SamplerSettings(12, 6, 4, temperature=0.7, seed=3),
    "high temperature": SamplerSettings(8, 8, 8, temperature=2.0, seed=11),
    "random": SamplerSettings(12, 6, 6, remasking="random", seed=1),
    "threshold": SamplerSettings(12, 12, 6, threshold=0.25),
    "threshold, two a step": SamplerSettings(12, 6, 12, threshold=0.4),
    "factor": SamplerSettings(12, 12, 6, factor=1.7),
    "no end": SamplerSettings(12, 6, 6, logits_eos_inf=True),
    "ends last": SamplerSettings(12, 12, 6, confidence_eos_eot_inf=True),
    "random, temperature, guidance": SamplerSettings(10, 4, 5, temperature=1.0, remasking="random", cfg=0.5, seed=8),
}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_padded_batch_equals_the_published_algorithm(settings: SamplerSettings, padding: str) -> None:
    model = build()
    prompts = [[7, 30, 12, 5, 9, 22], [3], [44, 2, 2, 17]]
    width = max(map(len, prompts))
    ids, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if padding == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    out = sample(model, ids, mask, settings)
    assert out.shape == (3, width + settings.length)
    assert torch.equal(out[:, :width], ids)
    for row, prompt in enumerate(prompts):
        expected = naive(model, prompt, row, settings)
        assert out[row, width:].tolist() == expected[len(prompt) :]


def test_the_settings_of_this_test_differ_in_what_they_generate() -> None:
    """Guards the comparison above against settings that do nothing."""
    model = build()
    prompt = torch.tensor([[7, 30, 12, 5]])
    variants = [
        SamplerSettings(24, 8, 24),
        SamplerSettings(24, 24, 24),
        SamplerSettings(24, 8, 6),
        SamplerSettings(24, 8, 24, cfg=1.5),
        SamplerSettings(24, 8, 24, temperature=1.0),
        SamplerSettings(24, 8, 24, temperature=1.0, seed=1),
        SamplerSettings(24, 8, 24, remasking="random"),
    ]
    texts = {tuple(sample(model, prompt, None, settings)[0].tolist()) for settings in variants}
    assert len(texts) == len(variants)


def test_no_mask_equals_a_mask_of_ones_and_a_seed_repeats() -> None:
    model = build()
    prompt = torch.tensor([[7, 30, 12], [4, 4, 8]])
    settings = SamplerSettings(8, 4, 4, temperature=1.0, remasking="random", seed=6)
    first = sample(model, prompt, None, settings)
    assert torch.equal(first, sample(model, prompt, torch.ones_like(prompt), settings))


def test_an_empty_prompt() -> None:
    """A canvas of masks alone gives every position the same logits; chance decides between them."""
    model = build()
    settings = SamplerSettings(6, 4, 3, temperature=1.0, remasking="random")
    out = sample(model, torch.zeros(1, 0, dtype=torch.int64), None, settings)
    assert out[0].tolist() == naive(model, [], 0, settings)


def test_a_predicted_mask_token_stays_a_mask() -> None:
    """As published: a commit of the mask token itself leaves the position open for a later step."""

    def logits(canvas: Tensor) -> Tensor:
        out = torch.zeros(*canvas.shape, VOCAB)
        others = (canvas[:, 2:] != MASK).sum(-1)  # commits of other tokens so far
        out[:, 2, MASK] = 9.0  # the most confident position wants the mask token,
        out[:, 2, 5] = torch.where(others > 0, 10.0, 0.0)  # until another one is there
        out[:, 3, 6] = 7.0
        return out

    out = sample(Scripted(logits), torch.tensor([[1, 2]]), None, SamplerSettings(2, 2, 2))
    assert out.tolist() == [[1, 2, MASK, MASK]]
    steps: list[SampleStep] = []
    sample(Scripted(logits), torch.tensor([[1, 2]]), None, SamplerSettings(2, 2, 2), steps.append)
    assert [step.committed.tolist() for step in steps] == [[[True, False]], [[True, False]]]
    assert [step.tokens[0, 0].item() for step in steps] == [MASK, MASK]


def test_confidence_is_float32_for_a_16_bit_model() -> None:
    """In bfloat16 both probabilities round to one value; in float32 the second position is the surer one."""
    table = torch.zeros(4, VOCAB, dtype=torch.bfloat16)
    table[2, 5], table[3, 6] = 11.5, 11.75
    narrow = table.softmax(-1)
    assert narrow[2, 5] == narrow[3, 6]
    steps: list[SampleStep] = []
    model = Scripted(lambda canvas: table.expand(canvas.shape[0], -1, -1))
    sample(model, torch.tensor([[1, 2]]), None, SamplerSettings(2, 2, 2), steps.append)
    assert [step.committed.tolist() for step in steps] == [[[False, True]], [[True, False]]]
    assert steps[0].confidence.dtype == torch.float32
    assert steps[0].confidence[0, 1].item() == pytest.approx(math.exp(11.75) / (math.exp(11.75) + VOCAB - 1), rel=1e-6)


def test_steps_are_reported_as_they_are_taken() -> None:
    model, steps = build(), list[SampleStep]()
    model.head.weight[MASK] = 0  # never the argmax: a predicted mask token would be decided twice
    settings = SamplerSettings(15, 6, 5)
    prompt = torch.tensor([[7, 30], [12, 5]])
    out = sample(model, prompt, None, settings, steps.append)
    assert [step.index for step in steps] == list(range(6))
    assert [step.committed.sum(1).tolist() for step in steps] == [[3, 3], [2, 2]] * 3
    for row in range(2):
        seen = [step.committed[row].nonzero().flatten().tolist() for step in steps]
        assert sorted(p for step in seen for p in step) == list(range(15))
        for index, step in enumerate(seen):
            assert {p // 5 for p in step} == {index // 2}  # blocks from left to right
    for step in steps:
        assert torch.equal(out[:, 2:][step.committed], step.tokens[step.committed])


def test_the_head_runs_on_the_current_block_only() -> None:
    def logits(canvas: Tensor) -> Tensor:
        return torch.randn(*canvas.shape, VOCAB - 1, generator=torch.Generator().manual_seed(0))

    model = Scripted(logits)
    sample(model, torch.tensor([[1, 2], [3, 4]]), None, SamplerSettings(8, 2, 4))
    sample(model, torch.tensor([[1, 2], [3, 4]]), None, SamplerSettings(8, 2, 4, cfg=1.0))
    assert model.finished == [(2, 4, VOCAB - 1)] * 2 + [(4, 4, VOCAB - 1)] * 2


def test_high_temperature_draws_from_the_models_distribution() -> None:
    """Temperature 1 of log-probabilities draws each token with its probability."""
    wanted = torch.tensor([0.5, 0.3, 0.2])
    table = torch.full((2001, VOCAB), -60.0)
    table[:, :3] = wanted.log()
    model = Scripted(lambda canvas: table.expand(canvas.shape[0], -1, -1))
    model.shape = LLADA.shape(TINY | {"max_sequence_length": 4096})
    out = sample(model, torch.tensor([[1]]), None, SamplerSettings(2000, 1, 2000, temperature=1.0, seed=2))
    shares = torch.bincount(out[0, 1:], minlength=3) / 2000
    assert torch.allclose(shares[:3], wanted, atol=0.04)  # 3.6 standard errors


def test_extreme_logits_do_not_overflow_the_noise() -> None:
    table = torch.zeros(5, VOCAB)
    table[:, 7] = 1e4
    model = Scripted(lambda canvas: table.expand(canvas.shape[0], -1, -1))
    out = sample(model, torch.tensor([[1]]), None, SamplerSettings(4, 4, 4, temperature=0.5))
    assert out.tolist() == [[1, 7, 7, 7, 7]]


@given(per_block=st.integers(1, 40), blocks=st.integers(1, 5), extra=st.integers(0, 60))
def test_commits_are_even_with_the_remainder_first(per_block: int, blocks: int, extra: int) -> None:
    block = per_block + extra
    commits = SamplerSettings(block * blocks, per_block * blocks, block).commits()
    assert len(commits) == per_block
    assert sum(commits) == block
    assert max(commits) - min(commits) <= 1
    assert list(commits) == sorted(commits, reverse=True)


@pytest.mark.parametrize(
    ("values", "what", "hint"),
    [
        ((100, 100, 32), "length 100 is not a multiple of block 32", "try block 25"),
        ((64, 9, 32), "steps 9 is not a multiple of the 2 blocks", "try steps 8"),
        ((64, 1, 32), "steps 1 is not a multiple of the 2 blocks", "try steps 2"),
        ((32, 64, 32), "steps 64 is more than length 32", "32 steps are enough"),
        ((32, 32, 64), "length 32 is not a multiple of block 64", "try block 32"),
        ((0, 1, 1), "length is 0; it must be at least 1", ""),
        ((8, 0, 8), "steps is 0", ""),
        ((8, 8, -8), "block is -8", ""),
        ((8, 8, 8, -1.0), "temperature is -1.0", ""),
        ((8, 8, 8, float("nan")), "temperature is nan", ""),
        ((8, 8, 8, 0.0, "entropy"), "unknown remasking 'entropy'", "low_confidence, random"),
        ((8, 8, 8, 0.0, "random", float("inf")), "cfg is inf", ""),
        ((8, 8, 8, 0.0, "random", 0.0, -1), "seed is -1; it must lie in 0..4294967295", ""),
        ((8, 8, 8, 0.0, "random", 0.0, 2**32), "seed is 4294967296", ""),
        ((8, 8, 8, 0.0, "low_confidence", 0.0, 0, None, 0.0), "threshold is 0.0; it must lie above 0 and up to 1", ""),
        ((8, 8, 8, 0.0, "low_confidence", 0.0, 0, None, None, -1.0), "factor is -1.0; it must be a finite number", ""),
        ((8, 8, 8, 0.0, "low_confidence", 0.0, 0, None, 0.9, 1.0), "threshold and factor are two rules", "one of"),
        ((8, 8, 8, 0.0, "random", 0.0, 0, None, 0.9), "parallel commits need confidences", "leave remasking out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: Sequence[Any], what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplerSettings(*values)
    assert what in caught.value.what
    assert hint in (caught.value.hint or "")


def test_parallel_commits_take_fewer_steps_and_commit_what_is_sure() -> None:
    """Two of four positions are certain: the first step takes them, the next ones one each of the others."""
    logits = torch.zeros(4, VOCAB)
    logits[[0, 2], 7] = 20.0
    logits[1, 8] = 1.0

    model = Scripted(lambda _: torch.cat((torch.zeros(1, VOCAB), logits)).unsqueeze(0))
    steps: list[SampleStep] = []
    settings = SamplerSettings(4, 4, 4, threshold=0.9)
    sample(model, torch.tensor([[1]]), None, settings, steps.append)
    assert [step.committed[0].nonzero().flatten().tolist() for step in steps] == [[0, 2], [1], [3]]


def test_blocks_behind_the_end_of_all_texts_are_not_computed() -> None:
    """Row 0 ends in the first block and leaves, row 1 in the second; the third of three is end-of-text tokens."""
    rows: list[list[int]] = []

    def scripted(canvas: Tensor) -> Tensor:
        logits = torch.zeros(*canvas.shape, VOCAB)
        logits[:, :, 9] = 3.0
        rows.append(canvas[:, 0].tolist())
        logits[canvas[:, 0] == 1, 3, EOS] = 9.0
        logits[canvas[:, 0] == 3, 6, EOS] = 9.0
        return logits

    prompts = torch.tensor([[1, 2], [3, 4]])
    stopped = sample(Scripted(scripted), prompts, None, SamplerSettings(12, 12, 4, stop=True))
    assert rows == [[1, 3]] * 4 + [[3]] * 4
    whole = sample(Scripted(scripted), prompts, None, SamplerSettings(12, 12, 4))
    assert rows[8:] == [[1, 3]] * 12
    assert torch.equal(stopped[1, :10], whole[1, :10])
    assert (stopped[1, 10:] == EOS).all()
    assert torch.equal(stopped[0, :6], whole[0, :6])
    assert (stopped[0, 6:] == EOS).all()
    assert [until(row, EOS) for row in stopped[:, 2:].tolist()] == [until(row, EOS) for row in whole[:, 2:].tolist()]


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = build()
    with pytest.raises(InputError, match="prompt of 60 and length 8 exceed the model's 64 tokens"):
        sample(model, torch.zeros(1, 60, dtype=torch.int64), None, SamplerSettings(8, 8, 8))
    for token in (50, -1):
        with pytest.raises(InputError, match="the model has 50"):
            sample(model, torch.tensor([[4, token, 4]]), None, SamplerSettings(8, 8, 8))


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_stop_it(bad: float, remasking: Any) -> None:
    model = Scripted(lambda canvas: torch.full((*canvas.shape, VOCAB), bad))
    with pytest.raises(NumericsError, match="logits are NaN or Inf"):
        sample(model, torch.tensor([[1]]), None, SamplerSettings(4, 4, 4, remasking=remasking))


class Letters:
    """Token n is the n-th character from "!" on; the end token is special."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert add_special_tokens
        return [ord(c) - 33 for c in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(t + 33) for t in token_ids)


def test_generate_returns_text_for_text_and_a_list_for_a_list() -> None:
    model, tokenizer = build(), Letters()
    prompts = ["&'(", ")", "*+,-"]
    texts = generate(model, tokenizer, prompts, length=8, block=4)
    assert isinstance(texts, list)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        expected = naive(model, ids, 0, SamplerSettings(8, 8, 4))[len(ids) :]
        assert text == tokenizer.decode(until(expected, EOS), skip_special_tokens=True)
        assert generate(model, tokenizer, prompt, length=8, block=4) == text
    assert generate(model, tokenizer, [], length=8) == []


def test_generate_defaults_to_one_block_and_a_token_a_step() -> None:
    model, tokenizer = build(), Letters()
    assert generate(model, tokenizer, "&'", length=6) == generate(
        model, tokenizer, "&'", length=6, steps=6, block=6, temperature=0.0, remasking="low_confidence"
    )
    for name in ("steps", "block"):
        with pytest.raises(UsageError, match=f"{name} is 0"):
            generate(model, tokenizer, "&'", length=6, **{name: 0})


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="this is not valid text: surrogates not allowed"):
        generate(build(), Letters(), "a\udcff", length=4)


def test_text_ends_at_the_end_token() -> None:
    table = torch.zeros(6, VOCAB)
    for place, token in enumerate((5, 6, EOS, 7, 8)):
        table[place + 1, token] = 9
    model = Scripted(lambda canvas: table.expand(canvas.shape[0], -1, -1))
    assert generate(model, Letters(), "&", length=5) == "&'"


def test_left_padding() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
