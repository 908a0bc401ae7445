"""Times of whole denoising steps on a CUDA GPU: a model as a recipe compiles it, beside the same in bf16.

The models are whole, with random weights: codes and scales are drawn in the shapes and types of the plan, and go in
through the same door as an artifact's (`runtime.install_block`). Gigabytes of weights pass the caches by and come from
memory. A step is what a sampler does between two commits: embedding, blocks, logits of BLOCK tokens, their likeliest
token and its probability. Where it computes fewer tokens than the canvas has, a dual cache keeps the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from qspec import numerics, passes
from qspec.bench.measure import captured, need_gpu, replay_time
from qspec.bench.step_data import MODELS, Measured, Step, Steps, parts_of
from qspec.catalog import INTEGER, kernels_for
from qspec.errors import MachineError
from qspec.kernels import attention
from qspec.kernels.packing import PackedLinear, layout
from qspec.language import load_recipe
from qspec.models.decoder import Decoder, Window
from qspec.models.registry import FAMILIES
from qspec.plan import ModulePlan, Plan, make_plan
from qspec.progress import Progress
from qspec.quantize import assembled
from qspec.report.environment import environment

BLOCK = 32  # tokens that a step may commit
CANVAS = 1024  # tokens of the canvas, if no step computes more
PROFILED = 3  # replays from which the parts are taken
DTYPE = torch.bfloat16
WEIGHT = 0.02  # standard deviation of random weights


def run_steps(
    recipes: Sequence[Path], models: Sequence[str], tokens: Sequence[int], compiled: Sequence[bool], progress: Progress
) -> Steps:
    """Times a step of every model under every recipe. Raises MachineError without a GPU, RecipeError."""
    need_gpu()
    found = []
    for model in models:
        family, shape = MODELS[model]
        plans = [make_plan(load_recipe(path, passes.available(), {}, FAMILIES).spec, family, shape) for path in recipes]
        progress.step(f"{model}  bf16")
        plain = attention.install(Decoder(family, shape, device="cuda", dtype=DTYPE).requires_grad_(False))
        base = _measure(plain, tokens, compiled)
        for plan in plans:
            progress.step(f"{model}  {plan.spec.name}")
            ours = _measure(quantized(plan, plain), tokens, compiled)
            for count, how in ours:
                where = (model, plan.spec.name, count, max(CANVAS, count), how)
                found.append(Step(*where, ours[count, how], base[count, how]))
    return Steps(environment(), tuple(found))


def quantized(plan: Plan, plain: Decoder) -> Decoder:
    """The model as the plan has it, with random codes; what lies outside the linears is `plain`'s."""
    return attention.install(assembled(plan, plain, partial(random_linear, device=plain.device)))


def random_linear(module: ModulePlan, device: torch.device) -> dict[str, Tensor]:
    """A linear's tensors as an artifact has them, by suffix."""
    entry = module.entry
    if module.kernels is None:
        tensors = {"weight": WEIGHT * torch.randn(entry.out_features, entry.in_features, device=device, dtype=DTYPE)}
        if entry.bias:
            tensors["bias"] = WEIGHT * torch.randn(entry.out_features, device=device)
        return tensors
    step = WEIGHT * math.sqrt(12) / 2**module.kernels.gemm.weight_bits  # codes are uniform
    wanted = layout(module.kernels, entry.out_features, entry.in_features, entry.bias)
    rounded: dict[str, Tensor] = {}
    if module.scheme is not None and module.kernels.gemm.number != INTEGER:  # not every pattern is a number
        weight = WEIGHT * torch.randn(entry.out_features, entry.in_features, device=device)
        quantized = numerics.quantize_weight(weight, module.scheme.weights)
        rounded = PackedLinear.from_quantized(quantized, kernels_for(module.scheme)).tensors()
    drawn = {suffix: kind for suffix, kind in wanted.items() if suffix not in rounded}
    return rounded | {suffix: _random(suffix, dtype, shape, step, device) for suffix, (dtype, shape) in drawn.items()}


def _random(suffix: str, dtype: torch.dtype, shape: tuple[int, ...], step: float, device: torch.device) -> Tensor:
    """A packed linear's tensor: `kernels.packing.layout` says which. step: between two codes."""
    if suffix == "scale":
        return torch.full(shape, step, device=device, dtype=dtype)
    if suffix == "bias":
        return WEIGHT * torch.randn(shape, device=device, dtype=dtype)
    if suffix == "transform.permutation":
        return torch.randperm(*shape, device=device, dtype=dtype)
    if suffix.startswith("transform.rotation"):
        orthogonal: Tensor = torch.linalg.qr(torch.randn(shape, device=device))[0]
        return orthogonal.to(dtype)
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape, device=device, dtype=dtype)


def _measure(decoder: Decoder, tokens: Sequence[int], compiled: Sequence[bool]) -> dict[tuple[int, bool], Measured]:
    """By number of tokens and whether the blocks are compiled."""
    found = {}
    for how in sorted(compiled):
        if how:
            torch.compiler.reset()  # one model's graphs at a time
            for block in decoder.blocks:
                block.compile(fullgraph=True, dynamic=False)
        for count in tokens:
            found[count, how] = _step_time(decoder, count)
    return found


@torch.no_grad()
def _step_time(decoder: Decoder, count: int) -> Measured:
    ids = torch.randint(decoder.shape.vocab, (1, max(CANVAS, count)), device="cuda")
    window = None
    if count < CANVAS:
        whole = decoder.window(*ids.shape)
        decoder.hidden(ids, None, whole)
        window = replace(whole, tokens=slice(CANVAS // 2, CANVAS // 2 + count))
    graph = captured([lambda: step(decoder, ids, window)])
    milliseconds = replay_time(graph) / 1e3
    return Measured(milliseconds, *_profile(graph))


def step(decoder: Decoder, ids: Tensor, window: Window | None) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of a block and their probabilities, [1, BLOCK] each."""
    logits = decoder.finish(decoder.hidden(ids, None, window)[:, :BLOCK]).float()
    probability, token = logits.softmax(-1).max(-1)
    return token, probability


def _profile(graph: torch.cuda.CUDAGraph) -> tuple[dict[str, float], int]:
    """Milliseconds of a graph's GPU kernels by kind, and how many there are."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        for _ in range(PROFILED):
            graph.replay()
        torch.cuda.synchronize()
    kernels = [event for event in trace.events() if event.device_type == DeviceType.CUDA]
    if not kernels:
        raise MachineError("the profiler sees no GPU kernels", hint="it needs CUPTI, which comes with torch")
    spans = [(event.name, event.time_range.start / 1e3, event.time_range.end / 1e3) for event in kernels]
    parts = {kind: time / PROFILED for kind, time in parts_of(spans).items()}
    return parts, len(kernels) // PROFILED
