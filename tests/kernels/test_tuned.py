"""The table of measured tile sizes: keys, files, candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from qspec import resources
from qspec.bench.data import DREAM, FORMATS, LLADA
from qspec.catalog import GemmKernel, kernels_for
from qspec.errors import InputError
from qspec.kernels import tuned
from qspec.kernels.generate import KernelLibrary

W4A4 = GemmKernel(4, None, True, 4, None, True)
W8A8 = GemmKernel(8, None, True, 8, None, True)
W4A16 = GemmKernel(4, 128, True, 16, None, True)
W3A16 = GemmKernel(3, 128, False, 16, None, True)
OPTIONS = {"BLOCK_N": 64, "BLOCK_M": 16, "K_BLOCKS": 2, "STAGES": 3, "SPLIT": 2, "CTAS_PER_SM": 1, "K_SLICES": 1}


@pytest.fixture
def triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """On a GPU for which nothing was measured."""
    found: ModuleType = pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    return found


@pytest.mark.parametrize(("tokens", "expected"), [(1, 8), (8, 8), (9, 16), (17, 32), (1000, 1024), (9**9, 8192)])
def test_buckets_are_powers_of_two(tokens: int, expected: int) -> None:
    assert tuned.bucket(tokens) == expected


def test_a_key_names_kernel_shape_bucket_and_compiler() -> None:
    assert tuned.key(W4A4, 12288, 4096, 40, "3.6.0") == "gemm_w4_sym_a4 12288x4096 M64 triton 3.6.0"
    assert tuned.slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


def test_a_written_table_is_read_and_added_to(triton: ModuleType) -> None:
    device = torch.device("cuda")
    assert tuned.options_for(W4A4, 256, 512, 5, device) is None
    options = OPTIONS
    key = tuned.key(W4A4, 256, 512, 9, triton.__version__)
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", {key: {"options": options, "microseconds": 3.5}})
    assert tuned.options_for(W4A4, 256, 512, 16, device) == options
    assert tuned.options_for(W4A4, 256, 512, 17, device) is None
    assert tuned.options_for(W8A8, 256, 512, 16, device) is None
    assert tuned.options_for(W4A4, 256, 512, 16, torch.device("cpu")) is None
    assert tuned.options_for(W4A4, 256, 512, 8, device) == options  # until it has an entry of its own
    assert tuned.microseconds("Test GPU", W4A4, 256, 512, 1) == 3.5
    narrow = options | {"BLOCK_M": 8}
    fewer = {tuned.key(W4A4, 256, 512, 1, triton.__version__): {"options": narrow, "microseconds": 3.0}}
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", fewer)
    assert tuned.options_for(W4A4, 256, 512, 8, device) == narrow
    assert tuned.options_for(W4A4, 256, 512, 9, device) == options
    assert tuned.microseconds("Test GPU", W4A4, 256, 512, 1) == 3.0
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", {"other": {"options": {}, "microseconds": 1.0}})
    assert set(tuned.read(tuned.own_file("Test GPU"))) == {key, "other", *fewer}
    gated = replace(W4A4, gated=True)
    assert tuned.options_for(gated, 256, 512, 16, device) == options
    assert tuned.microseconds("Test GPU", gated, 256, 512, 16) == 3.5
    many = {tuned.key(W4A16, 256, 512, 4096, triton.__version__): {"options": tuned.CUBLAS, "microseconds": 9.0}}
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", many)
    gated = replace(W4A16, gated=True)
    assert tuned.options_for(W4A16, 256, 512, 4096, device) == tuned.CUBLAS
    assert tuned.options_for(gated, 256, 512, 4096, device) is None
    assert tuned.microseconds("Test GPU", W4A16, 256, 512, 4096) == 9.0
    assert tuned.microseconds("Test GPU", gated, 256, 512, 4096) is None
    tuned.own_file("Test GPU").unlink()
    older = {tuned.key(W4A4, 256, 512, 16, "3.0"): {"options": options, "microseconds": 3.25}}
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", older)
    assert tuned.microseconds("Test GPU", W4A4, 256, 512, 16) == 3.25
    assert tuned.microseconds("Test GPU", W4A4, 256, 1024, 16) is None
    assert tuned.microseconds("Other GPU", W4A4, 256, 512, 16) is None


@pytest.mark.parametrize(
    "text", ["", "[]", *(f'{{"entries": {{"k": {one}}}}}' for one in ("{}", '{"options": 3}', '{"options": {}}'))]
)
def test_a_file_that_is_no_table_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a table") as caught:
        tuned.read(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("tokens", [1, 33, 200, 4096])
@pytest.mark.parametrize("kernel", [W4A4, W8A8, W4A16, W3A16], ids=lambda k: k.name)
def test_candidates_cover_the_kernel_and_fit(kernel: GemmKernel, tokens: int) -> None:
    every = list(tuned.candidates(kernel, 4096, 4096, tokens))
    assert every.count(tuned.CUBLAS) == (kernel.activation_bits == 16 and tokens >= 256)
    found = [options for options in every if options != tuned.CUBLAS]
    assert found
    assert all(set(options) == tuned.NAMES for options in found)
    for options in found:
        tokens_held = options["BLOCK_M"] * options["K_BLOCKS"] * 128 * (2 if kernel.activation_bits == 16 else 1)
        weights_held = options["BLOCK_N"] * options["K_BLOCKS"] * 16 * kernel.weight_bits
        assert options["CTAS_PER_SM"] * (options["STAGES"] * (tokens_held + weights_held) + 1024) <= 228 * 1024
        assert options["STAGES"] >= 2 * options["K_SLICES"]
        assert options["STAGES"] % options["K_SLICES"] == 0
        assert options["SPLIT"] * options["K_BLOCKS"] <= 32
        sums = options["BLOCK_M"] // 2 * (2 if kernel.activation_bits == 16 else 1)  # of a thread
        registers = 65536 // (options["CTAS_PER_SM"] * 128 * (options["BLOCK_N"] // 64 * options["K_SLICES"] + 1))
        assert sums < registers
        tiles = -(-4096 // options["BLOCK_N"]) * -(-tokens // options["BLOCK_M"])
        assert options["SPLIT"] == 1 or options["SPLIT"] * tiles <= 132 * options["CTAS_PER_SM"]


def test_entries_of_another_form_of_the_kernel_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    key = tuned.key(W4A4, 256, 512, 5, triton.__version__)
    for options in ({"BLOCK_N": 64, "SPREAD": True}, {"CUBLAS": 2}, {"CUBLAS": 1, "SPLIT": 1}):
        entry = {"options": options, "microseconds": 1.0}
        tuned.write(tuned.own_file("Test GPU"), "Test GPU", {key: entry})
        assert tuned.options_for(W4A4, 256, 512, 5, torch.device("cuda")) is None
        assert tuned.microseconds("Test GPU", W4A4, 256, 512, 5) is None


def test_many_quantized_tokens_take_an_entry_that_they_nearly_fill(triton: ModuleType) -> None:
    """Tiles of 1024 tokens leave some of 960 empty, and are other waves of theirs."""
    options = OPTIONS | {"BLOCK_M": 128}
    entry = {"options": options, "microseconds": 2.5}
    keys = [tuned.key(kernel, 256, 512, 1024, triton.__version__) for kernel in (W4A4, W4A16)]
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", dict.fromkeys(keys, entry))
    found = [tuned.options_for(W4A4, 256, 512, tokens, torch.device("cuda")) for tokens in (960, 961, 1024)]
    assert found == [None, options, options]
    assert tuned.options_for(W4A16, 256, 512, 600, torch.device("cuda")) == options


def test_cublas_is_an_entry_too(triton: ModuleType) -> None:
    entry = {"options": {"CUBLAS": 1}, "microseconds": 2.5}
    key = tuned.key(W4A16, 256, 512, 4096, triton.__version__)
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", {key: entry})
    assert tuned.options_for(W4A16, 256, 512, 3000, torch.device("cuda")) == {"CUBLAS": 1}
    assert tuned.microseconds("Test GPU", W4A16, 256, 512, 3000) == 2.5


@pytest.mark.parametrize(
    ("kernel", "takes", "first"),
    [
        (W4A16, True, 4096),
        (W4A16, False, 512),  # a float16 x, say
        (W3A16, True, 2048),
        (W3A16, False, 128),
        (GemmKernel(8, None, True, 16, None, True), False, 512),
        (GemmKernel(2, 64, True, 16, None, True), False, 256),
        (GemmKernel(5, 64, True, 16, None, True), False, 128),
    ],
)
def test_without_an_entry_cublas_has_many_tokens_where_it_was_measured(
    kernel: GemmKernel, takes: bool, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = KernelLibrary().module(kernel)
    there = [SimpleNamespace(is_cuda=True, device="cuda", shape=(tokens, 64)) for tokens in (first - 1, first)]
    for capability, expected in (((8, 0), [False, False]), ((9, 0), [False, True]), ((10, 0), [False, False])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert [file.cublas_wins(x, file.CUBLAS_FROM[takes]) for x in there] == expected


@pytest.mark.parametrize("kernel", [W4A4, W8A8, W4A16, W3A16], ids=lambda k: k.name)
def test_a_files_own_tiles_load_ahead_and_fit(
    kernel: GemmKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = KernelLibrary().module(kernel)
    for channels, columns in (*LLADA, *DREAM, (512, 3584)):
        for tokens in (1, 8, 16, 17, 32, 33, 64, 65, 256, 257, 4096):
            options = module.hopper_tiles(module.FORMAT, tokens, channels, columns)
            assert options["STAGES"] >= tuned.LEAST_STAGES
            assert options["STAGES"] % options["K_SLICES"] == 0
            taken = options["STAGES"] * tuned._stage(kernel, options) + tuned._sent(kernel, options) + 1024
            assert options["CTAS_PER_SM"] * taken <= tuned.SHARED


@pytest.mark.parametrize(
    ("running", "there", "expected"),
    [
        ("3.6.0", ["3.5.1", "3.6.0", "3.6.1"], "3.6.0"),  # itself
        ("3.7.1", ["3.6.0"], "3.6.0"),
        ("3.9.0", ["3.5.0", "3.6.0", "4.0.0"], "3.6.0"),  # a major version is further than three minor ones
        ("3.9.0", ["3.10.0", "3.7.0"], "3.10.0"),  # numbers, not text
        ("3.7.0", ["3.6.0", "3.8.0"], "3.8.0"),  # of two as near the later
        ("3.7.2", ["3.7.0", "3.7.9", "3.6.2"], "3.7.0"),
        ("3.6.0+git8a1c", ["3.6.0", "3.6.1"], "3.6.0"),
        ("3.6", ["3.6.0", "3.5.0"], "3.6.0"),
        (None, ["3.5.0", "3.10.0", "3.6.0"], "3.10.0"),  # nothing runs here
    ],
)
def test_the_nearest_version_of_triton_serves(running: str | None, there: list[str], expected: str) -> None:
    assert tuned.nearest(there, running) == expected
    assert tuned.nearest(reversed(there), running) == expected


def test_an_entry_of_another_version_of_triton_is_taken_until_this_one_has_its_own(
    triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped tables are of Triton 3.6.0; what an installation brings is another one."""
    monkeypatch.setattr(triton, "__version__", "3.7.1")
    device, first = torch.device("cuda"), OPTIONS | {"STAGES": 4}
    for version, options in (("3.4.0", OPTIONS), ("3.6.0", first)):
        entry = {tuned.key(W4A4, 256, 512, 16, version): {"options": options, "microseconds": float(version[:3])}}
        tuned.write(tuned.own_file("Test GPU"), "Test GPU", entry)
    assert tuned.options_for(W4A4, 256, 512, 16, device) == first
    assert tuned.microseconds("Test GPU", W4A4, 256, 512, 16) == 3.6
    own = OPTIONS | {"STAGES": 5}
    entry = {tuned.key(W4A4, 256, 512, 16, "3.7.1"): {"options": own, "microseconds": 3.9}}
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", entry)
    assert tuned.options_for(W4A4, 256, 512, 16, device) == own
    assert tuned.microseconds("Test GPU", W4A4, 256, 512, 16) == 3.9  # of what runs, not the least
    monkeypatch.setattr(triton, "__version__", "3.4.1")
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", {})
    assert tuned.options_for(W4A4, 256, 512, 16, device) == OPTIONS


