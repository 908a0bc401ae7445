"""What the host hands to the kernels for compute capability 9.0: descriptors, units of work, counters."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from qspec.catalog import GemmKernel
from qspec.kernels.generate import KernelLibrary
from tests.kernels.devices import device_module

pytest.importorskip("triton")
OPTIONS = {"BLOCK_N": 64, "BLOCK_M": 16, "K_BLOCKS": 2, "STAGES": 4, "SPLIT": 2, "CTAS_PER_SM": 2, "K_SLICES": 1}


class Launched:
    """Stands for a kernel: keeps its grid and arguments, by the real one's parameters."""

    def __init__(self, module: ModuleType, kernel: GemmKernel) -> None:
        self.names = getattr(module, f"{kernel.name}_hopper").arg_names
        self.grid: tuple[int, ...] = ()
        self.given: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Launched:
        self.grid = grid
        return self

    def __call__(self, *arguments: Any, **named: Any) -> None:
        self.given = dict(zip(self.names, arguments, strict=False)) | named
        assert set(self.names) <= set(self.given)


@pytest.fixture(autouse=True)
def _a_gpu_of_three_multiprocessors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    properties = SimpleNamespace(multi_processor_count=3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def launched(kernel: GemmKernel, tensors: dict[str, torch.Tensor], **changed: int) -> Launched:
    module = KernelLibrary().module(kernel)
    stand_in = Launched(module, kernel)
    absent = dict.fromkeys(module.HopperTensors._fields)
    module.launch_hopper(stand_in, module.FORMAT, module.HopperTensors(**(absent | tensors)), {**OPTIONS, **changed})
    return stand_in


def test_nibbles_and_codes_are_cut_into_halves_of_blocks() -> None:
    """X [20, 512] int8 in boxes of 64 channels: 8 columns of boxes; W [128, 256] bytes: 4 of 64."""
    x, out = torch.zeros(32, 512, dtype=torch.int8)[:20], torch.zeros(20, 128, dtype=torch.bfloat16)
    tensors = {"x": x, "weights": torch.zeros(128, 256, dtype=torch.uint8), "out": out}
    tensors |= {"activation_scale": torch.zeros(1, 20), "weight_scale": torch.zeros(1, 128)}
    call = launched(GemmKernel(4, None, True, 4, None, True), tensors)
    given = call.given
    assert given["x_desc"].shape == [8, 32, 64]  # all of the rows behind that boxes of 16 reach
    assert given["x_desc"].strides == [64, 512, 1]
    assert given["x_desc"].block_shape == [4, 16, 64]
    assert given["w_desc"].shape == [4, 128, 64]
    assert given["w_desc"].block_shape == [2, 64, 64]
    assert given["out_desc"].shape == [20, 128]
    assert given["out_desc"].block_shape == [16, 64]
    assert [given[name] for name in ("low_desc", "scale_desc", "weight_zero", "bias", "residual")] == [None] * 5
    assert given["activation_scale"] is tensors["activation_scale"]
    assert given["weight_scale"] is tensors["weight_scale"]
    assert (given["M"], given["N"], given["K"], given["units"]) == (20, 128, 512, 8)  # two by two tiles, each split
    assert call.grid == (6,)  # two programs on each of three multiprocessors
    assert (given["partials"].dtype, given["partials"].numel()) == (torch.int32, 4 * 64 * 16 * 2)
    assert given["counters"].dtype == torch.int32
    assert given["counters"].numel() >= 4
    assert given["maxnreg"] == 128  # 65536 registers for two programs of 256 threads
    assert given["enable_fp_fusion"] is False


def test_three_bits_are_two_planes_and_scales_of_groups_come_by_tma() -> None:
    x, out = torch.zeros(16, 512, dtype=torch.bfloat16), torch.zeros(16, 128, dtype=torch.bfloat16)
    weights = torch.arange(192).to(torch.uint8).repeat(128, 1)
    scale, zero = torch.zeros(4, 128, dtype=torch.float16), torch.zeros(4, 64, dtype=torch.uint8)
    tensors = {"x": x, "weights": weights, "weight_scale": scale, "weight_zero": zero, "out": out}
    call = launched(GemmKernel(3, 128, False, 16, None, True), tensors, SPLIT=1)
    given = call.given
    assert given["x_desc"].shape == [8, 16, 64]
    assert given["w_desc"].shape == [128, 128]  # two bits of 512 channels
    assert given["w_desc"].strides == [192, 1]
    assert given["w_desc"].block_shape == [64, 64]
    assert given["low_desc"].shape == [128, 64]
    assert int(given["low_desc"].base[0, 0]) == 128
    assert given["low_desc"].block_shape == [64, 32]
    assert given["scale_desc"].block_shape == [1, 64]
    assert given["weight_scale"] is None
    assert given["activation_scale"] is None
    assert given["weight_zero"] is zero
    assert given["enable_fp_fusion"] is True
    assert given["partials"].numel() == 1
    assert call.grid == (2,)


def test_gated_outputs_have_half_the_channels() -> None:
    x, out = torch.zeros(16, 256, dtype=torch.int8), torch.zeros(16, 64, dtype=torch.float32)
    tensors = {"x": x, "weights": torch.zeros(128, 256, dtype=torch.int8), "out": out}
    tensors |= {"activation_scale": torch.zeros(1, 16), "weight_scale": torch.zeros(1, 128)}
    given = launched(GemmKernel(8, None, True, 8, None, True, "fp8_e4m3", gated=True), tensors).given
    assert given["x_desc"].base.dtype == given["w_desc"].base.dtype == torch.float8_e4m3fn
    assert given["x_desc"].block_shape == [2, 16, 128]
    assert given["w_desc"].block_shape == [2, 64, 128]
    assert given["out_desc"].block_shape == [16, 32]
    assert given["partials"].dtype == torch.float32


def test_counters_are_an_owners_and_are_never_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that was captured with the first ones goes on counting there, whatever is asked for later."""
    counters_of = device_module("counters").counters_of
    device = torch.device("cpu")
    first = counters_of(device, 7, 10)
    assert counters_of(device, 7, 1024) is first
    assert counters_of(device, 8, 10) is not first
    more = counters_of(device, 7, 1025)
    assert more.numel() >= 1025
    assert counters_of(device, 7, 1024) is first
    assert not first.any()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
        counters_of(device, 7, 4096)
    assert counters_of(device, 7, 1025) is more


def test_what_is_not_split_needs_no_counters_of_its_own() -> None:
    """1030 tiles of 16 tokens."""
    x, out = torch.zeros(16 * 1030, 256, dtype=torch.int8), torch.zeros(16 * 1030, 64, dtype=torch.bfloat16)
    tensors = {"x": x, "weights": torch.zeros(64, 256, dtype=torch.int8), "out": out}
    tensors |= {"activation_scale": torch.zeros(1, len(x)), "weight_scale": torch.zeros(1, 64)}
    kernel = GemmKernel(8, None, True, 8, None, True)
    assert launched(kernel, tensors, SPLIT=1).given["counters"].numel() == 1024
    assert launched(kernel, tensors, SPLIT=2).given["counters"].numel() >= 1030
