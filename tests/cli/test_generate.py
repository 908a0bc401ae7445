from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qspec.cli import main
from qspec.models.checkpoint import load_decoder
from qspec.models.sampler import DreamSettings, SamplerSettings, Settings, sample, until
from tests.models import dream_layout
from tests.models.layout import TINY, random_weights, write_checkpoint

LETTERS = ["<pad>", "<eos>", *(chr(code) for code in range(97, 97 + 26)), *"0123456789 +-=.,!?:"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block checkpoint whose tokens are letters; 47, the mask, to 49 have no text."""
    weights = random_weights(TINY, seed=9)
    weights["model.transformer.ff_out.weight"][[0, 1, *range(len(LETTERS), 50)]] = 0
    return write_model(tmp_path_factory.mktemp("checkpoint"), TINY, weights)


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Dream's layout."""
    weights = dream_layout.random_weights(dream_layout.TINY_DREAM, seed=9)
    weights["lm_head.weight"][[0, 1, *range(len(LETTERS), 50)]] = 0
    return write_model(tmp_path_factory.mktemp("dream"), dream_layout.TINY_DREAM, weights)


def write_model(path: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    write_checkpoint(path, config, weights)
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    ).save_pretrained(path)
    return path


def expected(folder: Path, prompt: str, settings: Settings) -> str:
    ids = torch.tensor([[LETTERS.index(c) for c in prompt]])
    row = sample(load_decoder(folder), ids, None, settings)[0, len(prompt) :].tolist()
    return "".join(LETTERS[t] for t in until(row, 1))


def test_it_prints_the_text_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "2+2=", "--length", "12", "--steps", "6", "--block", "4", "--device", "cpu"]
    assert main(["generate", str(folder), *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == expected(folder, "2+2=", SamplerSettings(12, 6, 4)) + "\n"
    assert err == ""


def test_every_option_reaches_the_sampler(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--length 12 --steps 6 --block 6 --temperature 0.8 --cfg 1.5 --remasking random --seed 7 --cache dual"
    assert main(["generate", str(folder), "--prompt", "hello", "--device", "cpu", *options.split()]) == 0
    settings = SamplerSettings(12, 6, 6, 0.8, "random", 1.5, 7, "dual")
    assert capsys.readouterr().out == expected(folder, "hello", settings) + "\n"


def test_every_option_of_dream_reaches_its_sampler(dream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--length 12 --steps 6 --temperature 0.8 --alg topk_margin --alg-temp 0.4 --top-p 0.9 --top-k 20 --seed 7 "
    )
    options += "--cache prefix"
    assert main(["generate", str(dream), "--prompt", "hello", "--device", "cpu", *options.split()]) == 0
    settings = DreamSettings(12, 6, 0.8, 0.9, 20, "topk_margin", 0.4, 7, "prefix")
    assert capsys.readouterr().out == expected(dream, "hello", settings) + "\n"


def test_dream_s_defaults(dream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(dream), "--prompt", "a", "--device", "cpu", "--length", "9"]) == 0
    assert capsys.readouterr().out == expected(dream, "a", DreamSettings(9, 9)) + "\n"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--block 4", "the dream sampler has no blocks"),
        ("--cfg 1.5", "cfg is not a setting of the dream sampler"),
        ("--remasking random", "remasking is not a setting of the dream sampler"),
        ("--top-p 2", "top_p is 2.0; it must lie above 0 and up to 1"),
        ("--cache dual", "cache is dual, and nothing follows the text"),
        ("--alg greedy", "invalid choice: 'greedy'"),
    ],
)
def test_options_that_dream_refuses(dream: Path, capsys: pytest.CaptureFixture[str], options: str, what: str) -> None:
    assert main(["generate", str(dream), "--prompt", "a", "--length", "8", "--device", "cpu", *options.split()]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--alg entropy", "--alg-temp 0.5", "--top-p 0.9", "--top-k 3"])
def test_options_that_llada_refuses(folder: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["generate", str(folder), "--prompt", "a", "--length", "8", "--device", "cpu", *option.split()]) == 2
    name = option.split()[0].strip("-").replace("-", "_")
    err = capsys.readouterr().err
    assert f"{name} is not a setting of the llada sampler" in err
    assert "it has block, temperature, remasking, cfg, seed" in err


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (["--prompt", "a", "--length", "10", "--block", "4"], 2, "length 10 is not a multiple of block 4"),
        (["--prompt", "a", "--steps", "0"], 2, "steps is 0"),
        (["--prompt", "a", "--length", "64"], 3, "prompt of 1 and length 64 exceed the model's 64 tokens"),
        (["--prompt", "a\udcff", "--length", "4"], 3, "not valid text"),
        (["--prompt", "a", "--length", "x"], 2, "invalid int value"),
        ([], 2, "--prompt"),
    ],
)
def test_bad_options_give_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, what: str
) -> None:
    assert main(["generate", str(folder), "--device", "cpu", *options]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert "Traceback" not in err


def test_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path / "none"), "--prompt", "a", "--device", "cpu"]) == 3
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_terminal_does_not_obey_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec.cli import generate

    text = "a\x1b[2J\n\tb\u202e\x07é"
    assert generate._shown(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert generate._shown(text) == "a\\x1b[2J\n\tb\\u202e\\x07é"


def test_a_stand_in_is_named_as_for_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "Problem: 2+2", "--length", "4", "--block", "4", "--device", "cpu"]
    assert main(["generate", "tiny-llada", *arguments]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["tiny-nothing", "nobody/nothing", "no/such/folder"])
def test_a_name_that_is_no_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", name, "--prompt", "x"]) == 3
    err = capsys.readouterr().err
    assert "no such folder" in err or "is neither a folder nor a hub id" in err
    assert name in err
