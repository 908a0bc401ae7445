"""The lock file: what is no lock is neither believed nor replaced; differences are told so that they can be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from qspec.errors import InputError
from qspec.lock import FORMAT, Lock, differences


@pytest.mark.parametrize("content", ["", "{}", "[]", "[" * 100_000, '[[package]]\nname = "torch"\n', None])
def test_what_is_no_lock_is_neither_read_nor_replaced(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "uv.lock"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(InputError, match="not a lock file") as caught:
        Lock.read(path)
    assert caught.value.where == str(path)
    with pytest.raises(InputError, match="not a lock file"):
        Lock({"qspec_lock": FORMAT}).write(path)
    assert content is None or path.read_text() == content


def test_a_lock_of_another_format_is_refused_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "r.lock"
    path.write_text('{"qspec_lock": 0}')
    with pytest.raises(InputError, match=f"not a lock file of format {FORMAT}"):
        Lock.read(path)
    Lock({"qspec_lock": FORMAT, "recipe": "1"}).write(path)
    assert Lock.read(path).content["recipe"] == "1"


def test_differences_show_what_differs() -> None:
    """Machines differ at the end of their names; of hashes the first digits are enough."""
    now = {"machine": "cpu x86_64 AVX512, 2 threads", "files": {"a": "1" * 64, "b": "2" * 64}}
    before = {"machine": "cpu x86_64 AVX512, 1 threads", "files": {"a": "1" * 64, "c": "3" * 64}}
    assert differences(now, before, "locked") == [
        "files.b is 222222222222..., locked absent",
        "files.c is absent, locked 333333333333...",
        "machine is cpu x86_64 AVX512, 2 threads, locked cpu x86_64 AVX512, 1 threads",
    ]
    assert differences(now, now, "locked") == []
