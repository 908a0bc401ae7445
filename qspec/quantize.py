"""From plan and checkpoint to shards: every block is calibrated, rewritten, packed and written, one after another.

Peak memory is one block in float32, its copies, and the calibration stream, whatever the depth of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor

from qspec.calibrate.stream import Stream
from qspec.calibrate.tokens import CalibrationTokens
from qspec.errors import NumericsError, QspecError
from qspec.formats import TensorFormat
from qspec.kernels.packing import PackedLinear
from qspec.manifest import ModuleRecord, kernel_fields
from qspec.models.checkpoint import Checkpoint
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.family import ROUTER, ROUTER_BIAS, ROUTER_SCALE, DecoderShape, Family, Role
from qspec.models.operations import weight_and_bias
from qspec.models.samplers.common import HEAD_VALUES
from qspec.models.samplers.renoise import RenoiseSettings
from qspec.numerics import as_stored, sqnr_db
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.outer_layers import OuterLayers
from qspec.passes.parameters import few_tokens
from qspec.plan import BATCH_TOKENS, ModulePlan, Plan
from qspec.precision import exact_products, fast_products
from qspec.progress import Progress
from qspec.runtime import default_dtype, fill_block, install_block, place_outer_layers
from qspec.workspace import Workspace

PRESERVED = 1e-4  # largest change of what attention or MLP adds, relative to it, that a preserving pass may make


def shard_names(shape: DecoderShape) -> list[str]:
    """One shard for each block, one for embedding and final norm, one for a head that is not the embedding.

    A file is hashed by one thread: the largest are what loading a model waits for.
    """
    count = shape.layers + (1 if shape.tied else 2)
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def outer_shards(tensors: Mapping[str, Tensor], family: Family) -> list[dict[str, Tensor]]:
    """What lies outside the blocks, by the shards that hold it."""
    head = f"{family.globals['head']}.weight"
    rest = {name: tensor for name, tensor in tensors.items() if name != head}
    return [rest, {head: tensors[head]}] if head in tensors else [rest]


@exact_products()
def quantize_blocks(
    plan: Plan,
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    workspace: Workspace,
    device: torch.device,
    progress: Progress,
) -> tuple[ModuleRecord, ...]:
    """Writes every shard; returns a record for each module, in the plan's order.

    tokens: the masked calibration tokens. Shards that a killed run finished are read, not made again.
    Raises NumericsError where a number cannot be right, MachineError where the disk is full.
    """
    decoder = Decoder(checkpoint.family, checkpoint.shape, device="meta")
    shards = shard_names(plan.shape)
    stream = start(plan, checkpoint, decoder, tokens, workspace, device, progress)
    by_role: dict[str, ModuleRecord] = {}
    for index, module in enumerate(progress.blocks(decoder.blocks)):
        exact = _exact_outputs(checkpoint, index, module, stream)
        records = _finished_block(plan, checkpoint, index, module, stream, workspace, progress)
        tensors = workspace.read_shard(shards[index])
        install_block(module, records, tensors, device, default_dtype(device), None)
        stream.advance(module, exact)
        by_role.update({record.role: record for record in records})
        module.to_empty(device="meta")
    workspace.write_index(shards)
    return tuple(by_role.get(str(m.entry.role)) or record_of(plan, m) for m in plan.modules)


def start(
    plan: Plan,
    checkpoint: Checkpoint,
    decoder: Decoder,
    tokens: CalibrationTokens,
    workspace: Workspace,
    device: torch.device,
    progress: Progress,
) -> Stream:
    """The calibration stream at the first block; the shards of what lies outside the blocks are written."""
    tensors = checkpoint.globals()
    place_outer_layers(
        decoder, tensors, torch.device("cpu"), default_dtype(device)
    )  # only the embedding is needed, once
    outer = OuterLayers(checkpoint.family, plan.shape, tensors, plan.spec.calibrate.seed)
    for use in plan.spec.passes:
        use.params.rewrite_outer_layers(outer)
    if checkpoint.aside:
        progress.note(f"tensors that text does not need are copied as they are: {_named(checkpoint)}")
    stored = outer_shards(outer.stored() | checkpoint.others(), checkpoint.family)
    for shard, own in zip(shard_names(plan.shape)[plan.shape.layers :], stored, strict=True):
        if workspace.finished(shard) is None:
            workspace.write_shard(shard, own)
    rows = max(1, BATCH_TOKENS // tokens.ids.shape[1])
    exact = any(use.params.follows_exact for use in plan.spec.passes)
    stream = Stream.start(decoder, tokens, rows, device, exact=exact, rotated=outer.rotated())
    if plan.shape.conditioning:
        _condition(checkpoint, stream, tokens)
    return stream


def _named(checkpoint: Checkpoint) -> str:
    """The parts of a checkpoint that the model does not have, and how many tensors each has."""
    counts = {part: sum(name.startswith(part) for name in checkpoint.aside) for part in checkpoint.family.aside}
    return ", ".join(f"{part}* ({count})" for part, count in counts.items() if count)


def _condition(checkpoint: Checkpoint, stream: Stream, tokens: CalibrationTokens) -> None:
    """Tells every second row what a first pass by the unquantized model predicts, as a sampler does in all passes over
    a canvas but the first. One block is held at a time."""
    device, dtype = stream.device, default_dtype(stream.device)
    model = Decoder(checkpoint.family, checkpoint.shape, device="meta")
    place_outer_layers(model, checkpoint.globals(), device, dtype)
    rows = torch.split(torch.arange(len(tokens.ids)), [len(batch.x) for batch in stream.batches])
    told = [(batch, own % 2 == 1, tokens.ids[own]) for batch, own in zip(stream.batches, rows, strict=True)]
    told = [(batch, odd.to(device), ids[odd].to(device)) for batch, odd, ids in told if bool(odd.any())]
    with torch.no_grad(), fast_products():
        states = [batch.x[odd] for batch, odd, _ in told]
        for index in range(checkpoint.shape.layers):
            block = checkpoint.load_block(index, device, dtype)
            states = [block(x, model.calibration_context(ids)) for x, (_, _, ids) in zip(states, told, strict=True)]
        for x, (batch, odd, ids) in zip(states, told, strict=True):
            noised = x.chunk(2, dim=1)[0]
            parts = torch.split(noised.flatten(0, 1), max(1, HEAD_VALUES // checkpoint.shape.vocab))
            soft = torch.cat([model.told(model.finish(part) / RenoiseSettings.t_max) for part in parts])
            batch.x[odd] = model.embed_rows(ids, soft.view(noised.shape))


def _exact_outputs(checkpoint: Checkpoint, index: int, module: DecoderBlock, stream: Stream) -> list[Tensor] | None:
    """What the unquantized model computes behind the block, where the stream follows it: in the stream's dtype."""
    if not stream.follows_exact:
        return None
    dtype = default_dtype(stream.device)
    fill_block(module, {name: t.to(stream.device, dtype) for name, t in checkpoint.block(index).items()})
    return stream.exact_outputs(module)


