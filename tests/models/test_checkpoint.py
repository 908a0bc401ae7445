from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qspec.errors import InputError
from qspec.models.checkpoint import Checkpoint, load_decoder
from qspec.models.llada import LLADA
from tests.models.layout import (
    TINY,
    Array,
    forward,
    random_weights,
    shapes,
    write_checkpoint,
    write_safetensors,
)

DOWN = "model.transformer.blocks.1.ff_out.weight"


@pytest.fixture
def weights() -> dict[str, Array]:
    return random_weights(TINY)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("change", [{}, {"n_kv_heads": 2}, {"weight_tying": True}, {"include_qkv_bias": True}], ids=str)
def test_a_two_block_checkpoint_gives_the_papers_logits(tmp_path: Path, change: dict[str, Any], shards: int) -> None:
    config = TINY | change
    values = random_weights(config)
    write_checkpoint(tmp_path, config, values, shards)
    ids = np.random.default_rng(3).integers(0, 50, 19)
    expected = forward(config, values, ids)
    for dtype, tolerance in ((torch.float64, 2e-6), (torch.float32, 2e-5)):
        logits = load_decoder(tmp_path, dtype=dtype)(torch.from_numpy(ids)[None]).logits[0].numpy()
        assert logits.dtype == {torch.float64: np.float64, torch.float32: np.float32}[dtype]
        assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


def test_tensors_blocks_and_globals_are_the_stored_ones(tmp_path: Path, weights: dict[str, Array]) -> None:
    write_checkpoint(tmp_path, TINY, weights, shards=2)
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.family, checkpoint.dtype, checkpoint.config) == (LLADA, torch.float32, TINY)
    assert {name: t.shape for name, t in checkpoint.tensors.items()} == shapes(TINY)
    block, rest = checkpoint.block(1), checkpoint.globals()
    assert {f"model.transformer.blocks.1.{name}" for name in block} == {n for n in weights if ".1." in n}
    assert set(rest) == {f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")}
    for name, value in rest.items():
        assert np.array_equal(value.numpy(), weights[name])
    for name, value in block.items():
        assert np.array_equal(value.numpy(), weights[f"model.transformer.blocks.1.{name}"])


def test_block_10_is_not_block_1(tmp_path: Path) -> None:
    config = TINY | {"n_layers": 11, "d_model": 8, "mlp_hidden_size": 8}
    values = random_weights(config)
    write_checkpoint(tmp_path, config, values)
    block = Checkpoint.open(tmp_path).block(1)
    assert len(block) == 9
    assert np.array_equal(block["q_proj.weight"].numpy(), values["model.transformer.blocks.1.q_proj.weight"])


def test_one_block_alone_equals_the_models(tmp_path: Path, weights: dict[str, Array]) -> None:
    write_checkpoint(tmp_path, TINY, weights)
    checkpoint = Checkpoint.open(tmp_path)
    whole, alone = checkpoint.load(dtype=torch.float64), checkpoint.load_block(1, dtype=torch.float64)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert torch.equal(alone(x, whole.context((2, 5))), whole.blocks[1](x, whole.context((2, 5))))
    assert not any(p.requires_grad for p in (*whole.parameters(), *alone.parameters()))


@pytest.mark.parametrize(
    ("stored", "dtype"), [("F16", np.float16), ("F32", np.float32), ("F64", np.float64), ("BF16", None)]
)
def test_every_float_dtype_is_read(tmp_path: Path, weights: dict[str, Array], stored: str, dtype: Any) -> None:
    """bfloat16 is the upper half of a float32."""

    def raw(value: Array) -> bytes:
        return value.astype(dtype).tobytes() if dtype else (value.view(np.uint32) >> 16).astype("<u2").tobytes()

    write_checkpoint(tmp_path, TINY, weights)
    table = {name: (stored, value.shape, raw(value)) for name, value in weights.items()}
    write_safetensors(tmp_path / "model.safetensors", table)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.dtype == checkpoint.tensor(DOWN).dtype == checkpoint.load().embed(torch.tensor([[1]])).dtype
    cut = (weights[DOWN].view(np.uint32) & 0xFFFF0000).view(np.float32)
    expected = weights[DOWN].astype(dtype) if dtype else cut
    assert np.array_equal(checkpoint.tensor(DOWN, torch.float64).numpy(), expected.astype(np.float64))


def assert_refused(folder: Path, what: str, where: str) -> None:
    """Opening or reading the checkpoint gives one InputError with this text, naming this file and tensor."""
    with pytest.raises(InputError) as caught:
        load_decoder(folder)
    assert what in caught.value.what
    assert caught.value.where == where
    assert caught.value.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [DOWN, "model.transformer.ln_f.weight", "model.transformer.wte.weight"])
