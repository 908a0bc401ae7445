"""What follows from measured texts and how it is shown; which texts are timed, on a CPU. Times need a GPU."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec.bench.generation import WRITERS, Texts, _few_steps, _measure, _settings
from qspec.bench.generation_data import Generation, GenerationCell, markdown, read
from qspec.bench.published import published
from qspec.cli import main
from qspec.models.decoder import Decoder
from qspec.models.sampler import BlockSettings, DreamSettings, SamplerSettings, sample
from qspec.plan.generating import TextSizes, generating_memory
from tests.models.test_block_causal import tiny
from tests.models.test_cached import dream, llada
from tests.models.test_dream_sampler import build

PUBLISHED = GenerationCell("llada", "bf16", "published", "none", 2, 128, 64, 64, 6.4, 20_000_000_000, None)
EAGER = replace(PUBLISHED, execution="eager", seconds=4.8, planned=21_000_000_000)
CAPTURED = replace(EAGER, execution="captured", seconds=3.2)
OURS = replace(CAPTURED, recipe="w4a4", seconds=1.6, peak=6_200_000_000, planned=6_500_000_000)
RUN = Generation(
    {"gpu": "A GPU", "torch": "2", "triton": "3"}, (PUBLISHED, EAGER, CAPTURED, OURS, replace(OURS, cache="dual"))
)


def test_rates_and_ratios() -> None:
    assert PUBLISHED.step_milliseconds == pytest.approx(100.0)
    assert PUBLISHED.tokens_per_second == pytest.approx(20.0)
    assert RUN.over(OURS, "published") == pytest.approx(4.0)
    assert RUN.over(OURS, "eager") == pytest.approx(3.0)
    assert RUN.over(OURS, "captured") == pytest.approx(2.0)
    assert RUN.over(RUN.cells[4], "published") is None  # bf16 was not timed with this cache


def test_a_run_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "| w4a4 | captured | none | 2 | 25.00 | 80 | 4.00 | 3.00 | 2.00 | 6.2 | 6.5 |"
    lines = markdown(RUN).splitlines()
    assert "**llada**, prompt 128, 64 tokens in 64 steps" in lines
    assert row in lines
    assert "| bf16 | published | none | 2 | 100.00 | 20 | 1.00 | 0.75 | 0.50 | 20.0 |  |" in lines
    assert "| w4a4 | captured | dual | 2 | 25.00 | 80 |  |  |  | 6.2 | 6.5 |" in lines
    stored = tmp_path / "generate.json"
    stored.write_text(json.dumps(RUN.as_json()))
    assert read([stored]) == RUN
    assert main(["bench", "--generate", "--results", str(stored), "--out", str(tmp_path / "out")]) == 0
    assert row in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "generate.json").read_text()) == json.loads(stored.read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generate", "--length", "100"], "--length 100 is not a multiple of 32"),
        (["--generate", "--batch", "1,x"], "--batch '1,x' is not a list of numbers"),
        (["--generate", "--prompt", "0"], "--prompt 0 is not a number of tokens"),
        (["--generate", "--rows"], "--generate and --rows are two runs"),
        (["--batch", "1"], "--prompt, --length and --batch belong to --generate"),
        (["--generate", "--shape", "12288x4096"], "--generate takes recipes and whole models"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


def test_one_token_a_step_and_a_warm_up_that_sees_every_pass() -> None:
    model = llada()
    settings = _settings(model, 64, "dual")
    assert settings == SamplerSettings(64, 64, 32, cache="dual")
    assert _few_steps(settings) == SamplerSettings(64, 6, 32, cache="dual")
    assert _settings(dream(), 64, "dual") is None
    assert _settings(dream(), 64, "prefix") == DreamSettings(64, 64, cache="prefix")
    assert _few_steps(DreamSettings(64, 64)) == DreamSettings(64, 64)
    assert isinstance(model, Decoder)
    _, _, blocks = tiny("sdar", 4)
    assert _settings(blocks, 64, "exact") == BlockSettings(64, 64) == _few_steps(BlockSettings(64, 64))


def test_sdar_has_the_dimensions_of_8b() -> None:
    """8,190,735,360 weights of Qwen3-8B (its model card: 8.2B, 6.95B without embeddings), whose layout SDAR-8B has."""
    family, shape = WRITERS["sdar"]
    assert sum(math.prod(size) for size in family.tensors(shape).values()) == 8_190_735_360
    assert shape.block == 4


def test_every_batch_and_cache_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[int, ...], object, bool]] = []

    def sample(_: Decoder, prompts: torch.Tensor, *, settings: object, captured: bool, **__: Any) -> None:
        asked.append((tuple(prompts.shape), settings, captured))

    monkeypatch.setattr("qspec.bench.generation.sample", sample)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 7)
    cells = list(_measure(llada(), ("llada", "w4a4", "captured"), 1000, Texts(5, 32, (1, 2), ("none", "dual"))))
    assert [(c.batch, c.cache, c.steps, c.peak) for c in cells] == [
        (1, "none", 32, 7), (1, "dual", 32, 7), (2, "none", 32, 7), (2, "dual", 32, 7),
    ]  # fmt: skip
    for cell in cells:
        sizes = TextSizes(cell.batch, 5 + 32, 32, cell.cache == "dual")
        assert cell.planned == generating_memory(llada().shape, 1000, sizes).total
    (cell,) = _measure(tiny("sdar", 4)[2], ("sdar", "w4a4", "captured"), 1000, Texts(5, 32, (1,), ("none", "dual")))
    assert (cell.cache, cell.steps, asked.pop()[1]) == ("exact", 32, BlockSettings(32, 32))
    del asked[-2:]
    assert [(shape, captured) for shape, _, captured in asked] == [((batch, 5), True) for batch in (1,) * 6 + (2,) * 6]
    plain = list(_measure(dream(), ("dream", "bf16", "published"), 1000, Texts(5, 8, (1,), ("none", "prefix"))))
    assert [(cell.cache, cell.planned) for cell in plain] == [("none", None)]
    assert not list(_measure(tiny("sdar", 4)[2], ("sdar", "bf16", "published"), 1000, Texts(5, 32, (1,), ("none",))))


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_the_published_loop_of_llada_gives_our_tokens(cache: Any) -> None:
    """Where nothing is rounded: in float64."""
    model, settings = llada(), SamplerSettings(8, 4, 4, cache=cache)
    prompts = torch.randint(3, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(published(model, prompts, settings), sample(model, prompts, None, settings))


@pytest.mark.parametrize("steps", [8, 3])
def test_the_published_loop_of_dream_gives_our_tokens(steps: int) -> None:
    """Of a model that never predicts a mask, which the published loop does not expect."""
    model, settings = build(), DreamSettings(8, steps)
    prompts = torch.randint(3, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(published(model, prompts, settings), sample(model, prompts, None, settings))
