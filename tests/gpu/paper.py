"""A cell of the paper's tables on a stand-in, made small: what it is compiled to and what that loses."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

import qspec
from qspec import resources, runtime
from qspec.compiler import CompileOptions
from qspec.data import DataSources
from qspec.evaluate.forward import batches, hidden_at_masks, log_probabilities
from qspec.evaluate.nelbo import masked_rows, windows
from qspec.language.spec import NamedText
from qspec.models.decoder import Decoder

CELLS = (
    *(f"{method}_w{bits}a16" for method in ("gptq", "awq") for bits in (3, 4)),
    *(f"{method}_w{bits}a{bits}" for method in ("smoothquant", "quarot", "duquant") for bits in (4, 8)),
)
MODELS = ("tiny-llada", "tiny-dream")
RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
CALIBRATED_ON = 16  # rows of 256 tokens
MEASURED_ON = 16  # samples of 256 tokens, four masks of each


def compiled(cell: str, model: str, folder: Path, device: str, seed: int = 0) -> Path:
    """The artifact's folder. seed: of the calibration rows."""
    source = RECIPES / f"{cell}.qs"
    lines = [
        "qspec 1",
        f'extends "{Path(os.path.relpath(source, folder)).as_posix()}"',
        f"recipe {cell} {{\n}}",
        f"calibrate {{\n  samples {CALIBRATED_ON}\n}}",
    ]
    path = folder / f"{cell}-{device}-{seed}.qs"
    path.write_text("\n".join(lines) + "\n")
    settings = {"seed": str(seed)}
    return qspec.compile(
        path, model, folder / path.stem, device, settings=settings, options=CompileOptions(evaluate=False)
    ).path


def losses(folder: Path, model: str, device: str) -> Tensor:
    """NELBO of the artifact less that of the unquantized model, in nats a token, float64 [samples]."""
    plain = resources.standin(model.removeprefix("tiny-"))
    quantized, tokenizer = qspec.load(folder, device=device)
    text = DataSources(plain, folder).heldout(NamedText("wikitext2"))
    rows = masked_rows(windows(text, tokenizer, quantized.shape.vocab, MEASURED_ON, 256), 4, seed=0)
    return nelbos(quantized, rows) - nelbos(runtime.load(plain, device)[0], rows)


@torch.no_grad()
def nelbos(model: Decoder, rows: list) -> Tensor:  # type: ignore[type-arg]
    total = torch.zeros(len(rows), dtype=torch.float64)
    for batch in batches(rows, model.shape, model.device):
        log_p = log_probabilities(model, hidden_at_masks(model, batch))
        true = log_p.gather(1, batch.targets[batch.masked].unsqueeze(1))[:, 0]
        index = torch.tensor(batch.rows)[batch.row_of.cpu()]
        total.index_add_(0, index, -true.double().cpu())
    masked = torch.tensor([int(row.masked.sum()) for row in rows])
    return (total / masked).reshape(-1, 4).mean(1)
