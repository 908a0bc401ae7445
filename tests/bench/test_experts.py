"""What follows from measured grouped GEMMs and how it is shown. Times need a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.bench.experts import Ours
from qspec.bench.experts_data import BASE, ExpertsCell, ExpertsRun, Mixture, markdown, read
from qspec.bench.experts_peers import Routed, Stacks, layer_peers_of, random_stacks
from qspec.cli import main
from qspec.errors import MachineError

PEERS = {BASE: 300.0, "humming W4A8": 150.0, "humming W8A8": 140.0}
LAYERS = {BASE: 500.0, "vLLM W8A8": 360.0, "vLLM Marlin W4A8": 250.0}
ONE = ExpertsCell("w8a8", "llada2-mini", 4096, 80.0, 20.0, 125.0, 200.0, 400_000_000, PEERS, LAYERS)
RUN = ExpertsRun(
    {"gpu": "A GPU", "torch": "2", "triton": "3"},
    (ONE, replace(ONE, tokens=32, others={}, layers={BASE: 300.0, "vLLM W8A8": 180.0})),
    {"one": "no"},
)


def test_operations_are_those_of_the_pairs_of_token_and_expert() -> None:
    assert ONE.operations == 2 * (4096 * 8) * (2 * 512 * 2048 + 2048 * 512)


def test_ratios_are_over_both_products_with_their_inputs() -> None:
    assert ONE.over(BASE) == 2.4
    assert ONE.best_peer == "humming W8A8"
    assert RUN.cells[1].best_peer is None


def test_ratios_of_layers_are_over_everything() -> None:
    assert ONE.over_layer(BASE) == 2.5
    assert ONE.best_layer_peer == "vLLM Marlin W4A8"
    assert ONE.over_layer("vLLM Marlin W4A8") == 1.25
    assert RUN.cells[1].over_layer("vLLM W8A8") == 0.9
    assert replace(ONE, layers={BASE: 500.0}).best_layer_peer is None


def test_a_run_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = (
        "| w8a8 | 4096 | 80.0 | 20.0 | 125.0 | 4000 | 2062 | 2.40 | 1.12 | 200.0 | 500.0 | 2.50 | 1.25 "
        "| 300.0 | 150.0 | 140.0 | 360.0 | 250.0 |"
    )
    other = "| w8a8 | 32 | 80.0 | 20.0 | 125.0 | 4000 | 16 |  |  | 200.0 | 300.0 | 1.50 | 0.90 |  |  |  | 180.0 |  |"
    stored, document = tmp_path / "experts.json", tmp_path / "page.md"
    stored.write_text(json.dumps(RUN.as_json()))
    assert read([stored]) == RUN
    assert "one did not run: no" in markdown(RUN)
    assert "vLLM" in markdown(RUN)
    assert "vLLM" not in markdown(replace(RUN, cells=(replace(ONE, layers={BASE: 500.0}),)))
    document.write_text("<!-- experts -->\nstale\n<!-- /experts -->\n")
    out = tmp_path / "out"
    assert main(["bench", "--experts", "--results", str(stored), "--document", str(document), "--out", str(out)]) == 0
    assert row in capsys.readouterr().out
    assert f"{row}\n{other}\n" in document.read_text()
    assert "stale" not in document.read_text()
    assert json.loads((out / "experts.json").read_text())["cells"][0]["layer"] == 200.0


def test_what_was_measured_stays_where_a_run_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[ExpertsRun]:
        yield RUN
        raise MachineError("the GPU is lost")

    monkeypatch.setattr("qspec.bench.experts.run_experts", broken)
    assert main(["bench", "--experts", "--quiet", "--out", str(tmp_path)]) == 3
    assert read([tmp_path / "experts.json"]) == RUN
    assert (tmp_path / "experts.md").read_text() == markdown(RUN)


@pytest.mark.parametrize("arguments", [["--shape", "llada"], ["--compile"], ["--rows"]])
def test_options_that_do_not_belong_together_are_usage_errors(arguments: list[str]) -> None:
    assert main(["bench", "--experts", *arguments]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--experts"]) == 3
    assert "need a CUDA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_experts_are_timed(tmp_path: Path) -> None:
    arguments = ["--experts", "--shape", "llada2-mini", "--format", "w4a8", "--tokens", "32", "--no-peers", "--quiet"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    (cell,) = read([tmp_path / "experts.json"]).cells
    assert cell.layer > cell.gate_up + cell.down > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.filterwarnings("ignore")  # of packages that are imported
@pytest.mark.parametrize(("fmt", "most"), [("w8a8", 0.04), ("w4a8", 0.04), ("w8a8_fp8", 0.08), ("w4a16_g128", 0.02)])
def test_layers_compute_the_same(fmt: str, most: float) -> None:
    """Ours and those of packages that are installed, from the same codes: what is left is of activations' codes."""
    size = Mixture(8, 512, 256, 2)
    stacks = random_stacks(fmt, size)
    layers = {"qspec": Ours(fmt, size, stacks).layer}
    layers |= {name: make() for name, make in layer_peers_of(fmt, size, stacks).items()}
    for tokens in (1, 16, 200):
        one = Routed(size, tokens)
        expected = layer_of(size, stacks, one)
        off = {name: float((layer(one) - expected).norm() / expected.norm()) for name, layer in layers.items()}
        assert max(off.values()) < most, off


def layer_of(size: Mixture, stacks: Stacks, one: Routed) -> Tensor:
    """In float64, of what the codes stand for."""
    gate_up, down = (stack.dequantize().double().view(size.experts, -1, stack.codes.shape[1]) for stack in stacks)
    gate, up = torch.einsum("ecd,td->tec", gate_up, one.x.double()).chunk(2, dim=2)
    y = torch.einsum("edc,tec->ted", down, torch.nn.functional.silu(gate) * up)
    picked = y.gather(1, one.chosen[:, :, None].expand(-1, -1, size.width))
    return (picked * one.weights[:, :, None]).sum(1)
