"""What TF32 costs a compile, on a block of tiny-llada with its massive and normal outliers; emulated on the CPU.

python -m pytest -m slow tests/passes/test_tf32.py -s

prints the table of docs/measurements.md. A GPU's stream is bfloat16, so that is what each precision is measured on; the
error of a block is that of what attention and MLP add, behind rounded weights and activations, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from qspec.calibrate.stream import CalibrationBatch, Stream
from qspec.compiler import CompileOptions, Inputs, find_inputs, read_recipe
from qspec.models.decoder import Decoder
from qspec.passes import block as passes_block
from qspec.passes import statistics
from qspec.passes.block import Block
from qspec.passes.outer_layers import OuterLayers
from qspec.precision import exact_products
from qspec.progress import Quiet
from qspec.quantize import rewrite_block
from qspec.runtime import fill_block
from tests.tf32 import EmulatedTf32, cut

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
BLOCKS = (0, 5)  # of six
CELLS = {  # name -> recipe, and what of it is another
    "gptq_w3a16": ("gptq_w3a16", "", ""),
    "gptq_w3a16, weighed by certainty": ("gptq_w3a16", "layers", "calibrate {\n  weigh certainty\n}\n\nlayers"),
    "awq_w3a16": ("awq_w3a16", "", ""),
    "smoothquant_w4a4": ("smoothquant_w4a4", "", ""),
    "smoothquant_w4a4, alpha searched": ("smoothquant_w4a4", "alpha = 0.5)", "alpha = search)"),
    "duquant_w4a4": ("duquant_w4a4", "", ""),
    "quarot_w4a4": ("quarot_w4a4", "", ""),
    "quarot_w4a4 by gptaq": ("quarot_w4a4", "gptq(damp = 0.01, order = activation)", "gptaq()"),
}


def inputs_of(cell: str, folder: Path) -> Inputs:
    name, old, new = CELLS[cell]
    text = (RECIPES / f"{name}.qs").read_text().replace("base/", f"{RECIPES}/base/")
    assert old in text
    path = folder / "recipe.qs"
    path.write_text(text.replace(old, new, 1) if old else text)
    base = folder / "base"
    base.mkdir(exist_ok=True)
    (base / "setup.qs").write_text((RECIPES / "base" / "setup.qs").read_text().replace("samples 128", "samples 8"))
    path.write_text(path.read_text().replace(f"{RECIPES}/base/", "base/"))
    return find_inputs(
        read_recipe(path, {"masked": "1.0"}), "tiny-llada", "cpu", options=CompileOptions(evaluate=False)
    )


class Cell:
    """One recipe at some blocks of the unquantized model."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        checkpoint, plan = inputs.checkpoint, inputs.plan
        self.model = checkpoint.load(torch.device("cpu"), torch.float32)
        outer = OuterLayers(checkpoint.family, plan.shape, checkpoint.globals(), plan.spec.calibrate.seed)
        for use in plan.spec.passes:
            use.params.rewrite_outer_layers(outer)
        self.basis = outer.basis
        self.states = Stream.start(self.model, inputs.tokens, 16).batches

    def advance(self, index: int, to: int) -> None:
        with torch.no_grad(), exact_products():
            for block in self.model.blocks[index:to]:
                for batch in self.states:
                    batch.x = block(batch.x, batch.context)

    def stream(self, dtype: torch.dtype) -> Stream:
        basis = self.basis
        rows = [s.x if basis is None else s.x @ basis for s in self.states]
        return Stream(
            [
                CalibrationBatch(x.to(dtype), s.x.to(dtype), s.context, s.masked, s.weight)
                for x, s in zip(rows, self.states, strict=True)
            ],
            basis,
        )

    def block(self, index: int, dtype: torch.dtype) -> Block:
        """After the recipe's passes."""
        module = Decoder(self.inputs.checkpoint.family, self.inputs.plan.shape, device="meta").blocks[index]
        fill_block(module, dict(self.inputs.checkpoint.block(index)))
        return rewrite_block(self.inputs.plan, index, module, self.stream(dtype), Quiet())

    def error(self, block: Block, index: int) -> float:
        """Of what the rewritten block adds, relative to what the unquantized one does, on a float32 stream."""
        block.observed.stream = self.stream(torch.float32)
        plain = Block(index, self.inputs.plan.shape, self.fresh(index), self.schemes(index), Stream(self.states), 0)
        pairs = list(zip(block.observed.additions(), plain.observed.additions(), strict=True))
        return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5

    def fresh(self, index: int) -> torch.nn.Module:
        module = Decoder(self.inputs.checkpoint.family, self.inputs.plan.shape, device="meta").blocks[index]
        fill_block(module, {k: t.float() for k, t in self.inputs.checkpoint.block(index).items()})
        return module

    def schemes(self, index: int) -> dict[str, tuple[object, None]]:
        return {m.entry.role.part: (m.entry, None) for m in self.inputs.plan.block(index)}


@contextmanager
def hessians_in_tf32() -> Iterator[None]:
    def product(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return cut(x * weight[:, None]).T @ cut(y)

    with patch.object(passes_block, "weighted_product", product), patch.object(statistics, "weighted_product", product):
        yield


def differing(one: Block, other: Block) -> float:
    """Share of the codes that are others, in percent."""
    pairs = [(linear.quantized, other.linears[part].quantized) for part, linear in one.linears.items()]
    changed = [(a.codes != b.codes).float().mean() for a, b in pairs if a is not None and b is not None]
    return 100 * float(torch.stack(changed).mean())


@pytest.mark.parametrize("cell", CELLS)
def test_forward_passes_in_tf32_do_not_show_in_the_error(cell: str, tmp_path: Path) -> None:
    """Beside what a bfloat16 stream changes, against a float32 one: codes flip either way, and the error stays."""
    found = Cell(inputs_of(cell, tmp_path))
    for before, index in zip((0, *BLOCKS), BLOCKS, strict=False):
        found.advance(before, index)
        wide, whole = found.block(index, torch.float32), found.block(index, torch.bfloat16)
        with EmulatedTf32() as products:
            forward = found.block(index, torch.bfloat16)
            with hessians_in_tf32():
                everywhere = found.block(index, torch.bfloat16)
        assert products.cut > 0
        errors = [found.error(block, index) for block in (wide, whole, forward, everywhere)]
        flipped = [differing(block, whole) for block in (wide, forward, everywhere)]
        shares = " | ".join(f"{share:.2f} %" for share in flipped)
        print(f"\n| {cell} | {index} | {shares} | " + " | ".join(f"{100 * error:.2f}" for error in errors) + " |")
        assert abs(errors[2] / errors[1] - 1) < 0.02
