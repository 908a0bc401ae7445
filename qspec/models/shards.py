"""Which tensor stands where in a folder of safetensors files, read from their headers alone. No torch.

A file is 8 bytes of header length n (little endian), n bytes of JSON {name: {dtype, shape, data_offsets}},
then the tensors, offsets counted from the end of the header. A folder comes from anywhere: every length, name
and offset is checked before it is used, and every failure is one InputError that names file and tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qspec.errors import InputError
from qspec.files import open_input
from qspec.models.config import parse_json, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
MAX_HEADER_BYTES = 32 << 20  # 291 tensors take 30 kB, a mixture of experts with 18,000 takes 2 MB
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, or some rows of it. dtype: the format's own name, such as BF16. bytes: of its
    data. part: where it is cut from the stored one, an index for each of the first axes; (), all of it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    part: tuple[int | slice, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.file}: {self.name}"

    def cut(self, first: int, last: int) -> StoredTensor:
        """Its rows first .. last - 1; of stacked matrices, rows of one, counted through all of them."""
        *stack, height = self.shape[: max(1, len(self.shape) - 1)]
        share = self.bytes // (math.prod(stack) * height) * (last - first)
        shape = (last - first, *self.shape[len(stack) + 1 :])
        matrix = (first // height,) * len(stack)
        rows = slice(first % height, first % height + last - first) if stack else slice(first, last)
        return replace(self, shape=shape, bytes=share, part=(*matrix, rows))


def tensor_table(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder by name, from the index and its shards, the single file, or shards alone.

    Errors: InputError for pickled or missing weights, an index that leads elsewhere or disagrees with its
    shards, shards that are not all there, a tensor that stands twice, and everything that `read_header` refuses.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.exists():
        weight_map = _weight_map(index)
        if single.exists() and SINGLE not in weight_map.values():
            what = f"{folder.name} holds {SINGLE} and {INDEX}, which does not mention it"
            raise InputError(what, where=str(folder), hint="remove the one that does not belong here")
        return _sharded(folder, index, weight_map)
    shards = _shards(folder)
    if single.exists():
        if shards:
            what = f"{folder.name} holds {SINGLE} and {shards[0].name}, and no index that says which counts"
            raise InputError(what, where=str(folder), hint="remove the one that does not belong here")
        return read_header(single)
    if not shards:
        raise _no_weights(folder)
    table: dict[str, StoredTensor] = {}
    for file in shards:
        _add(table, read_header(file))
    return table


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint folder, sorted by name; their content is not looked at."""
    index = folder / INDEX
    if not index.exists():
        return _shards(folder) or (folder / SINGLE,)
    return tuple(folder / name for name in sorted(set(_weight_map(index).values())))


def _shards(folder: Path) -> tuple[Path, ...]:
    """All files that model-0000k-of-0000n.safetensors names for the n of this folder, there or not; none without one.

    Errors: InputError for shards of two checkpoints, which differ in n.
    """
    totals = sorted({found[2] for path in folder.iterdir() if (found := SHARD.fullmatch(path.name))})
    if len(totals) > 1:
        what = f"{folder.name} holds shards of {' and of '.join(str(int(n)) for n in totals)} files, and no {INDEX}"
        raise InputError(what, where=str(folder), hint="remove those of the other checkpoint")
    return tuple(folder / f"model-{k:05d}-of-{n}.safetensors" for n in totals for k in range(1, int(n) + 1))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, in the order of their data.

    Errors: InputError for anything but a whole, well-formed file.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is missing", where=str(path), hint="copy or download the file again")
    try:
        size = path.stat().st_size
        with open_input(path) as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length < 2 or length > MAX_HEADER_BYTES or 8 + length > size:
                raise _corrupt(path, f"its header claims {length} bytes of a file of {size}")
            header = parse_json(file.read(length), path, f"the header of {path.name}")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error
    data = size - 8 - length
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry, data) for name, entry in header.items()}
    ordered = dict(sorted(spans.items(), key=lambda item: item[1]))
    _check_packed(path, ordered, data)
    return {
        name: StoredTensor(name, path, header[name]["dtype"], tuple(header[name]["shape"]), end - start)
        for name, (start, end) in ordered.items()
    }


