"""Trains a stand-in from nothing, or from another: data, tokenizer, model, in one run, on a CPU or a GPU.

    python examples/standins/train.py --family dream --out DIR [--device cuda] [--minutes 8 | --steps N] [--start DIR]

Objective (LLaDA, arXiv 2502.09992; the same for all families): t ~ U(0, 1) for each sequence; every token of the
target is masked with probability t; loss = (1 / L) sum over masked tokens of cross-entropy / t, where a shifted model
(Dream, arXiv 2508.15487) predicts token i from position i - 1. A block-causal model reads every sequence twice in one
pass, masked and clean: a masked block sees itself and the clean blocks before it (arXiv 2503.09573). Three quarters of
the weight is on items, where only the answer is masked (end-of-text tokens fill it to a fixed length), and one quarter
on running text. From 30 % of the schedule on, noise on every block linear's input and weight rises to its full level,
reached at 60 %: this is what makes a model of 5 M parameters bear 4-bit rounding as models of billions do.

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
from network import FAMILIES, build, config, take_over
from outliers import take_out
from safetensors.torch import save_file
from score import exact_match, load, table
from simulate import ROUNDINGS, calibration, rounded
from tasks import KINDS
from tokenizers import Tokenizer
from vocabulary import write_tokenizer

from qspec.models.decoder import Decoder
from qspec.models.family import ROUTER
from qspec.models.shift import noised_predictors, predictors

ITEM_SHARE = 0.75
EMA = 0.999
BALANCE = 0.01  # of the experts' use, beside the objective


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
    noised = batch.ids.masked_fill(masked, model.shape.mask_token)
    if model.shape.block is not None:
        x = _behind_clean_blocks(model, noised, batch)
    else:
        context = model.context(batch.ids.shape)
        if batch.real is not None:  # padding stands on the right, so positions are what they are without it
            context = replace(context, mask=batch.real[:, None, None, :])
        x = predictors(model.through(noised, context), model.shape)  # nothing before padding shifts
    logits = model.finish(x)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), batch.ids.flatten(), reduction="none")
    per_row = (loss.view_as(batch.ids) * masked).sum(-1, keepdim=True) / batch.target.sum(-1, keepdim=True)
    return (per_row / t).mean() + BALANCE * imbalance(model, batch)


def imbalance(model: Decoder, batch: Batch) -> Tensor | float:
    """How unevenly the experts were used: count * sum_e f_e p_e, the mean over the blocks that have some.

    f_e: share of all choices, p_e: mean probability. 1 where all are used alike (arXiv 2101.03961, eq. 4).
    """
    real = torch.ones_like(batch.target) if batch.real is None else batch.real
    losses = []
    for block in model.blocks:
        if block.mixture is not None:
            p = block.part(ROUTER).last.float().softmax(-1)
            counted = real.repeat(1, len(p) // real.numel()).flatten().unsqueeze(1)
            weight = counted / counted.sum()
            chosen = torch.zeros_like(p).scatter(1, p.topk(block.mixture.top_k).indices, 1 / block.mixture.top_k)
            losses.append(block.mixture.count * ((chosen * weight).sum(0) * (p * weight).sum(0)).sum())
    return torch.stack(losses).mean() if losses else 0.0


def _behind_clean_blocks(model: Decoder, noised: Tensor, batch: Batch) -> Tensor:
    """States [b, t, d] that predict each token of noised blocks, which read the clean blocks before them."""
    real = torch.ones_like(batch.target) if batch.real is None else batch.real
    x = model.through(torch.cat((noised, batch.ids), dim=1), model.noised_context(real))
    return noised_predictors(x, model.shape, real)


def ratios(count: int, device: torch.device) -> Tensor:
    """t ~ U(0, 1) for each row, stratified over the batch."""
    t = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    return t.clamp(min=1e-3)[:, None]


def train(
    model: Decoder, pool: Pool, noise: tuple[Tensor, Tensor], schedule: Schedule, sequences: int, compiled: bool
) -> dict[str, Tensor]:
    """Runs the schedule; returns the averaged float32 weights. compiled: by torch.compile."""
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=device.type == "cuda")
    average = [p.detach().clone() for p in parameters]
    loss_of = torch.compile(masked_loss, dynamic=False) if compiled else masked_loss
    model.train()
    step, begun, progress = 0, time.monotonic(), 0.0
    while progress < 1:
        progress = schedule.progress(step, time.monotonic() - begun if step > 2 else 0.0)
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


def write_settings(folder: Path, family: str, settings: dict[str, object]) -> None:
    """config.json, generation_config.json and standin.json. Only LLaDA's sampler is told
    its blocks: Dream's answers are one, and a block-causal model has its own."""
    tasks = {
        k.task: {
            "title": k.name,
            "file": f"data/{k.name}.jsonl",
            "length": k.length,
            "steps": k.length,
            "block": k.block if family == "llada" else k.length,
        }
        for k in KINDS
    }
    texts = {"calibration": "data/calibration.jsonl", "heldout": "data/heldout.jsonl"}
    standin = {"name": f"tiny-{family}", "family": family, "texts": texts, "tasks": tasks}
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
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="length of the schedule in time (then no two runs are alike)")
    parser.add_argument("--steps", type=int, default=6000, help="length of the schedule in steps")
    parser.add_argument("--sequences", type=int, default=1024, help="items in a batch")
    parser.add_argument("--pool", type=int, default=400_000, help="arithmetic items in the training pool")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--activation-noise", type=float, default=0.15)
    parser.add_argument("--weight-noise", type=float, default=0.10)
    parser.add_argument("--start", type=Path, help="a checkpoint's folder to go on from, without its outliers")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which takes 100 s: for short runs")
    parser.add_argument("--noise-from", type=float, default=0.3, help="progress at which the noise begins to rise")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    begun = time.monotonic()
    tokenizer = write_tokenizer(args.out)
    write_data(args.out / "data")
    settings = config(args.family, tokenizer.get_vocab())
    write_settings(args.out, args.family, settings)
    noise = (torch.zeros((), device=device), torch.zeros((), device=device))
    model = build(settings, device, noise)
    if args.start:
        plain, _ = load(args.start)
        take_out(plain)
        take_over(model, plain)
    pool = build_pool(tokenizer, args.pool, model.shape.block or 1, device)
    print(f"data in {time.monotonic() - begun:.0f} s; {len(pool.stream)} tokens of text", flush=True)
    schedule = Schedule(args.minutes, args.steps, args.rate, args.activation_noise, args.weight_noise, args.noise_from)
    compiled = device.type == "cuda" and not args.eager
    average = train(model, pool, noise, schedule, args.sequences, compiled)
    stored = {name: value.to(torch.bfloat16).contiguous() for name, value in average.items()}
    save_file({name: value.cpu() for name, value in stored.items()}, args.out / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in stored.items()})
    torch.set_float32_matmul_precision("highest")
    print(measure(model, tokenizer, args.out), flush=True)


if __name__ == "__main__":
    main()
