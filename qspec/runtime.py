"""Loads models: an artifact (verified first), or an unquantized checkpoint folder of a known family."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qspec.artifact import inside, verify
from qspec.errors import InputError, MachineError
from qspec.kernels import attention, experts
from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import parts_of
from qspec.kernels.packing import PackedLinear
from qspec.manifest import MANIFEST, Manifest, ModuleRecord, refuse_file
from qspec.models.chat import ChatSetting, chat_text, user_message, uses_chat
from qspec.models.checkpoint import load_decoder
from qspec.models.config import read_config
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock, Router
from qspec.models.engine import bucket_of
from qspec.models.family import ROUTER
from qspec.models.locate import checkpoint_locate, is_name
from qspec.models.sampler import DreamSettings, Settings
from qspec.models.samplers.block import BlockSettings
from qspec.models.samplers.renoise import RenoiseSettings
from qspec.models.shards import tensor_table
from qspec.models.tokenizer import FILE, MAX_BYTES, readable, tokenizer_files
from qspec.models.tokens import check_mask_token, know_tokens, library_errors
from qspec.plan.generating import TextSizes, generating_memory
from qspec.tensors import on_this_stream, read_sealed

# Long texts are cut into windows after they are encoded; the tokenizer's warning about their length would mislead.
UNLIMITED = 1 << 60
TRANSFORM = ".transform."  # in the name of an input transform's tensors, which a QuantLinear copies from the CPU


def load(
    path: str | Path, device: str = "auto", dtype: torch.dtype | None = None, *, texts: TextSizes | None = None
) -> tuple[Decoder, Any]:
    """(model, tokenizer) of an artifact, or of an unquantized checkpoint: its folder, hub id, or a stand-in's name.

    model(input_ids, attention_mask=None).logits is [batch, tokens, vocab]. device: "auto", "cpu" or "cuda"; dtype: of
    activations and kept weights, float32 on a CPU and bfloat16 on a GPU unless given. texts: what it is loaded for.
    Raises InputError, naming the file, where anything of an artifact was changed; MachineError without such a device,
    or where a GPU has too little memory free for the model and the texts.
    """
    folder = checkpoint_folder(path)
    target = find_device(device)
    dtype = dtype or default_dtype(target)
    if target.type == "cuda":
        _require_memory(folder, target, dtype, texts)
    manifest = verify(folder, shards=False) if (folder / MANIFEST).is_file() else None
    # The model and the tokenizer at once: reading is few long calls, which leave Python to the import of transformers.
    build = load_decoder if manifest is None else partial(_assembled, manifest)
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(on_this_stream(build, target), folder, target, dtype)
        tokenizer, model = load_tokenizer(folder), building.result()
    if target.type == "cuda":
        experts.install(attention.install(model))
    return know_tokens(model, tokenizer).eval(), tokenizer


def checkpoint_folder(path: str | Path) -> Path:
    """The folder of an artifact or checkpoint, of a bundled stand-in (tiny-llada), or of a hub id in the local cache.

    Errors: InputError where there is none.
    """
    folder = Path(path)
    refuse_file(folder)
    if folder.is_dir():
        return folder
    found = checkpoint_locate(path) if isinstance(path, str) and is_name(path) else None
    if found is None:
        raise InputError("no such folder", where=str(path), hint="give an artifact, a checkpoint folder, or tiny-llada")
    return found


def find_device(name: str) -> torch.device:
    """ "auto" takes the GPU where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}", hint="auto, cpu or cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError("no CUDA GPU is usable here", hint="use --device cpu, or check the driver with nvidia-smi")
    return torch.device(name)


def _require_memory(folder: Path, device: torch.device, dtype: torch.dtype, texts: TextSizes | None) -> None:
    """Errors: MachineError where a model, and texts at once, take more memory than a GPU has free."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, of what was freed
    weights, free = _weight_bytes(folder, dtype), torch.cuda.mem_get_info(device)[0] + held
    parts = {"weights": weights}
    if texts is not None:
        needed = generating_memory(read_config(folder)[1], weights, texts)
        parts |= {"a step": needed.step + needed.fixed, "the cache": needed.cache}
    total = sum(parts.values())
    if total > free:
        listed = ", ".join(f"{size / 2**30:.1f} for {name}" for name, size in parts.items() if size)
        what = "the model takes" if texts is None else f"the model and {texts} at once take"
        raise MachineError(
            f"{what} about {total / 2**30:.1f} GiB of GPU memory ({listed}), and {free / 2**30:.1f} GiB are free",
            where=str(folder),
            hint="lower the length or the number of texts at once, or close other programs on the GPU",
        )


def text_sizes(settings: Settings, batch: int, canvas: int) -> TextSizes:
    """Of texts by a sampler. canvas: tokens of prompt and text."""
    if isinstance(settings, BlockSettings | RenoiseSettings):
        return TextSizes(batch, bucket_of(canvas), settings.length, cache=True)
    if isinstance(settings, DreamSettings):
        return TextSizes(batch, canvas, settings.length, settings.cache is not None)
    return TextSizes(batch, canvas, settings.block, settings.cache is not None, settings.cfg > 0)


def _weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Of a model on a GPU: an artifact's, or an unquantized model's in its type."""
    if (folder / MANIFEST).is_file():
        return Manifest.read(folder).bytes_after
    return dtype.itemsize * sum(math.prod(tensor.shape) for tensor in tensor_table(folder).values())


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU, bfloat16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def execution(device: torch.device) -> str:
    """Which path computes the quantized linears, as reports say it."""
    if device.type == "cuda":
        return f"generated Triton kernels on {torch.cuda.get_device_name(device)}"
    return "CPU reference (the kernels' integer arithmetic, without a GPU)"


