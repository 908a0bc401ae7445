"""DiffusionGemma beside transformers' own code: names, shapes and the logits of its passes, in float64."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from qspec.errors import InputError
from qspec.models.checkpoint import Checkpoint
from qspec.models.decoder import Decoder
from qspec.models.diffusion_gemma import DIFFUSION_GEMMA
from qspec.models.sampler import sample
from qspec.models.samplers.renoise import RenoiseSettings
from tests.models.gemma_layout import (
    CANVAS,
    PUBLISHED,
    PUBLISHED_LAYER,
    VISION,
    canvas_behind,
    config_of,
    decoder_of,
    published,
    tiny,
)
from tests.models.test_renoise import theirs as generated

CLOSE = 1e-5  # transformers computes norms and softmax in float32 even here
CALL = DiffusionGemmaForBlockDiffusion.forward
KEPT = "cache" if "cache" in signature(CALL).parameters else "past_key_values"  # the latter before transformers 5.24


@pytest.fixture(scope="module")
def theirs():
    return tiny()


@pytest.fixture(scope="module")
def ours(theirs) -> Decoder:
    return decoder_of(theirs)


def ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).norm() / expected.norm()) < CLOSE)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("text", [4, 19])  # within the window of 6, and beyond it
def test_text_then_canvas(theirs, ours, text: int, padding: int) -> None:
    """A text is read causally and kept; a canvas behind it is denoised twice, the second time by the first's logits."""
    prompt, tokens = ids(2, text), ids(2, CANVAS, seed=2)
    real = torch.ones(2, text + CANVAS, dtype=torch.bool)
    real[1, : min(padding, text - 2)] = False

    encoded = theirs.model.encoder(input_ids=prompt, attention_mask=real[:, :text].long())
    cache = encoded.past_key_values
    canvas = canvas_behind(ours, prompt, (~real).sum(1), 32)
    hidden = ours.final_norm(canvas.read(ours, text, text + 1))  # of which nothing is behind the text
    assert same(hidden[real[:, :text]], encoded.last_hidden_state[real[:, :text]])

    logits = None
    canvas.begin(text)
    canvas.tokens.copy_(tokens)
    for _ in range(2):
        given = {KEPT: cache, "decoder_input_ids": tokens, "self_conditioning_logits": logits}
        expected = theirs(**given, decoder_attention_mask=real).logits
        logits = ours.finish(canvas.states(ours, 32))
        assert same(logits, expected.double())
        canvas.condition.copy_(ours.told(logits))
    assert float(logits.abs().max()) > 3  # where 30 tanh(z / 30) differs from z


@pytest.mark.parametrize(("first", "size"), [(True, 4), (False, CANVAS), (False, 32)])  # step of a canvas, its tokens
def test_noised_beside_clean(theirs, first: bool, size: int) -> None:
    """One pass over a text twice, noised and clean, gives for each canvas what transformers gives behind the clean text
    before it."""
    canvases, ours = 3, decoder_of(theirs, canvas_length=size)
    clean, noised = ids(2, canvases * size), ids(2, canvases * size, seed=2)
    real = torch.ones_like(clean, dtype=torch.bool)
    logits = None if first else torch.randn(2, canvases * size, 128, dtype=torch.float64)
    soft = None if first else ours.told(logits)
    found = ours.finish(ours.rows_through(torch.cat((noised, clean), 1), ours.noised_context(real), soft))
    for canvas in range(1, canvases):
        own = slice(canvas * size, (canvas + 1) * size)
        before = theirs.model.encoder(input_ids=clean[:, : own.start]).past_key_values
        told = None if first else logits[:, own]
        given = {KEPT: before, "decoder_input_ids": noised[:, own], "self_conditioning_logits": told}
        assert same(found[:, own], theirs(**given).logits.double())


@pytest.mark.parametrize("settings", [RenoiseSettings(20, 9, seed=3), RenoiseSettings(20, 9, t_min=0.05, t_max=0.2)])
def test_generated_texts_are_those_of_transformers(monkeypatch, theirs, ours, settings) -> None:
    """Prompts of 5 and 3, padded in front, beside each prompt alone."""
    prompts = ids(2, 5)
    real = torch.ones_like(prompts)
    real[1, :2] = 0

    found = sample(ours, prompts, real, settings)[:, 5:]
    for row, prompt in enumerate((prompts[:1], prompts[1:, 2:])):
        alone, _ = generated(monkeypatch, theirs, prompt.expand(2, -1), settings)  # random numbers are a row's number's
        assert torch.equal(found[row], alone[row, : settings.length])


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    """A checkpoint in the published layout, in float64."""
    path = tmp_path_factory.mktemp("diffusion_gemma")
    save_file(published(theirs), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config_of(theirs)))
    return path


def test_the_checkpoint_is_read_by_its_own_names(ours, folder) -> None:
    checkpoint = Checkpoint.open(folder)
    state = checkpoint.load().state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    assert {name.split(".")[2] for name in checkpoint.aside} == {"vision_tower", "embed_vision"}
    block = checkpoint.load_block(1).state_dict()
    assert torch.equal(block["experts.5.up_proj.weight"], state["model.decoder.layers.1.experts.5.up_proj.weight"])


def test_a_scalar_of_the_text_that_is_another_than_the_canvas_has_is_an_error(theirs, tmp_path) -> None:
    name = "model.encoder.language_model.layers.2.layer_scalar"
    save_file(published(theirs) | {name: torch.tensor([0.5], dtype=torch.float64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of(theirs)))
    with pytest.raises(InputError, match=f"{name} must be the same as model.decoder.layers.2.layer_scalar"):
        Checkpoint.open(tmp_path)


def test_the_published_model_has_the_published_tensors() -> None:
    """Names of google/diffusiongemma-26B-A4B-it (revision 0f28bc4), as NVIDIA's Megatron Bridge lists them in its
    tests; shapes of transformers' model of that config, on the meta device."""
    shape = DIFFUSION_GEMMA.shape(PUBLISHED)
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**PUBLISHED | {"vision_config": VISION}))
    theirs = {n: tuple(t.shape) for n, t in model.state_dict().items() if n.startswith("model.decoder.")}
    assert DIFFUSION_GEMMA.tensors(shape) == theirs
    layers = {n.split(".layers.")[0] + "." + n.split(".", 4)[4] for n in theirs if ".layers." in n}
    assert layers == {f"model.decoder.{name}" for name in PUBLISHED_LAYER}
    assert len(theirs) == 30 * 21 + 25 + 6  # 21 names of a layer, v of 25, 6 outside
    assert (shape.attentions[0].window, shape.attentions[5].head_width, shape.attentions[5].kv_heads) == (1024, 512, 2)
