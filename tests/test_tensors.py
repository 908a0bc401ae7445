"""Reading sealed safetensors: the tensors as safetensors itself reads them, and one error for anything that changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, local

import pytest
import torch
from safetensors.torch import load_file, save_file

from qspec.errors import InputError
from qspec.files import sha256, sha256_each
from qspec.tensors import PIECE, on_this_stream, read_at, read_sealed, spans

CPU = torch.device("cpu")


def shards(folder: Path) -> dict[Path, str]:
    """Three files of different sizes, the largest in the middle."""
    paths = [folder / f"{number}.safetensors" for number in range(3)]
    for number, (path, size) in enumerate(zip(paths, (3, 900, 40), strict=True)):
        save_file({f"{number}.codes": torch.arange(size).to(torch.int8), f"{number}.scale": torch.rand(2, 3)}, path)
    return {path: sha256(path) for path in paths}


def read(files: dict[Path, str], device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of files."""
    return {name: tensor for own in read_sealed(files, device, kept=".transform.") for name, tensor in own.items()}


def test_tensors_are_those_that_safetensors_reads(tmp_path: Path) -> None:
    files = shards(tmp_path)
    found = read(files, CPU)
    expected = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_small_neighbours_are_read_together_and_large_tensors_alone() -> None:
    half = PIECE // 2
    assert list(spans([half, 0, half, 1, PIECE, 3 * PIECE, 7, 8])) == [
        [half, 0, half],
        [1],
        [PIECE],
        [3 * PIECE],
        [7, 8],
    ]
    assert list(spans([])) == []


def test_bytes_are_read_whole_in_whatever_parts_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, parts, place: whole(handle, [parts[0][:3]], place))
    with path.open("rb") as file:
        found = bytearray(7)
        assert read_at(file.fileno(), memoryview(found), 2)
        assert found == b"2345678"
        assert not read_at(file.fileno(), memoryview(found), 4)  # six are left
        assert read_at(file.fileno(), memoryview(bytearray()), 10)


def test_another_thread_works_on_the_stream_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a new thread does not have by itself: it would be on the first GPU, beside what this one does."""
    entered = local()

    @contextmanager
    def stream(one: str) -> Iterator[None]:
        entered.stream = one
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: f"of {current_thread().name}")
    monkeypatch.setattr(torch.cuda, "stream", stream)

    def there(number: int) -> tuple[int, str]:
        return number, getattr(entered, "stream", "none")

    with ThreadPoolExecutor(1) as pool:
        for device, expected in (("cpu", "none"), ("cuda", f"of {current_thread().name}")):
            assert pool.submit(on_this_stream(there, torch.device(device)), 7).result() == (7, expected)


def test_any_changed_byte_is_named_by_its_file(tmp_path: Path) -> None:
    for path in (files := shards(tmp_path)):
        whole = path.read_bytes()
        flipped = [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in (0, 7, 9, len(whole) - 1)]
        for content in (*flipped, whole[:-1], whole + b"\0", b""):
            path.write_bytes(content)
            with pytest.raises(InputError, match="was changed after it was written") as caught:
                read(files, CPU)
            assert caught.value.where == str(path)
        path.write_bytes(whole)
    assert len(read(files, CPU)) == 6


def test_the_first_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    """The order is the one given, whichever file is read first; what is missing comes before what was changed."""
    first, second, third = (files := shards(tmp_path))
    first.write_bytes(b"x")
    second.write_bytes(b"y")
    with pytest.raises(InputError, match="changed") as caught:
        read(files, CPU)
    assert caught.value.where == str(first)
    third.unlink()
    with pytest.raises(InputError, match="missing") as caught:
        read(files, CPU)
    assert caught.value.where == str(third)


def test_a_file_is_given_out_before_those_behind_it_are_proven(tmp_path: Path) -> None:
    first, second, third = (files := shards(tmp_path))
    third.write_bytes(third.read_bytes()[:-1] + b"x")
    given = read_sealed(files, CPU, kept=".transform.")
    for path in (first, second):
        assert sorted(next(given)) == sorted(load_file(path))
    with pytest.raises(InputError, match="changed") as caught:
        next(given)
    assert caught.value.where == str(third)


def test_hashes_come_in_the_order_of_their_files(tmp_path: Path) -> None:
    files = shards(tmp_path)
    assert list(sha256_each(list(files))) == list(files.values())
    hashes = sha256_each([*files, tmp_path / "none"])
    assert [next(hashes) for _ in files] == list(files.values())
    with pytest.raises(FileNotFoundError):
        next(hashes)
