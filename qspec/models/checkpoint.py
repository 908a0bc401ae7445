"""Reads a published checkpoint by its original tensor names: safetensors, names and shapes checked first.

`Checkpoint.open` compares the headers with the layout that config.json asks for; weights then stream tensor
by tensor or block by block, each checked for NaN and Inf, so that memory holds only what the caller keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qspec.errors import InputError, MachineError
from qspec.models.config import read_config
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.family import ROUTER_BIAS, DecoderShape, Family
from qspec.models.forms import BLOCK, BUFFERS, DIFFERENT, UNQUANTIZED, blame, check_form
from qspec.models.shards import StoredTensor, tensor_table

COMPARED_ROWS = 4096  # of two tensors that must be equal, at once
TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}  # of `shards.BYTES`, as torch has them
DTYPES = {name: TYPES[name] for name in ("F16", "BF16", "F32", "F64")}  # of a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose every tensor has the name, shape and kind that its config.json asks for.

    tensors: by their names in the model, which are some rows of those in which a checkpoint holds several. aside: those
    that the model does not have (`Family.aside`).
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    shape: DecoderShape
    tensors: Mapping[str, StoredTensor]
    aside: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Reads config.json and the headers. Errors: InputError naming file and tensor."""
        folder = Path(folder)
        check_form(folder)
        family, shape, config = read_config(folder)
        tensors = {name: t for name, t in tensor_table(folder).items() if not BUFFERS.fullmatch(name)}
        copies = {name: tensors.pop(name) for name in family.copied(shape) if name in tensors}
        aside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(family.aside)}
        check_layout(folder, family.tensors(shape), tensors)
        tensors = _by_part(family, shape, tensors)
        for name, original in family.copied(shape).items():
            if name in copies:
                _check_copy(tensors[original], copies[name])
        return cls(folder, config, family, shape, tensors, aside)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights are stored in."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
        return DTYPES[max(sizes, key=lambda name: sizes[name])]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor on the CPU, in its stored dtype or another; InputError where it holds NaN or Inf.

        A router's bias stays as it is stored: logits to which it is added are float32 in a model of any dtype.
        """
        return self._read(name, self.tensors[name], None if name.endswith(f".{ROUTER_BIAS}") else dtype)

    def others(self) -> dict[str, Tensor]:
        """The tensors that the model does not have, as they are stored."""
        return {name: self._read(name, stored) for name, stored in self.aside.items()}

    def _read(self, name: str, stored: StoredTensor, dtype: torch.dtype | None = None) -> Tensor:
        try:
            with safe_open(stored.file, framework="pt") as file:
                held = file.get_slice(stored.name)[stored.part] if stored.part else file.get_tensor(stored.name)
                value = cast(Tensor, held)
        except (SafetensorError, OSError) as error:
            what = f"{stored.file.name}: tensor {name} cannot be read: {error}"
            raise InputError(what, where=stored.where, hint="copy or download the file again") from error
        _check_finite(value, stored, "holds NaN or Inf", "the checkpoint is corrupt; download the file again")
        if dtype is None or dtype == value.dtype:
            return value
        value = value.to(dtype)
        _check_finite(value, stored, f"does not fit {dtype}", "load it in bfloat16 or float32")
        return value

    def block(self, index: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of one block, named as `DecoderBlock.state_dict()` names them."""
        prefix = f"{self.family.blocks}.{index}."
        names = [name for name in self.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.tensor(name, dtype) for name in names}

    def globals(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors outside the blocks: embedding, final norm and, unless tied, the head; by full name."""
        prefix = f"{self.family.blocks}."
        return {name: self.tensor(name, dtype) for name in self.tensors if not name.startswith(prefix)}

    def load_block(
        self, index: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> DecoderBlock:
        """One block with its weights, without the rest of the model."""
        dtype = dtype or self.dtype
        block = DecoderBlock(self.family, self.shape, index, device="meta", dtype=dtype)
        weights = {name: tensor.to(device) for name, tensor in self.block(index, dtype).items()}
        block.load_state_dict(weights, assign=True)
        return block.eval().requires_grad_(False)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
        """The whole model, for inference, one tensor in flight at a time; MachineError if it does not fit."""
        dtype = dtype or self.dtype
        decoder = Decoder(self.family, self.shape, device="meta", dtype=dtype)
        try:
            for name in self.tensors:
                _assign(decoder, name, self.tensor(name, dtype).to(device))
        except torch.OutOfMemoryError as error:
            size = sum(t.bytes for t in self.tensors.values()) / 2**30
            what = f"the model ({size:.1f} GiB as stored) does not fit the memory of {device}"
            raise MachineError(what, where=str(self.folder), hint="free memory or use another device") from error
        return decoder.eval().requires_grad_(False)


def _assign(decoder: Decoder, name: str, value: Tensor) -> None:
    """What load_state_dict does with one tensor; that walks through every module, of experts tens of thousands."""
    path, _, kind = name.rpartition(".")
    module = decoder.get_submodule(path)
    learnt = kind in dict(module.named_parameters(recurse=False))
    setattr(module, kind, nn.Parameter(value, requires_grad=False) if learnt else value)


def load_decoder(folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """The unquantized model of a checkpoint folder, ready to run; dtype None keeps the stored one."""
    return Checkpoint.open(folder).load(device, dtype)


def check_layout(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, StoredTensor]) -> None:
    """Stored names, shapes and dtypes against the layout. Errors: InputError naming file and tensor."""
    missing = [name for name in expected if name not in found]
    if missing:
        what = f"the checkpoint lacks tensor {missing[0]}{_others(missing)}"
        raise InputError(what, where=f"{folder}: {missing[0]}", hint=blame(expected, found))
    unexpected = [name for name in found if name not in expected]
    if unexpected:
        first = found[unexpected[0]]
        what = f"{first.file.name} holds tensor {first.name}, which the model does not have{_others(unexpected)}"
        raise InputError(what, where=first.where, hint=blame(expected, found))
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape:
            what = f"{tensor.file.name}: tensor {name} is {list(tensor.shape)}, not {list(shape)}"
            resized = len(shape) == 2 and tensor.shape[1:] == shape[1:] and not BLOCK.search(name)
            hint = f"config.json gives the vocabulary {shape[0]} rows, the weights {tensor.shape[0]}"
            raise InputError(what, where=tensor.where, hint=hint if resized else DIFFERENT)
        if tensor.dtype not in DTYPES:
            what = f"{tensor.file.name}: tensor {name} is stored as {tensor.dtype}, not as F16, BF16, F32 or F64"
            raise InputError(what, where=tensor.where, hint=UNQUANTIZED)


def _by_part(family: Family, shape: DecoderShape, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by the model's names: of one that holds several, each its rows."""
    sizes = family.state(shape) if family.fused or family.renamed else {}
    for view in family.views(shape):
        whole = stored.pop(view.name)
        bounds = accumulate((sizes[part][0] for part in view.parts), initial=0)
        stored |= {part: whole.cut(*rows) for part, rows in zip(view.parts, pairwise(bounds), strict=True)}
    return stored


def _check_copy(original: StoredTensor, copy: StoredTensor) -> None:
    """A tensor that is stored once more, such as a tied head, in a model that has one for both, must be its equal."""
    hint = "the model has one tensor for both: config.json must not tie them, or one is another model's"
    problem = f"{list(copy.shape)}, not {list(original.shape)}" if copy.shape != original.shape else None
    if problem is None and not _equal(original, copy):
        problem = "other values"
    if problem:
        what = f"{copy.name} must be the same as {original.name}, but they differ: {problem}"
        raise InputError(what, where=copy.where, hint=hint)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors of one shape hold the same numbers; some rows at a time."""
    try:
        with safe_open(one.file, framework="pt") as first, safe_open(other.file, framework="pt") as second:
            left, right = first.get_slice(one.name), second.get_slice(other.name)
            parts = (slice(start, start + COMPARED_ROWS) for start in range(0, one.shape[0], COMPARED_ROWS))
            return all(torch.equal(left[part].double(), right[part].double()) for part in parts)
    except (SafetensorError, OSError) as error:
        what = f"{one.file.name} or {other.file.name} cannot be read: {error}"
        raise InputError(what, where=other.where, hint="copy or download the file again") from error


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_finite(value: Tensor, stored: StoredTensor, problem: str, hint: str) -> None:
    low, high = value.aminmax()  # NaN reaches both; nothing of the tensor's size is allocated
    if not bool(low.isfinite() & high.isfinite()):
        raise InputError(f"{stored.file.name}: tensor {stored.name} {problem}", where=stored.where, hint=hint)