def _sharded(folder: Path, index: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    table: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        found = read_header(folder / file)
        _add(table, found)
        for name, tensor in found.items():
            if weight_map.get(name) != file:
                what = f"tensor {_short(name)} stands in {file}, but {INDEX} {_says(weight_map.get(name))}"
                hint = "the index and the shards are of different checkpoints"
                raise InputError(what, where=tensor.where, hint=hint)
    for name, file in weight_map.items():
        if name not in table:
            what = f"tensor {_short(name)} is missing from {file}, where {INDEX} places it"
            raise InputError(what, where=f"{folder / file}: {_short(name)}", hint="download the shard again")
    if not table:
        raise InputError(f"{INDEX} lists no tensors", where=str(index))
    return table


def _add(table: dict[str, StoredTensor], shard: Mapping[str, StoredTensor]) -> None:
    for name, tensor in shard.items():
        if name in table:
            what = f"tensor {_short(name)} stands in {table[name].file.name} and again in {tensor.file.name}"
            raise InputError(what, where=tensor.where, hint="one tensor belongs in one shard")
        table[name] = tensor


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f'{INDEX} has no "weight_map" table', where=str(index))
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _plain(file):
            what = f"{INDEX} places tensor {_short(name)} in {_short(file)}, not a plain file of its folder"
            raise InputError(what, where=f"{index}: {_short(name)}", hint="use the published index")
        if Path(file).suffix.lower() in PICKLES:
            raise _pickle(index.parent / file)
        if not file.endswith(".safetensors"):
            what = f"{INDEX} places tensor {_short(name)} in {_short(file)}, which is not a .safetensors file"
            raise InputError(what, where=f"{index}: {_short(name)}")
    return weight_map


def _plain(name: str) -> bool:
    """A bare, visible, printable file name: no folder, no drive, no `..`."""
    return name.isprintable() and not name.startswith(".") and not any(c in name for c in "/\\:")


def _span(path: Path, name: str, entry: Any, data: int) -> tuple[int, int]:
    """Start and end of a tensor's data, both inside the file and as long as its shape and dtype say."""
    where = f"{path}: {_short(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise InputError(f"{path.name}: tensor {_short(name)} lacks dtype, shape or data_offsets", where=where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise InputError(f"{path.name}: tensor {_short(name)} has unknown dtype {_short(dtype)}", where=where)
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        what = f"{path.name}: tensor {_short(name)} has shape {_short(shape)}, offsets {_short(offsets)}"
        raise InputError(what, where=where, hint="both must be lists of whole numbers")
    start, end = offsets
    if end > data:
        what = f"{path.name} is cut short: tensor {_short(name)} ends at byte {end} of {data}"
        raise InputError(what, where=where, hint="copy or download the file again")
    if end - start != math.prod(shape) * BYTES[dtype]:
        what = f"{path.name}: tensor {_short(name)} has {end - start} bytes for {dtype} {_short(shape)}"
        raise InputError(what, where=where, hint="copy or download the file again")
    return start, end


def _check_packed(path: Path, spans: Mapping[str, tuple[int, int]], data: int) -> None:
    """The format's rule: tensors, here in the order of their data, neither overlap nor leave holes."""
    position, before = 0, ""
    for name, (start, end) in spans.items():
        if start != position:
            problem = f"overlaps {_short(before)}" if start < position else "leaves a hole before it"
            what = f"{path.name}: the data of tensor {_short(name)} {problem}"
            raise InputError(what, where=f"{path}: {_short(name)}", hint="copy or download the file again")
        position, before = end, name
    if position != data:
        raise _corrupt(path, f"{data - position} bytes at its end belong to no tensor")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _says(file: str | None) -> str:
    return "does not list it" if file is None else f"places it in {file}"


def _short(value: object) -> str:
    """A value from the file as it may be shown: printable, and of bounded length."""
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _corrupt(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path.name} is not a whole safetensors file: {problem}",
        where=str(path),
        hint="copy or download the file again",
    )


def _pickle(path: Path) -> InputError:
    return InputError(
        f"{path.name} is a pickle, which can run code when it is read; only safetensors are",
        where=str(path),
        hint="use the checkpoint's .safetensors files, or convert it with a tool that you trust",
    )


def _no_weights(folder: Path) -> InputError:
    pickles = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICKLES)
    if pickles:
        return _pickle(pickles[0])
    hint = "give the folder of a checkpoint: config.json beside *.safetensors"
    if others := sorted(p.name for p in folder.glob("*.safetensors")):
        hint = f"{_short(others[0])} is no name of a whole checkpoint: if it is one, call it {SINGLE}"
    return InputError(
        f"{folder.name} holds no weights: neither {SINGLE} nor {INDEX}",
        where=str(folder),
        hint=hint,
    )
