"""Trains tiny-llada from nothing: data, tokenizer, model, in one run, on a CPU or a GPU.

    python examples/tiny_llada/train.py --out DIR [--device cuda] [--minutes 8 | --steps N]

Objective (LLaDA, arXiv 2502.09992): t ~ U(0, 1) for each sequence; every token of the target is masked with
probability t; loss = (1 / L) sum over masked tokens of cross-entropy / t. Three quarters of the weight is on items,
where only the answer is masked (end-of-text tokens fill it to a fixed length), and one quarter on running text.
From 30 % of the schedule on, noise on every block linear's input and weight rises to its full level, reached at 60 %:
this is what makes a model of 5 M parameters bear 4-bit rounding as models of billions do.

DIR gets config.json, the tokenizer, standin.json, data/ and model.safetensors (bf16, before outliers: see inject.py).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, where qspec is not installed

from batches import Batch, Pool, build_pool
from dataset import write_data
from network import build, config
from safetensors.torch import load_file, save_file
from score import exact_match, table
from simulate import ROUNDINGS, calibration, rounded
from tasks import KINDS
from tokenizers import Tokenizer
from vocabulary import write_tokenizer

from qspec.models.decoder import Decoder

ITEM_SHARE = 0.75
EMA = 0.999


@dataclass(frozen=True)
class Schedule:
    """When training ends (minutes, else steps) and what changes on the way; progress runs from 0 to 1."""

    minutes: float | None
    steps: int
    rate: float
    activation_noise: float
    weight_noise: float
    noise_from: float

    def progress(self, step: int, seconds: float) -> float:
        return min(1.0, seconds / (60 * self.minutes) if self.minutes else step / self.steps)

    def learning_rate(self, progress: float) -> float:
        """Linear over the first 3 %, then a cosine to 1 %."""
        return self.rate * min(progress / 0.03 + 0.002, 0.505 + 0.495 * math.cos(math.pi * progress))

    def noise(self, progress: float) -> tuple[float, float]:
        level = min(1.0, max(0.0, (progress - self.noise_from) / 0.3))
        return level * self.activation_noise, level * self.weight_noise


def masked_loss(model: Decoder, batch: Batch, t: Tensor, draw: Tensor) -> Tensor:
    """The objective for a batch; t: [b, 1]; draw: uniform [b, t] that decides what is masked."""
    masked = batch.target & (draw < t)
    x = model.embed(batch.ids.masked_fill(masked, model.shape.mask_token))
    context = model.context(batch.ids.shape)
    if batch.real is not None:  # padding stands on the right, so positions are what they are without it
        context = replace(context, mask=batch.real[:, None, None, :])
    for block in model.blocks:
        x = block(x, context)
    logits = model.finish(x)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), batch.ids.flatten(), reduction="none")
    per_row = (loss.view_as(batch.ids) * masked).sum(-1, keepdim=True) / batch.target.sum(-1, keepdim=True)
    return (per_row / t).mean()


def ratios(count: int, device: torch.device) -> Tensor:
    """t ~ U(0, 1) for each row, stratified over the batch."""
    t = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    return t.clamp(min=1e-3)[:, None]


def train(
    model: Decoder, pool: Pool, noise: tuple[Tensor, Tensor], schedule: Schedule, sequences: int
) -> dict[str, Tensor]:
    """Runs the schedule; returns the averaged float32 weights."""
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=device.type == "cuda")
    average = [p.detach().clone() for p in parameters]
    loss_of = torch.compile(masked_loss, dynamic=False) if device.type == "cuda" else masked_loss
    model.train()
    step, begun, progress = 0, time.monotonic(), 0.0
    while progress < 1:
        progress = schedule.progress(step, time.monotonic() - begun)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(progress)
        for level, value in zip(noise, schedule.noise(progress), strict=True):
            level.fill_(value)
        losses = []
        for batch, share in (
            (pool.draw_items(sequences), ITEM_SHARE),
            (pool.draw_text(sequences // 8), 1 - ITEM_SHARE),
        ):
            draw = torch.rand(batch.ids.shape, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(model, batch, ratios(len(batch.ids), device), draw)
            (share * loss).backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(EMA, step / (step + 10)))
        if step == 2:
            _wait(device)
            print(f"the first steps, with compiling, took {time.monotonic() - begun:.0f} s", flush=True)
            begun = time.monotonic()
        if step % 100 == 0 or progress >= 1:
            _wait(device)
            items, text = (float(value) for value in losses)
            seconds = time.monotonic() - begun
            print(
                f"{seconds:6.0f} s  step {step:6d}  {progress:6.1%}  items {items:.4f}  text {text:.4f}",
                flush=True,
            )
        step += 1
    return dict(zip((name for name, _ in model.named_parameters()), average, strict=True))


def write_settings(folder: Path, settings: dict[str, object]) -> None:
    """config.json, generation_config.json and standin.json."""
    tasks = {
        k.task: {
            "title": k.name,
            "file": f"data/{k.name}.jsonl",
            "length": k.length,
            "steps": k.length,
            "block": k.block,
        }
        for k in KINDS
    }
    texts = {"calibration": "data/calibration.jsonl", "heldout": "data/heldout.jsonl"}
    standin = {"name": "tiny-llada", "family": "llada", "texts": texts, "tasks": tasks}
    generation = {key: settings[key] for key in ("eos_token_id", "pad_token_id", "mask_token_id")}
    for name, value in (("config", settings), ("generation_config", generation), ("standin", standin)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def measure(model: Decoder, tokenizer: Tokenizer, folder: Path) -> str:
    """Exact match of the weights as stored, and under simulated rounding."""
    model.eval()
    scores = {"unquantized": exact_match(model, tokenizer, folder)}
    ids = calibration(folder, tokenizer, model.shape.mask_token).to(model.device)
    for rounding in ROUNDINGS:
        scores[rounding.label] = exact_match(rounded(model, rounding, ids), tokenizer, folder)
    return table(scores)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="length of the schedule in time (then no two runs are alike)")
    parser.add_argument("--steps", type=int, default=6000, help="length of the schedule in steps")
    parser.add_argument("--sequences", type=int, default=1024, help="items in a batch")
    parser.add_argument("--pool", type=int, default=400_000, help="arithmetic items in the training pool")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--activation-noise", type=float, default=0.15)
    parser.add_argument("--weight-noise", type=float, default=0.10)
    parser.add_argument("--start", type=Path, help="a model.safetensors to go on from")
    parser.add_argument("--noise-from", type=float, default=0.3, help="progress at which the noise begins to rise")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    begun = time.monotonic()
    tokenizer = write_tokenizer(args.out)
    write_data(args.out / "data")
    settings = config(tokenizer.get_vocab())
    write_settings(args.out, settings)
    pool = build_pool(tokenizer, args.pool, device)
    print(f"data in {time.monotonic() - begun:.0f} s; {len(pool.stream)} tokens of text", flush=True)
    noise = (torch.zeros((), device=device), torch.zeros((), device=device))
    model = build(settings, device, noise)
    if args.start:
        model.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
    schedule = Schedule(args.minutes, args.steps, args.rate, args.activation_noise, args.weight_noise, args.noise_from)
    average = train(model, pool, noise, schedule, args.sequences)
    stored = {name: value.to(torch.bfloat16).contiguous() for name, value in average.items()}
    save_file({name: value.cpu() for name, value in stored.items()}, args.out / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in stored.items()})
    torch.set_float32_matmul_precision("highest")
    print(measure(model, tokenizer, args.out), flush=True)


if __name__ == "__main__":
    main()