def _finished_block(
    plan: Plan,
    checkpoint: Checkpoint,
    index: int,
    module: DecoderBlock,
    stream: Stream,
    workspace: Workspace,
    progress: Progress,
) -> tuple[ModuleRecord, ...]:
    """The records of a block whose shard is written: by an interrupted run, or now, from the weights as stored."""
    shard = shard_names(plan.shape)[index]
    done = workspace.finished(shard)
    if done is not None:
        progress.note(f"block {index}: taken from the interrupted run")
        return done.modules
    fill_block(module, {name: t.to(stream.device) for name, t in checkpoint.block(index).items()})
    packed, records = compile_block(plan, index, module, stream, progress)
    tensors = artifact_tensors(module, f"{checkpoint.family.blocks}.{index}", packed, records)
    workspace.write_shard(shard, tensors, records)
    return tuple(records)


def compile_block(
    plan: Plan, index: int, module: DecoderBlock, stream: Stream, progress: Progress
) -> tuple[dict[str, PackedLinear], list[ModuleRecord]]:
    """Runs the recipe's passes over one float block. Returns packed linears by part, and the records."""
    block = rewrite_block(plan, index, module, stream, progress)
    if few := block.observed.few:
        progress.note(f"block {index}: {few_tokens(few)}")
    return _packed(plan, block)


