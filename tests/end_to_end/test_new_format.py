"""A format is a value: `uint2`, which does not ship, from recipe to artifact by one entry of the table of formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qspec
from qspec.formats import NUMBER_FORMATS, NumberFormat
from tests.end_to_end.conftest import NO_REPORT, RECIPE, Mini


def test_an_entry_of_the_table_is_a_format(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NUMBER_FORMATS, "uint2", NumberFormat("uint2", "uint", 2, 0, 3, 3))
    head, rest = RECIPE.format(model=mini.model).split("scheme w4a4", 1)
    scheme = "scheme w2 {\n  weights     uint2 per group 16 asymmetric\n  activations none\n}\n\n"
    rules = "layers blocks[*].* use w2\n\napply rtn() on blocks[*].*\n"
    path = mini.recipe.parent / "uint2.qs"
    path.write_text(f"{head}{scheme}{rules}\nevaluate" + rest.split("\nevaluate", 1)[1])
    made = qspec.compile(path, out=tmp_path / "uint2", device="cpu", options=NO_REPORT)
    record = made.plan.module("blocks[0].attention.o")
    assert record.kernels is not None
    name = record.kernels.gemm.name
    assert name == "gemm_w2g16_asym_a16"
    assert list((made.path / "kernels").glob(f"{name}_*.py"))

    weight = whole(mini.model)[f"{record.entry.module}.weight"].float().reshape(-1, 16)
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    model, _ = qspec.load(made.path, device="cpu")
    linear = model.blocks[0].part("attention.o")
    rounded = linear(torch.eye(64)).T.reshape(-1, 16)
    assert len(rounded.unique(dim=0)[0].unique()) <= 4
    assert (rounded - weight).abs().le(0.51 * (high - low) / 3 + 1e-3).all()


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