def test_every_product_of_the_shipped_tables_is_found_whatever_triton_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    tuned.write(tuned.own_file("NVIDIA H100 80GB HBM3"), "NVIDIA H100 80GB HBM3", {})
    kernels = {kernel.name: kernel for kernel in (kernels_for(scheme).gemm for scheme in FORMATS.values())}
    path = resources.codegen() / "tuned" / "nvidia_h100_80gb_hbm3.json"
    for version in ("3.6.0", "3.9.0", triton.__version__):
        monkeypatch.setattr(triton, "__version__", version)
        tuned.write(tuned.own_file("Other"), "Other", {})  # forgets what was looked up
        for key, entry in tuned.read(path).items():
            name, shape, size = key.split(" ")[:3]
            product = (*map(int, shape.split("x")), int(size[1:]))
            assert tuned.options_for(kernels[name], *product, torch.device("cuda")) == entry["options"]
            assert tuned.microseconds("NVIDIA H100 80GB HBM3", kernels[name], *product) == entry["microseconds"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"BLOCK_N": 96}, {"BLOCK_N": "64"}, {"BLOCK_M": 24}, {"BLOCK_M": 512}, {"K_BLOCKS": 3}, {"K_BLOCKS": 0},
        {"STAGES": 1}, {"STAGES": 60}, {"CTAS_PER_SM": 9}, {"SPLIT": 3}, {"SPLIT": -1}, {"K_SLICES": 2},
        {"K_SLICES": 4, "STAGES": 8}, {"BLOCK_N": 128, "K_SLICES": 2, "STAGES": 4}, {"BLOCK_N": 256}, {"BLOCK_M": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_the_kernel_cannot_run_is_passed_over_for_the_next_version(
    wrong: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of W4A4 over 512 channels, four blocks of 128: a split of two pairs, at most."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    monkeypatch.setattr(triton, "__version__", "3.9.0")
    device = torch.device("cuda")
    assert tuned.accepts(W4A4, 512, OPTIONS)
    bad = {tuned.key(W4A4, 256, 512, 16, "3.9.0"): {"options": OPTIONS | wrong, "microseconds": 1.0}}
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", bad)
    assert tuned.options_for(W4A4, 256, 512, 16, device) is None
    assert tuned.microseconds("Test GPU", W4A4, 256, 512, 16) is None
    good = {tuned.key(W4A4, 256, 512, 16, "3.6.0"): {"options": OPTIONS, "microseconds": 2.0}}
    tuned.write(tuned.own_file("Test GPU"), "Test GPU", good)
    assert tuned.options_for(W4A4, 256, 512, 16, device) == OPTIONS


def test_options_are_of_the_kernels_form() -> None:
    """Scales of W4A16 come in boxes of a power of two; a plane of W3A16 is 32 bytes wide from two blocks on."""
    wide = OPTIONS | {"BLOCK_N": 192, "SPLIT": 1}
    assert [tuned.accepts(kernel, 4096, wide) for kernel in (W4A4, W4A16)] == [True, False]
    long = wide | {"BLOCK_M": 192, "K_BLOCKS": 1}  # two tensors of sums, which units do not share
    assert tuned.accepts(W4A4, 4096, long)
    assert not tuned.accepts(W4A4, 4096, long | {"SPLIT": 2})
    assert not tuned.accepts(W4A16, 4096, long | {"BLOCK_N": 64})
    narrow = OPTIONS | {"K_BLOCKS": 1}
    assert [tuned.accepts(kernel, 4096, narrow) for kernel in (W4A16, W3A16)] == [True, False]
    assert not tuned.accepts(W4A4, 4096 + 64, OPTIONS)
    assert not tuned.accepts(GemmKernel(3, 64, True, 16, None, True), 4096, OPTIONS)  # has no second kernel
    assert [tuned.accepts(kernel, 4096, tuned.CUBLAS) for kernel in (W4A16, W4A4)] == [True, False]
    assert not tuned.accepts(replace(W4A16, gated=True), 4096, tuned.CUBLAS)


def test_no_candidates_where_no_second_kernel_runs() -> None:
    assert not list(tuned.candidates(W4A4, 4096, 4096 + 64, 16))
    assert not list(tuned.candidates(GemmKernel(3, 64, True, 16, None, True), 4096, 4096, 16))


def test_shipped_tables_are_whole() -> None:
    kernels = {kernel.name: kernel for kernel in (kernels_for(scheme).gemm for scheme in FORMATS.values())}
    for path in (resources.codegen() / "tuned").glob("*.json"):
        for key, entry in tuned.read(path).items():
            assert key.startswith("gemm_")
            assert entry["microseconds"] > 0
            name, shape, _ = key.split(" ", 2)
            assert tuned.accepts(kernels[name], int(shape.partition("x")[2]), entry["options"])
            assert tuned.KEY.fullmatch(key)
