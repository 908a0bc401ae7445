"""Folders that hold something else than an unquantized checkpoint, or one in another form: what is said of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qspec import cli
from qspec.errors import InputError
from qspec.models.checkpoint import Checkpoint, load_decoder
from qspec.models.locate import checkpoint_locate
from qspec.models.shards import INDEX, SINGLE, weight_files
from tests.models.layout import TINY, Array, forward, random_weights, write_checkpoint, write_safetensors

UNQUANTIZED = "give the unquantized checkpoint that it was made from"
HEAD, EMBEDDING = "model.transformer.ff_out.weight", "model.transformer.wte.weight"


def refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder)
    return caught.value


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "something-new"}, "something-new"),
        ({}, "a method that config.json does not name"),
    ],
)
def test_a_quantized_config_is_named_before_any_weight_is_looked_at(
    tmp_path: Path, quantization: dict[str, Any], name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"quantization_config": quantization}))
    error = refused(tmp_path)
    assert error.what == f"the checkpoint is quantized already ({name}); its rounding cannot be undone"
    assert error.hint == UNQUANTIZED


def test_plan_says_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "gptq"}}))
    assert cli.main(["plan", "recipes/llada_w4a4.qs", "--model", str(tmp_path)]) == 3
    assert "quantized already (GPTQ)" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "name"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")])
def test_the_files_of_older_quantizers_are_known(tmp_path: Path, file: str, name: str) -> None:
    write_checkpoint(tmp_path, TINY, random_weights(TINY))
    (tmp_path / file).write_text("{}")
    assert f"quantized already ({name})" in refused(tmp_path).what


@pytest.mark.parametrize(
    ("suffix", "method"),
    [("qweight", "GPTQ or AWQ"), ("weight_packed", "compressed-tensors"), ("weight.absmax", "bitsandbytes")],
)
def test_quantized_tensors_under_a_plain_config_are_known_by_their_names(
    tmp_path: Path, suffix: str, method: str
) -> None:
    weights = random_weights(TINY)
    q = "model.transformer.blocks.0.q_proj"
    if suffix != "weight.absmax":  # bitsandbytes keeps the name `weight` and adds its own beside it
        del weights[f"{q}.weight"]
    write_checkpoint(tmp_path, TINY, weights | {f"{q}.{suffix}": np.ones(3, np.float32)})
    assert refused(tmp_path).hint == f"the weights are quantized already ({method} stores such tensors): {UNQUANTIZED}"


def test_an_artifact_of_our_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, random_weights(TINY))
    (tmp_path / "qspec.json").write_text("{}")
    error = refused(tmp_path)
    assert (error.what, error.hint) == ("this is a model that qspec compiled already", UNQUANTIZED)


def test_an_adapter_names_its_base_and_how_to_merge_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "GSAI-ML/LLaDA-8B-Base"}')
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": np.ones(3, np.float32)})
    error = refused(tmp_path)
    assert error.what == "the folder holds an adapter for 'GSAI-ML/LLaDA-8B-Base', not a whole model"
    assert "merge_and_unload" in (error.hint or "")


def test_a_gguf_as_file_and_in_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "llada-q4_k_m.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"llada-q4_k_m.gguf is a GGUF file, of llama.cpp's own layout"):
        checkpoint_locate(str(file))
    assert "is a GGUF file" in refused(tmp_path).what


def test_a_file_in_place_of_its_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, random_weights(TINY))
    with pytest.raises(InputError, match=r"model.safetensors is a file; a checkpoint is a folder"):
        checkpoint_locate(str(tmp_path / SINGLE))


def test_weights_under_another_name_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    write_safetensors(tmp_path / "consolidated.safetensors", random_weights(TINY))
    assert "consolidated.safetensors is no name of a whole checkpoint" in (refused(tmp_path).hint or "")


# --- forms that are a checkpoint ---


def test_shards_without_an_index_are_the_checkpoint(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    write_checkpoint(tmp_path, TINY, weights, shards=3)
    (tmp_path / INDEX).unlink()
    assert [path.name for path in weight_files(tmp_path)] == [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    ids = np.arange(9) % 40
    logits = load_decoder(tmp_path, dtype=torch.float64)(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.allclose(logits, forward(TINY, weights, ids), rtol=1e-5, atol=1e-6)


def test_a_missing_shard_without_an_index_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, random_weights(TINY), shards=3)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert refused(tmp_path).what == "model-00002-of-00003.safetensors is missing"


def test_shards_of_two_checkpoints_and_a_tensor_in_two_shards(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    write_checkpoint(tmp_path, TINY, weights, shards=2)
    (tmp_path / INDEX).unlink()
    first, second = (tmp_path / f"model-0000{k}-of-00002.safetensors" for k in (1, 2))
    write_safetensors(second, weights)
    assert "stands in model-00001-of-00002.safetensors and again in model-00002-of-" in refused(tmp_path).what
    second.rename(tmp_path / "model-00002-of-00004.safetensors")
    assert "holds shards of 2 and of 4 files" in refused(tmp_path).what
    first.rename(tmp_path / SINGLE)
    assert "holds model.safetensors and model-00001-of-00004.safetensors, and no index" in refused(tmp_path).what


def test_rotary_tables_are_passed_by(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    table = {f"model.transformer.blocks.{n}.rotary_emb.inv_freq": np.ones(3, np.float32) for n in (0, 1)}
    write_checkpoint(tmp_path, TINY, weights | table | {"model.rotary_emb.cos_cached": np.ones(3, np.float32)})
    assert set(Checkpoint.open(tmp_path).tensors) == set(weights)


# --- names and shapes that are not the config's ---


def test_the_hint_says_which_of_the_two_has_more_blocks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY | {"n_layers": 3}, random_weights(TINY))
    assert refused(tmp_path).hint == "config.json asks for 3 blocks, the weights have 2"


def test_the_hint_names_a_trainers_prefix(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, {f"_orig_mod.{name}": w for name, w in random_weights(TINY).items()})
    assert refused(tmp_path).hint == (
        'the names begin with "_orig_mod.", which a trainer put there: save the model that it wraps'
    )


def test_the_hint_on_a_resized_vocabulary_has_both_sizes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, random_weights(TINY | {"embedding_size": 52}))
    assert refused(tmp_path).hint == "config.json gives the vocabulary 50 rows, the weights 52"


def test_a_missing_head_may_be_a_tied_one(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    del weights[HEAD]
    write_checkpoint(tmp_path, TINY, weights)
    assert "if the head is the embedding, config.json must say so" in (refused(tmp_path).hint or "")


# --- tied embeddings ---


def tied(tmp_path: Path, head: Array | None = None) -> dict[str, Array]:
    """A tied checkpoint that stores its head once more, as some tools write it."""
    config = TINY | {"weight_tying": True}
    weights = random_weights(config)
    write_checkpoint(tmp_path, config, weights | {HEAD: weights[EMBEDDING] if head is None else head}, shards=2)
    return weights


def test_an_equal_head_beside_a_tied_embedding_is_accepted(tmp_path: Path) -> None:
    weights = tied(tmp_path)
    assert set(Checkpoint.open(tmp_path).tensors) == set(weights)
    ids = np.arange(9) % 40
    logits = load_decoder(tmp_path, dtype=torch.float64)(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.allclose(logits, forward(TINY | {"weight_tying": True}, weights, ids), rtol=1e-5, atol=1e-6)


def test_an_unequal_head_beside_a_tied_embedding_is_an_error_that_names_both(tmp_path: Path) -> None:
    head = random_weights(TINY | {"weight_tying": True})[EMBEDDING].copy()
    head[49, 23] += 1e-3  # the last value of the last row
    tied(tmp_path, head)
    error = refused(tmp_path)
    assert error.what == f"{HEAD} must be the same as {EMBEDDING}, but they differ: other values"
    assert (error.where or "").endswith(HEAD)


def test_a_tied_head_of_another_shape_is_an_error_that_names_both(tmp_path: Path) -> None:
    tied(tmp_path, np.ones((48, 24), np.float32))
    assert refused(tmp_path).what.endswith("differ: [48, 24], not [50, 24]")