def test_nan_and_inf_weights_are_refused(tmp_path: Path, weights: dict[str, Array], name: str, bad: float) -> None:
    weights[name].flat[-3] = bad
    files = write_checkpoint(tmp_path, TINY, weights, shards=2)
    assert_refused(tmp_path, f"{files[name]}: tensor {name} holds NaN or Inf", f"{tmp_path / files[name]}: {name}")


def test_values_beyond_the_wanted_dtype_are_refused(tmp_path: Path, weights: dict[str, Array]) -> None:
    weights[DOWN].flat[5] = 1e5
    write_checkpoint(tmp_path, TINY, weights)
    load_decoder(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=rf"tensor {DOWN} does not fit torch.float16"):
        load_decoder(tmp_path, dtype=torch.float16)


def test_a_missing_tensor_is_refused(tmp_path: Path, weights: dict[str, Array]) -> None:
    del weights[DOWN]
    write_checkpoint(tmp_path, TINY, weights)
    assert_refused(tmp_path, f"the checkpoint lacks tensor {DOWN}", f"{tmp_path}: {DOWN}")


def test_several_missing_tensors_are_counted(tmp_path: Path, weights: dict[str, Array]) -> None:
    write_checkpoint(tmp_path, TINY | {"n_layers": 3}, weights)
    first = "model.transformer.blocks.2.q_proj.weight"
    assert_refused(tmp_path, f"the checkpoint lacks tensor {first} (and 8 more)", f"{tmp_path}: {first}")


def test_an_unexpected_tensor_is_refused(tmp_path: Path, weights: dict[str, Array]) -> None:
    name = "model.transformer.blocks.0.q_proj.bias"
    files = write_checkpoint(tmp_path, TINY, weights | {name: np.ones(24, np.float32)}, shards=2)
    assert_refused(
        tmp_path,
        f"{files[name]} holds tensor {name}, which the model does not have",
        f"{tmp_path / files[name]}: {name}",
    )


@pytest.mark.parametrize("shape", [(40, 24), (24, 39), (960,), (24, 40, 1)])
def test_a_wrong_shape_is_refused(tmp_path: Path, weights: dict[str, Array], shape: tuple[int, ...]) -> None:
    weights[DOWN] = np.ones(shape, np.float32)
    files = write_checkpoint(tmp_path, TINY, weights, shards=3)
    assert_refused(
        tmp_path,
        f"{files[DOWN]}: tensor {DOWN} is {list(shape)}, not [24, 40]",
        f"{tmp_path / files[DOWN]}: {DOWN}",
    )


@pytest.mark.parametrize(("stored", "size"), [("I32", 4), ("I8", 1), ("F8_E4M3", 1), ("BOOL", 1)])
def test_a_dtype_that_is_not_floating_is_refused(
    tmp_path: Path, weights: dict[str, Array], stored: str, size: int
) -> None:
    write_checkpoint(tmp_path, TINY, weights)
    write_safetensors(tmp_path / "model.safetensors", weights | {DOWN: (stored, (24, 40), bytes(960 * size))})
    assert_refused(
        tmp_path,
        f"model.safetensors: tensor {DOWN} is stored as {stored}, not as F16, BF16, F32 or F64",
        f"{tmp_path / 'model.safetensors'}: {DOWN}",
    )


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path, weights: dict[str, Array]) -> None:
    write_checkpoint(tmp_path, TINY, weights)
    checkpoint = Checkpoint.open(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"model.safetensors: tensor {DOWN} cannot be read"):
        checkpoint.tensor(DOWN)


def test_opening_reads_no_weights(tmp_path: Path, weights: dict[str, Array]) -> None:
    weights[DOWN].fill(np.nan)
    write_checkpoint(tmp_path, TINY, weights)
    assert Checkpoint.open(tmp_path).tensors[DOWN].bytes == 24 * 40 * 4
