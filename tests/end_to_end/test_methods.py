"""Methods from recipe to artifact on the small checkpoint: quantized as named, in the same bytes after a failure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

import qspec
from qspec import quantize, workspace
from qspec.errors import MachineError
from tests.end_to_end.conftest import NO_REPORT, Mini, quantized_linears
from tests.end_to_end.test_mini import files

W4A16 = "weights int4 per group 32 asymmetric\n  activations none"
W4A4 = "weights int4 per channel symmetric\n  activations int4 per token symmetric clip 0.9"
METHODS = {
    "awq": (W4A16, ("awq(tokens = 64)", "rtn()")),
    "awq_clip_gptq": (W4A16, ("awq(clip = false)", "clip()", "gptq()")),
    "smooth_gptaq": (W4A4, ("smooth(alpha = search)", "gptaq()")),
}


def recipe_of(mini: Mini, name: str) -> Path:
    """The small recipe with one scheme for everything and other passes, beside it."""
    formats, passes = METHODS[name]
    head = mini.recipe.read_text().split("scheme w4a4")[0]
    applied = "\n".join(f"apply {text} on blocks[*].*" for text in passes)
    path = mini.recipe.with_name(f"{name}.qs")
    path.write_text(f"{head}scheme s {{\n  {formats}\n}}\n\nlayers blocks[*].* use s\n\n{applied}\n")
    return path


@pytest.mark.parametrize("name", METHODS)
def test_compiles_and_goes_on_in_the_same_bytes(
    name: str, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the second block is written; the next run takes the first as it is."""
    recipe = recipe_of(mini, name)
    whole = qspec.compile(recipe, out=tmp_path / "whole", device="cpu", options=NO_REPORT)
    model, _ = qspec.load(whole.path, device="cpu")
    assert len(quantized_linears(model)) == 14

    writes, save = iter(range(100)), workspace.save_file

    def fail_at_the_second_block(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if next(writes) == 3:  # behind the embedding, the head and the first block
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, metadata=metadata)

    compiled: list[int] = []
    compile_block = quantize.compile_block

    def counted(plan: object, index: int, *more: object) -> object:
        compiled.append(index)
        return compile_block(plan, index, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(workspace, "save_file", fail_at_the_second_block)
    monkeypatch.setattr(quantize, "compile_block", counted)
    with pytest.raises(MachineError, match="the disk is full"):
        qspec.compile(recipe, out=tmp_path / "again", device="cpu", options=NO_REPORT)
    again = qspec.compile(recipe, out=tmp_path / "again", device="cpu", options=NO_REPORT)
    assert compiled == [0, 1, 1]
    assert files(again.path) == files(whole.path)
