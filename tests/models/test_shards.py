"""Damaged and hostile folders: each is answered with one error that names the file and the tensor."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qspec.errors import InputError
from qspec.models.shards import INDEX, SINGLE, read_header, tensor_table, weight_files
from tests.models.layout import write_index, write_raw, write_safetensors

A, B, C = (np.full((2, 3), value, np.float32) for value in (1, 2, 3))


def assert_refused(folder: Path, what: str, where: str | None = None) -> None:
    with pytest.raises(InputError) as caught:
        tensor_table(folder)
    assert what in caught.value.what, caught.value.what
    if where is not None:
        assert caught.value.where == where


def sharded(folder: Path) -> dict[str, str]:
    """Two shards: a and c in the first, b in the second."""
    write_safetensors(folder / "one.safetensors", {"a": A, "c": C})
    write_safetensors(folder / "two.safetensors", {"b": B})
    files = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    write_index(folder, files)
    return files


def test_the_table_of_a_sharded_folder(tmp_path: Path) -> None:
    files = sharded(tmp_path)
    table = tensor_table(tmp_path)
    assert {name: t.file.name for name, t in table.items()} == files
    assert {(t.dtype, t.shape, t.bytes) for t in table.values()} == {("F32", (2, 3), 24)}
    assert weight_files(tmp_path) == (tmp_path / "one.safetensors", tmp_path / "two.safetensors")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.PTH", "consolidated.00.pth", "w.ckpt", "w.pkl"]
)
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    assert_refused(tmp_path, f"{name} is a pickle, which can run code when it is read", str(tmp_path / name))


def test_a_pickle_beside_safetensors_is_not_opened(tmp_path: Path) -> None:
    write_safetensors(tmp_path / SINGLE, {"a": A})
    os.mkfifo(tmp_path / "pytorch_model.bin")  # opening it would hang
    assert set(tensor_table(tmp_path)) == {"a"}


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds no weights: neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize(
    "file",
    [
        "../one.safetensors",
        "..",
        "sub/one.safetensors",
        "sub\\one.safetensors",
        "/etc/passwd",
        "/tmp/one.safetensors",
        "C:one.safetensors",
        ".hidden.safetensors",
        "",
        "a\nb.safetensors",
        "a\0.safetensors",
        "one.txt",
        7,
        None,
        ["one.safetensors"],
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, file: Any) -> None:
    files: dict[str, Any] = sharded(tmp_path)
    write_index(tmp_path, files | {"b": file})
    assert_refused(tmp_path, f"{INDEX} places tensor b in ", f"{tmp_path / INDEX}: b")


def test_an_index_that_names_a_pickle_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path) | {"b": "two.bin"})
    assert_refused(tmp_path, "two.bin is a pickle", str(tmp_path / "two.bin"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "{" * 10**5])
def test_an_index_that_is_not_one_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    assert_refused(tmp_path, INDEX, str(tmp_path / INDEX))


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {})
    assert_refused(tmp_path, f"{INDEX} lists no tensors", str(tmp_path / INDEX))


def test_an_index_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    assert_refused(tmp_path, "key 'a' stands twice", str(tmp_path / INDEX))


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    assert_refused(tmp_path, "two.safetensors is missing", str(tmp_path / "two.safetensors"))


def test_a_shard_that_is_a_folder_or_a_pipe_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    os.mkfifo(tmp_path / "two.safetensors")
    assert_refused(tmp_path, "two.safetensors is missing", str(tmp_path / "two.safetensors"))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_safetensors(tmp_path / "two.safetensors", {"a": A, "b": B})
    assert_refused(
        tmp_path,
        "tensor a stands in one.safetensors and again in two.safetensors",
        f"{tmp_path / 'two.safetensors'}: a",
    )


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_safetensors(tmp_path / "two.safetensors", {"b": B, "d": A})
    what = f"tensor d stands in two.safetensors, but {INDEX} does not list it"
    assert_refused(tmp_path, what, f"{tmp_path / 'two.safetensors'}: d")


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path) | {"c": "two.safetensors"})
    what = f"tensor c stands in one.safetensors, but {INDEX} places it in two.safetensors"
    assert_refused(tmp_path, what, f"{tmp_path / 'one.safetensors'}: c")


def test_a_tensor_that_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path) | {"d": "two.safetensors"})
    what = f"tensor d is missing from two.safetensors, where {INDEX} places it"
    assert_refused(tmp_path, what, f"{tmp_path / 'two.safetensors'}: d")


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_safetensors(tmp_path / SINGLE, {"a": A})
    assert_refused(tmp_path, f"holds {SINGLE} and {INDEX}, which does not mention it", str(tmp_path))


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_file_without_a_header_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / SINGLE
    write_safetensors(path, {"a": A})
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(tmp_path, f"{SINGLE} is not a whole safetensors file", str(path))


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / SINGLE
    path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(64))
    assert_refused(tmp_path, f"its header claims {length} bytes of a file of 74", str(path))


def test_a_truncated_shard_names_the_tensor_that_is_cut(tmp_path: Path) -> None:
    sharded(tmp_path)
    path = tmp_path / "one.safetensors"
    path.write_bytes(path.read_bytes()[:-4])  # a ends at byte 24, c at 48
    assert_refused(tmp_path, "one.safetensors is cut short: tensor c ends at byte 48 of 44", f"{path}: c")


def test_bytes_of_no_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    write_safetensors(path, {"a": A})
    path.write_bytes(path.read_bytes() + b"#!/bin/sh")
    assert_refused(tmp_path, "9 bytes at its end belong to no tensor", str(path))


GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (7, "tensor a lacks dtype, shape or data_offsets"),
        ({}, "tensor a lacks dtype, shape or data_offsets"),
        ({"dtype": "F32", "shape": [2, 3]}, "tensor a lacks dtype, shape or data_offsets"),
        (GOOD | {"dtype": "F3"}, "tensor a has unknown dtype F3"),
        (GOOD | {"dtype": ["F32"]}, 'tensor a has unknown dtype ["F32"]'),
        (GOOD | {"shape": [2, -3]}, "tensor a has shape [2, -3]"),
        (GOOD | {"shape": [2, True]}, "tensor a has shape [2, true]"),
        (GOOD | {"shape": [2.0, 3]}, "tensor a has shape [2.0, 3]"),
        (GOOD | {"shape": "23"}, "tensor a has shape 23"),
        (GOOD | {"data_offsets": [0]}, "offsets [0]"),
        (GOOD | {"data_offsets": [0, 24, 48]}, "offsets [0, 24, 48]"),
        (GOOD | {"data_offsets": [-8, 16]}, "offsets [-8, 16]"),
        (GOOD | {"data_offsets": [24, 0]}, "tensor a has -24 bytes for F32 [2, 3]"),
        (GOOD | {"data_offsets": [0, 2**70]}, f"tensor a ends at byte {2**70} of 24"),
        (GOOD | {"shape": [2, 4]}, "tensor a has 24 bytes for F32 [2, 4]"),
        (GOOD | {"shape": [2**62, 2**62]}, "tensor a has 24 bytes for F32"),
        (GOOD | {"dtype": "F16"}, "tensor a has 24 bytes for F16 [2, 3]"),
        (GOOD | {"shape": [2, 2], "data_offsets": [8, 24]}, "the data of tensor a leaves a hole before it"),
        (GOOD | {"shape": [1, 3], "data_offsets": [0, 12]}, "12 bytes at its end belong to no tensor"),
    ],
)
def test_a_bad_entry_of_the_header_is_refused(tmp_path: Path, entry: Any, what: str) -> None:
    write_raw(tmp_path / SINGLE, json.dumps({"a": entry}).encode(), bytes(24))
    where = str(tmp_path / SINGLE) if "belong" in what else f"{tmp_path / SINGLE}: a"
    assert_refused(tmp_path, what, where)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    header = {"a": GOOD, "b": GOOD | {"data_offsets": [12, 36]}}
    write_raw(tmp_path / SINGLE, json.dumps(header).encode(), bytes(36))
    assert_refused(tmp_path, "the data of tensor b overlaps a", f"{tmp_path / SINGLE}: b")


@pytest.mark.parametrize(
    "header", [b"[]", b"nul", b"{'a': 1}", b"\xff\xff", b'{"a": {}, "a": {}}', b"[" * 50_000], ids=repr
)
def test_a_header_that_is_no_table_is_refused(tmp_path: Path, header: bytes) -> None:
    write_raw(tmp_path / SINGLE, header, b"")
    assert_refused(tmp_path, f"the header of {SINGLE} ", str(tmp_path / SINGLE))


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    write_raw(tmp_path / SINGLE, json.dumps({"__metadata__": {"format": "pt"}, "a": GOOD}).encode(), bytes(24))
    assert set(tensor_table(tmp_path)) == {"a"}


def test_names_from_a_file_are_shown_short_and_printable(tmp_path: Path) -> None:
    name = "\x1b[31m" + "x" * 500
    write_raw(tmp_path / SINGLE, json.dumps({name: 7}).encode(), b"")
    with pytest.raises(InputError) as caught:
        tensor_table(tmp_path)
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.what) < 250


@given(
    position=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    cut=st.integers(0, 40),
    more=st.binary(max_size=4),
)
def test_no_damaged_file_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: int, more: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / SINGLE
    write_safetensors(path, {"a": A, "b": B})
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = byte
    path.write_bytes(raw[: len(raw) - cut] + more)
    error = None
    try:
        table = read_header(path)
    except InputError as caught:
        error = caught
    if error is not None:
        assert (error.where or "").startswith(str(path))
    else:
        assert sum(t.bytes for t in table.values()) == 48


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    """Whatever the header's: readers of a file take neighbours together."""
    header = {
        "second": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "empty": {"dtype": "F32", "shape": [0], "data_offsets": [3, 3]},
        "first": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / SINGLE
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"abcde")
    assert [(name, tensor.bytes) for name, tensor in read_header(path).items()] == [
        ("first", 3),
        ("empty", 0),
        ("second", 2),
    ]