def load_artifact(folder: Path, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The model of an artifact, after every hash was checked."""
    manifest = verify(folder, shards=False)
    return _assembled(manifest, folder, device, dtype)


def _assembled(manifest: Manifest, folder: Path, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The model of an artifact whose other files are verified."""
    family, shape, _ = read_config(folder)
    decoder = Decoder(family, shape, device="meta")
    shards = {inside(folder, name): manifest.files[name] for name in manifest.shards}
    try:
        with closing(read_sealed(shards, device, TRANSFORM)) as tensors:
            place(decoder, manifest, tensors, device, dtype, folder / "kernels")
    except torch.OutOfMemoryError as error:
        what = f"the model ({manifest.bytes_after / 2**30:.1f} GiB) does not fit the memory of {device}"
        raise MachineError(what, where=str(folder), hint="free memory or use another device") from error
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the parts of merged GEMMs
    return decoder


def place(
    decoder: Decoder,
    manifest: Manifest,
    shards: Iterator[dict[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    kernels: Path,
) -> None:
    """Moves an artifact's tensors (full names) into a decoder, its quantized linears as QuantLinears.

    shards: in the order of `quantize.shard_names`, or fewer. A block is built while those behind it are read, and the
    parts of its merged GEMMs are gone before the next block's are merged.
    """
    start, held = decoder.family.blocks, dict[str, Tensor]()
    for index, (block, records) in enumerate(zip(decoder.blocks, _blocks(manifest, decoder), strict=True)):
        held.update(next(shards, {}))
        names = [name for name in held if name.startswith(f"{start}.{index}.")]
        install_block(block, records, {name: held.pop(name) for name in names}, device, dtype, kernels)
    for shard in shards:
        held.update(shard)
    outer = {name: tensor for name, tensor in held.items() if not name.startswith(f"{start}.")}
    place_outer_layers(decoder, outer, device, dtype)


def _blocks(manifest: Manifest, decoder: Decoder) -> list[list[ModuleRecord]]:
    """The records of each block. Raises InputError where they are not of the linears that the decoder has."""
    records = {record.role: record for record in manifest.modules if record.role.startswith("blocks[")}
    blocks: list[list[ModuleRecord]] = [[] for _ in decoder.blocks]
    for entry in decoder.family.modules(decoder.shape):
        if entry.role.block is None:
            continue
        record = records.pop(str(entry.role), None)
        has = None if record is None else (record.module, record.out_features, record.in_features, record.bias)
        if record is None or has != (entry.module, entry.out_features, entry.in_features, entry.bias):
            raise _other_model(str(entry.role))
        blocks[entry.role.block].append(record)
    for role in records:
        raise _other_model(role)
    return blocks


def _other_model(role: str) -> InputError:
    return InputError(
        "qspec.json and config.json are of different models",
        where=role,
        hint="the artifact is damaged or of another version; compile the recipe again",
    )


def place_outer_layers(
    decoder: Decoder, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> None:
    """Puts embedding, final norm, head and what conditions a canvas in place; norm gains stay in float32. Tensors that
    the model does not have stay out."""
    own = {name: t for name, t in tensors.items() if not name.startswith(decoder.family.aside)}
    placed = {name: t.to(device, _kept_dtype(t, dtype)) for name, t in own.items()}
    decoder.load_state_dict(placed, strict=False, assign=True)
    decoder.requires_grad_(False)


def fill_block(block: DecoderBlock, tensors: Mapping[str, Tensor]) -> None:
    """Float weights of one block, named below the block."""
    block.load_state_dict(dict(tensors), strict=True, assign=True)
    block.requires_grad_(False)


def install_block(
    block: DecoderBlock,
    records: Iterable[ModuleRecord],
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    kernels: Path | None,
) -> None:
    """Gives one block its packed linears, kept linears and norms from an artifact's tensors (full names).

    kernels: the artifact's folder of generated kernels; None renders them anew.
    """
    by_module = {record.module: record for record in records}
    transforms: dict[str, Any] = {}
    gemms: dict[str, dict[str, PackedLinear]] = {}  # by the first module: a GEMM's parts
    prefix = _common_prefix(by_module, block)
    for part, path in block.paths.items():
        name = f"{prefix}{path}"
        record = by_module.get(name)
        own = {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
        quantized = None if record is None else record.kernels
        if record is None or quantized is None:
            kept = block.part(part) if record is None else _linear(record, block)
            block.replace(part, _kept(kept, own, device, torch.float32 if part == ROUTER else dtype, name))
            continue
        if record.transform not in (None, name):
            own.update(_transform_tensors(tensors, record.transform))
        packed = PackedLinear.from_tensors(
            quantized, record.out_features, record.in_features, own, where=name, bias=record.bias
        )
        if record.transform is not None:
            packed = packed.with_transform(transforms.setdefault(record.transform, packed.transform))
        gemms.setdefault(record.merged or name, {})[part] = packed
    for parts in gemms.values():
        linears = list(parts.values())
        whole = QuantLinear(linears[0] if len(linears) == 1 else PackedLinear.merged(linears), kernels).to(device)
        cut = parts_of(whole, [linear.out_features for linear in linears]) if len(linears) > 1 else [whole]
        for part, module in zip(parts, cut, strict=True):
            block.replace(part, module)


def _linear(record: ModuleRecord, block: DecoderBlock) -> nn.Linear:
    """The linear that a kept module's record describes, without weights."""
    if block.mixture is not None and record.role.endswith(ROUTER):
        return Router(record.in_features, block.mixture, "meta", None)
    return nn.Linear(record.in_features, record.out_features, bias=record.bias, device="meta")


def _common_prefix(by_module: Mapping[str, ModuleRecord], block: DecoderBlock) -> str:
    name = next(iter(by_module))
    path = next(p for p in block.paths.values() if name.endswith(f".{p}"))
    return name[: -len(path)]


def _transform_tensors(tensors: Mapping[str, Tensor], owner: str | None) -> dict[str, Tensor]:
    start = f"{owner}.transform"
    return {key[len(f"{owner}.") :]: t for key, t in tensors.items() if key.startswith(start)}


def _kept(
    module: nn.Module, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype, where: str
) -> nn.Module:
    """A norm or a linear that stays in floating point, with its tensors. Raises InputError where they do not fit it."""
    expected = {key: t.shape for key, t in module.state_dict().items()}
    if expected != {key: t.shape for key, t in tensors.items()}:
        raise InputError(
            "the artifact's tensors are not those of the model",
            where=where,
            hint="the artifact is damaged or of another version; compile the recipe again",
        )
    module.load_state_dict({key: t.to(device, _kept_dtype(t, dtype)) for key, t in tensors.items()}, assign=True)
    return module.requires_grad_(False)


def _kept_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Vectors (norm gains, biases of kept linears) keep float32 where they have it."""
    return torch.float32 if tensor.ndim == 1 and tensor.dtype == torch.float32 else dtype


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a checkpoint: its tokenizer.json, or the one that its older files make; no remote code.

    Errors: InputError where it cannot be read, or does not fit the mask token of config.json.
    """
    from transformers import PreTrainedTokenizerFast

    with readable(folder) as source:
        _require_sizes(source)
        with library_errors("the tokenizer cannot be read", str(folder / FILE)):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(source), local_files_only=True)
    if not tokenizer.vocab_size:
        raise InputError("the tokenizer has no words", where=str(folder / FILE), hint="copy it from the original model")
    tokenizer.model_max_length = UNLIMITED
    _, shape, _ = read_config(folder)
    check_mask_token(shape, tokenizer, str(folder))
    return tokenizer


def _require_sizes(folder: Path) -> None:
    """Raises InputError where a file of the tokenizer is larger than any is."""
    for name in tokenizer_files(folder):
        if (folder / name).stat().st_size > MAX_BYTES:
            raise InputError(f"{name} has more than {MAX_BYTES} bytes", where=str(folder / name))


class ChatTemplate:
    """Messages as text, by the chat template of the tokenizer beside a checkpoint, which is read when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)

    def __call__(self, messages: Sequence[Mapping[str, Any]], where: str, *, answered: bool = False) -> str:
        """where: the file and line of the messages; answered and errors as `chat_text`."""
        return chat_text(self._tokenizer, messages, where, answered=answered)

    def used(self, setting: ChatSetting) -> bool:
        """As `uses_chat`."""
        return uses_chat(setting, self._tokenizer, str(self.folder))

    def prompt(self, text: str) -> str:
        """As `user_message`."""
        return user_message(self._tokenizer, text, str(self.folder))