@exact_products()
def rewrite_block(plan: Plan, index: int, module: DecoderBlock, stream: Stream, progress: Progress) -> Block:
    """Runs the recipe's passes over one float block, in place: its linears become `qspec.passes.linear.Linear`s.

    After every pass that must preserve the function, the block's output is compared; a pass that changed it stops the
    compile with a NumericsError, and one that leaves a linear otherwise than the plan has it with a QspecError.
    """
    plans = {m.entry.role.local: m for m in plan.block(index)}
    schemes = {part: (m.entry, m.scheme) for part, m in plans.items()}
    block = Block(index, plan.shape, module, schemes, stream, plan.spec.calibrate.seed)
    for number, use in enumerate(plan.spec.passes, 1):
        uses = tuple(linear for part, linear in block.linears.items() if use in plans[part].passes)
        if not uses:
            continue
        progress.step(f"{use.name} ({len(uses)} linears)")
        block.fit_scales(uses)
        if use.params.quantizes:
            use.params.rewrite(block, uses)
            block.observed.forget()
        else:
            with _preserved(block, use.name):
                use.params.rewrite(block, uses)
        _require_planned(use.name, block, {part: m.expected(plan.spec.passes[:number]) for part, m in plans.items()})
    return block


def _require_planned(
    name: str, block: Block, expected: Mapping[str, tuple[tuple[int, ...], TensorFormat | None]]
) -> None:
    """Checks what a pass made of each linear's input and weights: kernels were chosen for what it says it makes."""
    for part, (rotations, weights) in expected.items():
        linear = block.linears[part]
        made = linear.transform.blocks if linear.transform else ()
        codes = linear.quantized.format if linear.quantized else None
        if made != rotations:
            what = f"rotates its input in blocks of {made or 'none'}, where the plan has {rotations or 'none'}"
        elif codes != weights:
            what = f"leaves its weights in {codes or 'floats'}, where the plan has {weights or 'floats'}"
        else:
            continue
        raise QspecError(f"{name} {what}", where=str(linear.entry.role), hint="this is a fault in the pass")


@contextmanager
def _preserved(block: Block, name: str) -> Iterator[None]:
    """Checks on one calibration batch that a pass left the block's function alone: what attention adds to the residual
    stream, what the MLP adds, and a router's logits, each relative to its own size."""
    before = block.observed.additions()
    yield
    after = block.observed.additions(like=before)
    for part, was, now in zip(("attention", "mlp", ROUTER)[: len(before)], before, after, strict=True):
        size, change = float(was.norm()), float((now - was).norm())
        if not change <= PRESERVED * size:
            by = f"{change / size:.1e}" if size else "what was zero before"
            raise NumericsError(
                f"{name} changed the function of block {block.index} by {by} (limit {PRESERVED:.0e})",
                where=f"blocks[{block.index}].{part}",
                hint="this is a fault in the pass, or the weights hold values that float32 cannot carry",
            )


def _packed(plan: Plan, block: Block) -> tuple[dict[str, PackedLinear], list[ModuleRecord]]:
    """Linears packed for the plan's kernels, by part, and the records as planned with what is known now."""
    quality = _quality(block)
    owners: dict[int, str] = {}
    packed: dict[str, PackedLinear] = {}
    records = []
    for planned in plan.block(block.index):
        part, record = planned.entry.role.local, record_of(plan, planned)
        linear = block.linears[part]
        if planned.kernels is not None:
            assert linear.quantized is not None  # a recipe that quantizes it in no pass is refused
            packed[part] = PackedLinear.from_quantized(linear.quantized, planned.kernels, linear.bias, linear.transform)
            sqnr, weight_sqnr = quality[part]
            update: dict[str, object] = {"sqnr_db": sqnr, "weight_sqnr_db": weight_sqnr}
            if linear.transform is not None:
                update["transform"] = owners.setdefault(id(linear.transform), linear.entry.module)
            if planned.entry.role.expert is not None and block.observed.routed:
                update["tokens"] = block.observed.routed[planned.entry.role.expert]
            record = record.model_copy(update=update)
        records.append(record)
    return packed, records


