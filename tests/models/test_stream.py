"""Streaming: each token when it is committed, the tokens and the texts of `generate`; how many steps that took."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import qspec
from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.sampler import (
    BlockSettings,
    DreamSettings,
    SamplerSettings,
    Settings,
    agreement,
    continue_ids,
    generate,
    left_padded,
    one_token_a_step,
    sample,
    settings_for,
    until,
)
from qspec.models.samplers.run import Tally
from qspec.models.stream import Commit, stream, stream_ids
from tests.models.test_block_causal import tiny
from tests.models.test_cached import dream, llada
from tests.models.test_engine import replayed  # noqa: F401 - a fixture
from tests.models.test_experts import tiny as tiny_mixture
from tests.models.test_sampler import Letters

LENGTH = 8


def block_causal() -> Decoder:
    """Shifted, in blocks of 4, whose first token follows from the block before."""
    return tiny("fast_dllm", 4)[2]


PROMPTS = [[3, 1, 4, 1, 5], [2, 7]]
LLADA: list[dict[str, Any]] = [
    {"block": 4},
    {"block": 4, "steps": 4},
    {"block": 2, "cache": "dual", "temperature": 0.8, "seed": 3},
    {"block": 4, "threshold": 0.05, "stop": True},
]
DREAM: list[dict[str, Any]] = [{}, {"steps": 3, "alg": "origin", "seed": 2}, {"cache": "prefix"}]
BLOCK: list[dict[str, Any]] = [{}, {"steps": 4}, {"threshold": 0.05, "stop": True}]
CASES = [(llada, options) for options in LLADA] + [(dream, options) for options in DREAM]
CASES += [(block_causal, options) for options in BLOCK]


@pytest.mark.parametrize(("build", "options"), CASES)
def test_every_token_comes_once_and_is_that_of_generate(build: Any, options: dict[str, Any]) -> None:
    model: Decoder = build()
    model.absent = torch.arange(model.shape.vocab) == model.shape.mask_token  # a place that gets it stays a mask
    settings = settings_for(model.shape, LENGTH, **options)
    ids, mask = left_padded(PROMPTS, model.shape.pad_token)
    rows = sample(model, ids, mask, settings)[:, ids.shape[1] :].tolist()
    found: list[dict[int, int]] = [{}, {}]
    last = ["", ""]
    steps = [-1, -1]
    for commit in stream_ids(model, Letters(), PROMPTS, settings):
        assert commit.step >= steps[commit.row]
        steps[commit.row] = commit.step
        assert sorted(commit.positions) == list(commit.positions)
        assert not found[commit.row].keys() & set(commit.positions)
        found[commit.row].update(zip(commit.positions, commit.tokens, strict=True))
        last[commit.row] = commit.text
    for row, tokens in enumerate(rows):
        assert found[row] == {place: tokens[place] for place in found[row]}
        assert all(token == model.shape.eos_token for place, token in enumerate(tokens) if place not in found[row])
    assert last == continue_ids(model, Letters(), PROMPTS, settings)


def test_what_an_edit_takes_back_is_open_again() -> None:
    """LLaDA2.2 inserts masks into a block, which moves its tokens: what a stream has told adds up at every step."""
    _, _, model = tiny_mixture("llada2.2", 4)
    settings = BlockSettings(12, 12, threshold=0.3, edit_threshold=0.1)
    ids, mask = left_padded(PROMPTS, model.shape.pad_token)
    rows = sample(model, ids, mask, settings)[:, ids.shape[1] :].tolist()
    states = [[model.shape.mask_token] * 12 for _ in PROMPTS]
    again = 0
    for commit in stream_ids(model, Letters(), PROMPTS, settings):
        state = states[commit.row]
        for place, token in zip(commit.positions, commit.tokens, strict=True):
            assert state[place] != token
            again += token == model.shape.mask_token
            state[place] = token
        shown = until(state, *model.shape.ends)
        assert commit.text == "".join("·" if t == model.shape.mask_token else chr(t + 33) for t in shown)
    assert states == rows
    assert again > 0


def test_one_prompt_and_many_by_the_public_name() -> None:
    model = llada()
    assert qspec.stream is stream
    for given in (["%$"], ["%$", "#%&"]):
        last: dict[int, str] = {}
        for commit in stream(model, Letters(), given[0] if len(given) == 1 else given, LENGTH, block=4):
            last[commit.row] = commit.text
        assert [last[row] for row in range(len(given))] == generate(model, Letters(), given, LENGTH, block=4)
    assert list(stream(model, Letters(), [])) == []
    first = next(iter(stream(model, Letters(), "%$", LENGTH, block=4)))
    assert isinstance(first, Commit)
    assert (first.row, first.step, len(first.positions), first.text.count("·")) == (0, 0, 1, 7)
    with pytest.raises(UsageError, match="not a setting"):
        stream(model, Letters(), "%$", LENGTH, alg="entropy")


@pytest.mark.usefixtures("replayed")
def test_a_stream_does_not_go_on_behind_another_text() -> None:
    """They would share a canvas."""
    model, settings = llada(), SamplerSettings(LENGTH, LENGTH, 4)
    steps = stream_ids(model, Letters(), PROMPTS[:1], settings)
    next(steps)
    alone = continue_ids(model, Letters(), PROMPTS[:1], settings)
    with pytest.raises(UsageError, match="another text was begun on this model"):
        next(steps)
    assert continue_ids(model, Letters(), PROMPTS[:1], settings) == alone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SamplerSettings(8, 8, 4), "8 tokens in 8 steps, 1.0 a step"),
        (SamplerSettings(8, 4, 4), "8 tokens in 4 steps, 2.0 a step"),
        (SamplerSettings(8, 8, 4, threshold=1e-9), "8 tokens in 2 steps, 4.0 a step"),
        (DreamSettings(8, 3), "8 tokens in 3 steps, 2.7 a step"),
        (BlockSettings(8, 4, threshold=1e-9), "8 tokens in 3 steps, 2.7 a step"),
    ],
)
def test_steps_are_counted(settings: Settings, said: str) -> None:
    """A threshold that everything reaches commits a block in one step; prompts of 5 and 2 lie in blocks of 4 such that
    their texts reach into three blocks."""
    model = {DreamSettings: dream, BlockSettings: block_causal}.get(type(settings), llada)()
    tally = Tally()
    continue_ids(model, Letters(), PROMPTS, settings, tally)
    assert str(tally) == said
    streamed = Tally()
    list(stream_ids(model, Letters(), PROMPTS, settings, streamed))
    assert str(streamed) == said


def test_agreement_counts_through_the_references_first_end() -> None:
    tokens = torch.tensor([[1, 2, 9, 9], [1, 9, 3, 4]])
    reference = torch.tensor([[1, 3, 9, 4], [1, 2, 3, 4]])  # 9 ends: places 0 to 2, and all of the second row
    assert agreement(tokens, reference, 9) == [2 / 3, 3 / 4]


def test_one_token_a_step_is_what_fewer_steps_approximate() -> None:
    assert one_token_a_step(SamplerSettings(8, 4, 4, factor=0.5, cfg=0.5, stop=True)) == SamplerSettings(
        8, 8, 4, cfg=0.5, stop=True
    )
    assert one_token_a_step(BlockSettings(8, 2, threshold=0.5)) == BlockSettings(8, 8)
    assert one_token_a_step(DreamSettings(8, 3, alg="origin")) == replace(DreamSettings(8, 8), alg="origin")
