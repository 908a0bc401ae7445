"""What loading a model takes: how it is shown, on which artifact, and what a process says that loads one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qspec.artifact import verify
from qspec.bench import loading
from qspec.bench.loading_data import Loaded, Loading, markdown, read
from qspec.bench.step_data import MODELS, PUBLISHED
from qspec.cli import main
from qspec.errors import MachineError
from qspec.kernels.linear import QuantLinear
from qspec.models.known import known_models
from qspec.models.llada import LLADA
from qspec.progress import Quiet
from qspec.runtime import load

ONE = Loaded("llada, duquant_w4a4", 5_580_000_000, 0.7, 1.2, 1.5, 2.25, 8.125, 1.4)
RUN = Loading({"gpu": "A GPU", "torch": "2", "triton": "3"}, 4, (ONE,))
SMALL = {
    "d_model": 128, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 256, "vocab_size": 640,
    "embedding_size": 640,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of LLaDA's layout, as large as a test may be."""
    name = PUBLISHED[LLADA]
    config = {**known_models()[name], **SMALL, "mask_token_id": 2, "eos_token_id": 0, "pad_token_id": 1}
    monkeypatch.setattr(loading, "known_models", lambda: {name: config})
    monkeypatch.setitem(MODELS, "llada", (LLADA, LLADA.shape(config)))


def test_a_run_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "| llada, duquant_w4a4 | 5.58 | 0.70 | 1.84 | 1.50 | 1.20 | 2.25 | 8.12 | 1.40 |"
    assert row in markdown(RUN).splitlines()
    stored = tmp_path / "load.json"
    stored.write_text(json.dumps(RUN.as_json()))
    assert read([stored]) == RUN
    assert main(["bench", "--load", "--results", str(stored), "--out", str(tmp_path / "out")]) == 0
    assert row in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "load.json").read_text()) == json.loads(stored.read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--load", "--rows"], "--load and --rows are two runs"),
        (["--load", "--shape", "12288x4096"], "--load takes an artifact"),
        (["--load", "--shape", "llada", "--shape", "dream"], "--load takes an artifact"),
        (["--load", "--tokens", "1"], "--load takes an artifact"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_an_artifact_of_random_codes_is_timed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By three processes with one cache of kernels: the first one's first token is the cold one, and the last one has
    imported what loading needs."""
    caches = []

    def process(command: Sequence[str], **given: Any) -> SimpleNamespace:
        *_, name, last = command
        folder, imported = (name, (last,)) if last == loading.TOKENIZERS else (last, ())
        verify(Path(folder))
        loading.print_loaded(folder, *imported)
        said = json.loads(capsys.readouterr().out)
        assert all(0 < said[part] < 60 for part in ("load", "first", "imports"))
        model, _ = load(folder)
        assert sum(isinstance(module, QuantLinear) for module in model.modules()) >= 2 * 4
        caches.append(given["env"]["TRITON_CACHE_DIR"])
        number = len(caches)
        assert bool(imported) == (number == 3)
        said = {"load": number, "first": 10 / number, "imports": 0.5 * number}
        return SimpleNamespace(returncode=0, stdout=json.dumps(said))

    monkeypatch.setattr("qspec.bench.loading.subprocess.run", process)
    monkeypatch.setattr(loading, "environment", dict)
    (cell,) = loading.run_loading(None, "llada", tmp_path / "out", Quiet()).cells
    assert (cell.model, cell.imports, cell.load, cell.fresh) == ("llada, duquant_w4a4", 1.5, 3, 2)
    assert (cell.cold, cell.warm) == (10, 5)
    assert cell.bytes > 640 * 128 * 2 * 2  # embedding and head
    assert len(caches) == 3
    assert len(set(caches)) == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_process_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LOADED", "raise SystemExit(3)")
    with pytest.raises(MachineError, match="ended with 3"):
        loading._process(str(tmp_path), str(tmp_path / "none"))


def test_a_plain_read_takes_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file longer than the buffer, and one that is empty."""
    monkeypatch.setattr(loading, "BUFFER", 8)
    files = [tmp_path / "long", tmp_path / "empty"]
    files[0].write_bytes(bytes(20))
    files[1].touch()
    assert loading.plain_read(files)[0] == 20