def assembled(plan: Plan, plain: Decoder, linear: Callable[[ModulePlan], Mapping[str, Tensor]]) -> Decoder:
    """A model as the plan has it, which was never on disk. linear: the tensors of each, as an artifact has them, by
    suffix. Norms are `plain`'s, and so is what lies outside the blocks."""
    family, device, dtype = plain.family, plain.device, next(plain.embedding.parameters()).dtype
    decoder = Decoder(family, plan.shape, device="meta")
    for role in family.globals:
        if role != "head" or not plan.shape.tied:
            decoder.replace(Role(role), plain.module(Role(role)))
    for index, block in enumerate(decoder.blocks):
        records, tensors = assembled_block(plan, index, linear)
        for norm in family.norms_of(index):
            tensors[f"{family.module(norm)}.weight"] = weight_and_bias(plain.module(norm))[0]
        install_block(block, records, tensors, device, dtype, None)
    decoder.absent = plain.absent
    return decoder


def assembled_block(
    plan: Plan, index: int, linear: Callable[[ModulePlan], Mapping[str, Tensor]]
) -> tuple[list[ModuleRecord], dict[str, Tensor]]:
    """Records and tensors of one block's linears, as an artifact has them: one transform for each input."""
    owners: dict[tuple[str, tuple[int, ...]], str] = {}
    records, tensors = [], {}
    for module in plan.block(index):
        record, name = record_of(plan, module), module.entry.module
        if module.rotations:
            owner = owners.setdefault((module.entry.site, module.rotations), name)
            record = record.model_copy(update={"transform": owner})
        records.append(record)
        for suffix, tensor in linear(module).items():
            if not suffix.startswith("transform.") or record.transform == name:
                tensors[f"{name}.{suffix}"] = tensor
    return records, tensors


def record_of(plan: Plan, module: ModulePlan) -> ModuleRecord:
    """The record of a module as planned."""
    entry, kernels = module.entry, module.kernels
    return ModuleRecord(
        role=str(entry.role),
        module=entry.module,
        scheme=module.scheme.name if module.scheme else None,
        label=module.scheme.label if module.scheme else "W16A16",
        bits=module.bits,
        in_features=entry.in_features,
        out_features=entry.out_features,
        bias=entry.bias,
        rule=module.rule.text if module.rule else None,
        passes=tuple(use.name for use in module.passes),
        row=kernel_fields(kernels.row) if kernels else None,
        gemm=kernel_fields(kernels.gemm) if kernels else None,
        merged=plan.gemm(module),
    )


def _quality(block: Block) -> dict[str, tuple[float, float]]:
    """part -> (output SQNR in dB on one calibration batch, weight SQNR in dB), for the quantized linears.

    Output: ||x W^T||^2 / ||x W^T - y||^2 with x as the block saw it and y computed from rounded inputs and weights.
    """
    quality: dict[str, tuple[float, float]] = {}

    def measure(part: str, linear: Linear, x: Tensor) -> None:
        exact = linear.transformed(x) @ linear.weight.T
        rounded = linear.rounded_input(x) @ linear.rounded_weight().T
        quality[part] = (sqnr_db(exact, rounded), sqnr_db(linear.weight, linear.rounded_weight()))

    quantized = {part: linear for part, linear in block.linears.items() if linear.quantized is not None}
    block.observed.additions({part: partial(measure, part, linear) for part, linear in quantized.items()})
    return quality


def artifact_tensors(
    module: DecoderBlock, prefix: str, packed: Mapping[str, PackedLinear], records: list[ModuleRecord]
) -> dict[str, Tensor]:
    """Every tensor of a finished block under its checkpoint name: packed linears, kept linears, norms."""
    by_module = {record.module: record for record in records}
    tensors: dict[str, Tensor] = {}
    for part, path in module.paths.items():
        name = f"{prefix}.{path}"
        if part in packed:
            owner = by_module[name].transform in (None, name)
            tensors.update(
                {f"{name}.{k}": t for k, t in packed[part].tensors().items() if owner or not k.startswith("transform")}
            )
            continue
        kept = module.part(part)
        dtype = torch.bfloat16 if isinstance(kept, Linear) and part != ROUTER else torch.float32
        weight, bias = weight_and_bias(kept)
        tensors[f"{name}.weight"] = as_stored(weight, dtype, f"{name}.weight")
        if bias is not None:
            tensors[f"{name}.bias"] = as_stored(bias, dtype, f"{name}.bias")
        for vector in (ROUTER_BIAS, ROUTER_SCALE) if part == ROUTER else ():
            added = cast("Tensor | None", getattr(kept, vector))
            if added is not None:
                tensors[f"{name}.{vector}"] = as_stored(added, dtype, f"{name}.{vector}")
    return tensors
