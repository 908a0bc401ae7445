"""Captured passes of block-causal models against eager ones: the same tokens, whatever was denoised before.

A capture is a pass that is made again (`tests.models.test_engine`): eager canvases are as long as their texts, captured
ones have room for more, whose keys are read and weigh nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.models import sampler
from qspec.models.decoder import Decoder
from qspec.models.engine import bucket_of
from qspec.models.sampler import BlockSettings, SampleStep, left_padded, sample
from qspec.models.samplers import block as block_sampler
from qspec.models.samplers.block_canvas import BlockShape
from qspec.plan.generating import TextSizes
from qspec.runtime import text_sizes
from tests.models.test_block_causal import KINDS, tiny
from tests.models.test_engine import Fixture, replayed  # noqa: F401 (a fixture)
from tests.models.test_experts import tiny as tiny_mixture

OPTIONS: list[dict[str, Any]] = [
    {},
    {"steps": 6},
    {"threshold": 0.3},
    {"entropy_bound": 2.0},
    {"remasking": "sequential", "steps": 6},
    {"threshold": 0.3, "edit_threshold": 0.2, "edit_steps": 3},
    {"part": 2, "threshold": 0.3},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 9, "seed": 3},
]
CASES = [
    *(("sdar", 4, options) for options in OPTIONS),
    *(("fast_dllm", 4, OPTIONS[index]) for index in (0, 5, 6)),
    ("sdar", 32, OPTIONS[2]),
    ("llada2.2", 4, OPTIONS[5]),
]


def model_of(kind: str, block: int) -> Decoder:
    return (tiny if kind in KINDS else tiny_mixture)(kind, block)[2]


def settings_of(options: dict[str, Any], length: int = 12) -> BlockSettings:
    return BlockSettings(**{"length": length, "steps": length} | options)


def prompts(rows: int, seed: int, longest: int) -> tuple[Tensor, Tensor]:
    """Rows of 1 to `longest` tokens, the first of them `longest`."""
    draws = torch.Generator().manual_seed(seed)
    lengths = [longest, *torch.randint(1, longest + 1, (rows - 1,), generator=draws).tolist()]
    return left_padded([torch.randint(2, 46, (n,), generator=draws).tolist() for n in lengths], 0)


@pytest.mark.parametrize(("kind", "block", "options"), CASES, ids=str)
def test_tokens_are_those_of_eager_passes(
    replayed: Fixture,  # noqa: F811
    kind: str,
    block: int,
    options: dict[str, Any],
) -> None:
    """One row and three, behind prompts of several lengths: runs replay what the first ones captured."""
    model, settings = model_of(kind, block), settings_of(options)
    for rows, longest in ((1, 9), (3, 21), (1, 2)) if kind in KINDS else ((3, 9), (3, 5)):
        given = prompts(rows, longest, longest)
        steps: list[list[SampleStep]] = [[], []]
        found = sample(model, *given, settings, steps[0].append)
        assert torch.equal(found, sample(model, *given, settings, steps[1].append, captured=False))
        if longest == 2 and not options:
            assert torch.equal(found, sample(model, *given, settings))  # nobody follows the passes
        for one, other in zip(*steps, strict=True):
            assert torch.equal(one.committed, other.committed)
            assert torch.equal(one.tokens[one.committed], other.tokens[other.committed])
            assert torch.allclose(one.confidence[one.committed], other.confidence[other.committed], atol=1e-6)
    kinds = 2 + model.shape.shift  # of passes: that denoise, that keep, and of a shifted model's first tokens
    assert replayed.capture.replays > 0
    assert replayed.capture.captures >= 1
    assert replayed.capture.captures <= 3 * (kinds + 1)  # of one row, of three, and of one where the memory is larger


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.2, "edit_threshold": 0.3, "edit_steps": 1}], ids=str)
def test_rows_leave_at_the_end_of_their_text(
    replayed: Fixture,  # noqa: F811
    options: dict[str, Any],
    captured: bool,
) -> None:
    """Eight prompts of different lengths: each text is that of the row alone, cut at its end and filled. Rows leave the
    canvas by halves."""
    model = model_of("sdar", 4)
    head, end = model.head, model.shape.eos_token
    assert head is not None
    head.weight[end] *= 4  # ends some texts early
    given = [torch.randint(2, 46, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(1, 9)]
    ids, mask = left_padded(given, 0)
    sizes = []
    stopped = sample(
        model, ids, mask, settings_of({"stop": True} | options, 16),
        lambda step: sizes.append(int(step.committed.any(1).sum())), captured=captured,
    )[:, 8:]  # fmt: skip
    whole = sample(model, ids, mask, settings_of(options, 16), captured=captured)[:, 8:]
    lengths = set()
    for row, prompt in enumerate(given):
        alone = sample(model, torch.tensor([prompt]), None, settings_of(options, 16))[0, len(prompt) :]
        assert torch.equal(alone, whole[row])
        text = sampler.until(alone.tolist(), *model.shape.ends)
        assert sampler.until(stopped[row].tolist(), *model.shape.ends) == text
        block_end = -(-(len(prompt) + len(text) + 1) // 4) * 4 - len(prompt)  # behind it nothing is computed
        assert (stopped[row, block_end:] == end).all()
        lengths.add(len(text))
    assert len(lengths) > 2
    assert min(sizes) < 8
    if captured:
        batches = {shape.batch for shape in replayed.graphs(model).canvases if isinstance(shape, BlockShape)}
        assert batches & {2, 3, 4}
        assert batches <= {1, 2, 3, 4, 8}


def test_random_lengths_share_their_passes(replayed: Fixture) -> None:  # noqa: F811
    """Buckets: texts of 1 to 80 tokens behind prompts of 1 to 40 have canvases of 64, 96 or 128 tokens."""
    model, draws = model_of("sdar", 4), torch.Generator().manual_seed(0)
    for number in range(16):
        prompt, length = (int(torch.randint(1, most, (), generator=draws)) if number else most for most in (40, 80))
        ids = torch.randint(2, 46, (1, prompt), generator=draws)
        sample(model, ids, None, BlockSettings(length, length, threshold=0.1))
    shapes = replayed.graphs(model).canvases
    assert set(shapes) == {BlockShape(1, length) for length in (64, 96, 128)}
    most = 3 + 5 + 7  # of prompts, and two kinds for each bucket of keys on a canvas
    assert 8 < replayed.capture.captures <= len(replayed.graphs(model).steps) <= most


def test_buckets() -> None:
    assert [bucket_of(n) for n in (1, 64, 65, 96, 97, 128, 129, 1024, 1025)] == [
        64,
        64,
        96,
        96,
        128,
        128,
        192,
        1024,
        1536,
    ]
    assert len({bucket_of(n) for n in range(1, 4097)}) == 13
    assert all(n <= bucket_of(n) <= max(64, 1.5 * n) for n in range(1, 4097))
    assert text_sizes(BlockSettings(64, 64), 2, 1100) == TextSizes(2, 1536, 64, cache=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["sdar", "fast_dllm"])
def test_a_pass_reads_no_number_on_the_host(kind: str, options: dict[str, Any]) -> None:
    """On the meta device, where there are none: so that a graph can hold the pass, and the host runs ahead."""
    model = model_of(kind, 4).to("meta")
    canvas = BlockShape(2, 16).canvas(model)
    canvas.keep(model, torch.empty(canvas.room(model), dtype=torch.float64, device="meta"))
    block_sampler._keep(model, canvas, 8, 12)
    results = (
        *block_sampler._first(model, canvas),
        *block_sampler._step(model, settings_of(options), canvas, 12),
        *block_sampler._step(model, settings_of(options), canvas, 12, 4),
    )
    assert {t.device.type for t in results} == {"meta"}


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.3}], ids=str)
def test_logits_that_are_not_finite_end_the_run(options: dict[str, Any], captured: bool) -> None:
    """At the end of the block; what they left in keys and values does not reach the next run."""
    model, given = model_of("sdar", 4), prompts(2, 0, 9)
    settings = settings_of(options)
    expected = sample(model, *given, settings, captured=captured)
    weight = model.embedding.weight
    assert isinstance(weight, Tensor)
    before = weight[model.shape.mask_token].clone()
    weight[model.shape.mask_token] = torch.nan
    steps: list[SampleStep] = []
    with pytest.raises(NumericsError, match="NaN or Inf"):
        sample(model, *given, settings, steps.append, captured=captured)
    assert len(steps) <= 4
    weight[model.shape.mask_token] = before
    assert torch.equal(sample(model, *given, settings, captured=captured), expected)
