from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import qspec.models.hf as hf
from qspec.errors import InputError
from qspec.models.checkpoint import load_decoder
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES, family_of
from tests.models.layout import TINY, random_weights, shapes, write_checkpoint, write_safetensors

REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("change", [{}, {"n_kv_heads": 2, "include_qkv_bias": True}, {"weight_tying": True}], ids=str)
def test_from_pretrained_gives_the_decoders_logits(
    tmp_path: Path, change: dict[str, Any], shards: int, auto: Any
) -> None:
    config = TINY | change | REMOTE
    write_checkpoint(tmp_path, config, random_weights(config), shards)
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    model = auto.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(model, hf.LLaDAModelLM)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50, (2, 9)))
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits, load_decoder(tmp_path)(ids, mask).logits)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == shapes(config)


def test_save_and_load_keeps_names_and_logits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", TINY, random_weights(TINY))
    AutoModel.from_pretrained(tmp_path / "a", dtype=torch.float32).save_pretrained(tmp_path / "b")
    ids = torch.arange(12)[None]
    assert torch.equal(load_decoder(tmp_path / "b")(ids).logits, load_decoder(tmp_path / "a")(ids).logits)
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {key: saved[key] for key in TINY if TINY[key] is not None} == {
        key: value for key, value in TINY.items() if value is not None
    }


def test_the_model_moves_and_casts_as_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, random_weights(TINY))
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).double()
    ids = torch.arange(6)[None]
    assert model.decoder.embedding.weight.dtype == torch.float64
    assert torch.equal(model(ids).logits, load_decoder(tmp_path, dtype=torch.float64)(ids).logits)
    assert model.get_output_embeddings() is model.decoder.head
    assert len(list(model.parameters())) == len(shapes(TINY))


def test_a_bad_config_is_our_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY | {"n_heads": 5}, random_weights(TINY))
    with pytest.raises(InputError, match="n_heads is 5"):
        AutoModel.from_pretrained(tmp_path)


def test_registration_can_be_repeated() -> None:
    hf.register()
    assert AutoConfig.for_model("llada").__class__ is hf.LLaDAConfig


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    torch.save({name: torch.zeros(shape) for name, shape in shapes(TINY).items()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load_decoder(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", random_weights(TINY))
    load_decoder(tmp_path)


@pytest.mark.parametrize("equal", [True, False])
def test_stored_rotary_tables_and_a_tied_models_own_head_are_none_too_many(tmp_path: Path, equal: bool) -> None:
    config = TINY | {"weight_tying": True}
    weights = random_weights(config)
    head = weights["model.transformer.wte.weight"] + (0 if equal else np.float32(1))
    table = {"model.transformer.blocks.0.rotary_emb.inv_freq": np.ones(3, np.float32)}
    write_checkpoint(tmp_path, config, weights | table | {"model.transformer.ff_out.weight": head})
    if not equal:
        with pytest.raises(InputError, match="differ: other values"):
            AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
        return
    ids = torch.arange(9)[None]
    with torch.no_grad():
        logits = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
    assert torch.equal(logits, load_decoder(tmp_path)(ids).logits)


def test_families_that_cards_load_with_transformers_are_registered() -> None:
    types = {str(config["model_type"]) for config in known_models().values() if family_of(config).hosted}
    assert types == {
        own.model_type
        for own in (*(hf.LLaDAConfig, hf.DreamConfig, hf.SDARConfig, hf.SDARMoeConfig, hf.FastDLLMConfig),)
    }
    assert not FAMILIES["diffusion_gemma"].hosted
