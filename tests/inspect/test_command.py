"""`qspec inspect`: what it prints and writes, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from qspec.cli import main
from qspec.inspect import Inspection

SHORT = ("--samples", "2", "--length", "64", "--ratios", "0,0.5", "--device", "cpu", "--quiet")


def test_tiny_llada_has_the_outliers_that_were_put_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Normal ones at every input but the down-projection's, massive ones there (qspec/standins/tiny-llada)."""
    assert main(["inspect", "tiny-llada", "--out", str(tmp_path), *SHORT]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Massive outliers at the input of down in 6 of 6 blocks. Normal ones at 18 of 24 inputs."
    assert sum(line.startswith("down ") and " massive " in line for line in out) == 2
    assert sum(line.startswith(("q, k, v ", "o ", "gate, up ")) and " normal " in line for line in out) == 6
    assert out[-1] == f"inspection: {tmp_path / 'inspect.html'}"
    assert not any("\x1b" in line for line in out)
    assert {p.name for p in tmp_path.iterdir()} == {"inspect.html", "inspect.json", "inspect.md", "figures"}
    data = TypeAdapter(Inspection).validate_json((tmp_path / "inspect.json").read_text())
    assert (data.subject.id, data.subject.standin, data.subject.stage) == ("tiny-llada", True, "before")
    assert data.input.text == "tiny-llada's own calibration text"
    for row in data.at():  # the twins: two channels hold the same value
        first, second = row.found.top[:2]
        if row.input != "mlp.gated" or row.block >= 2:
            assert first.peak == pytest.approx(second.peak, rel=1e-3)


def test_json_and_the_default_folder(
    plain: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(plain), "--text", str(text), "--json", *SHORT]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "build/inspect/plain/inspect.json").read_text())
    assert content["subject"]["id"] == "plain"
    assert str(plain.parent) not in json.dumps(content)
    assert content["input"]["ratios"] == [0.0, 0.5]


def test_jsonl_text(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "' + "The river of Biznia. " * 60 + '"}\n')
    assert main(["inspect", str(plain), "--text", str(path), "--out", str(tmp_path / "out"), *SHORT]) == 0
    capsys.readouterr()
    path.write_text('{"words": "x"}\n')
    assert main(["inspect", str(plain), "--text", str(path), "--out", str(tmp_path / "out"), *SHORT]) == 3
    assert 'no field "text"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratios", "0,1.5"], "a mask ratio lies between 0 and 1; 1.5 does not"),
        (["--ratios", "-0.1"], "a mask ratio lies between 0 and 1; -0.1 does not"),
        (["--ratios", "nan"], "a mask ratio lies between 0 and 1; nan does not"),
        (["--ratios", "0,half"], "--ratios takes numbers with commas between them, not '0,half'"),
        (["--ratios", ""], "--ratios takes numbers"),
        (["--ratios", "0.5,0.50"], "names a ratio twice"),
        (["--samples", "0"], "--samples must be 1 or more, not 0"),
        (["--length", "0"], "--length must be 1 or more, not 0"),
        (["--seed", "-1"], "--seed must be 0 or more, not -1"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_usage(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "tiny-llada", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody/nothing"], "there is no checkpoint 'nobody/nothing' on this machine"),
        (["no/such/folder"], "neither a folder nor a hub id"),
        (["tiny-nothing"], "neither a folder nor a hub id"),
        (["tiny-llada", "--text", "gone.txt"], "there is no text 'gone.txt'"),
        (["tiny-llada", "--length", "300"], "length 300 exceeds the model's 256 tokens"),
    ],
)
def test_inputs_that_are_not_there(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["inspect", *arguments, "--quiet", "--device", "cpu"]) == 3
    error = capsys.readouterr().err
    assert message in error
    assert "next:" in error
    assert "Traceback" not in error


def test_a_real_checkpoint_without_data_says_what_to_do(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("QSPEC_DATA", raising=False)
    assert main(["inspect", str(plain), *SHORT]) == 3
    error = capsys.readouterr().err
    assert "QSPEC_DATA" in error
    assert "file" in error


def test_a_folder_that_cannot_be_written(
    plain: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["inspect", str(plain), "--text", str(text), "--out", str(tmp_path / "file"), *SHORT]) == 3
    assert "cannot write here" in capsys.readouterr().err
