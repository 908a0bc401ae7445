"""Every argument of the transformers class is computed, against another way to the same numbers, or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

import qspec.models.hf as hf
from qspec.errors import InputError
from tests.models import dream_layout, layout
from tests.models.dream_layout import TINY_DREAM
from tests.models.layout import TINY, write_checkpoint

IDS = torch.tensor([[5, 9, 47, 3, 30, 12, 47]])
FAMILIES: dict[str, tuple[dict[str, Any], Any]] = {"llada": (TINY, layout), "dream": (TINY_DREAM, dream_layout)}


@pytest.fixture(scope="module", params=["llada", "dream"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config, module = FAMILIES[family]
    folder = tmp_path_factory.mktemp(family)
    write_checkpoint(folder, config, module.random_weights(config))
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64).requires_grad_(False)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def near(found: Tensor, expected: Tensor) -> None:
    """The decoder's rotary tables are float32, numpy's float64."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def alone(family: str, ids: Tensor) -> Tensor:
    """float64 logits [t, vocab] of one row, by the numpy transcription of the published forward pass."""
    config, module = FAMILIES[family]
    return torch.from_numpy(module.forward(config, module.random_weights(config), ids.numpy()))


def test_position_ids_say_where_the_tokens_stand(model: Any) -> None:
    """Tokens in another order, each with its own position, are the same row; all moved by 11 they are too."""
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    expected = model(IDS).logits
    same(model(IDS[:, order], position_ids=order[None]).logits, expected[:, order])
    near(model(IDS, position_ids=torch.arange(7)[None] + 11).logits, expected)
    assert (model(IDS, position_ids=2 * torch.arange(7)[None]).logits - expected).abs().max() > 1e-2
    for wrong in (torch.arange(6)[None], torch.arange(7), torch.arange(7.0)[None]):
        with pytest.raises(ValueError, match="position_ids have shape"):
            model(IDS, position_ids=wrong)


def test_padding_by_dreams_own_conventions(model: Any, family: str) -> None:
    """Its sampler calls m(x, mask, tok_idx), with a mask [b, 1, t, t] of pairs of real tokens, or "full"."""
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    ids = torch.cat((torch.cat((torch.zeros(1, 2, dtype=torch.long), IDS[:, :5]), 1), IDS))
    places = (real.cumsum(-1) - 1).masked_fill(real == 0, 1)
    pairs = torch.logical_and(real[:, None, :, None], real[:, None, None, :])
    logits = model(ids, pairs, places).logits
    near(logits[0, 2:], alone(family, IDS[0, :5]))
    near(logits[1], alone(family, IDS[0]))
    same(model(ids, real).logits[0, 2:], logits[0, 2:])
    same(model(IDS, "full").logits, model(IDS).logits)
    with pytest.raises(ValueError, match="attention_mask is 'causal'"):
        model(IDS, attention_mask="causal")


def test_a_bias_of_log_2_counts_a_token_twice(model: Any) -> None:
    """As the row in which that token stands a second time, at the same position."""
    bias = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    bias[..., 3] = math.log(2)
    twice = model(torch.cat((IDS, IDS[:, 3:4]), 1), position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3]])).logits
    same(model(IDS, attention_bias=bias).logits, twice[:, :7])
    same(model(IDS, attention_mask=bias).logits, twice[:, :7])


def test_a_mask_and_a_bias_hold_together(model: Any) -> None:
    """Keys 5 and 6 hidden, one by the mask and one by the bias: the row of the first five."""
    bias = torch.zeros(1, 1, 7, 7)
    bias[..., 6] = torch.finfo(torch.float32).min
    mask = torch.ones(1, 7, dtype=torch.long)
    mask[:, 5] = 0
    expected = model(IDS[:, :5]).logits
    same(model(IDS, mask, attention_bias=bias).logits[:, :5], expected)
    pairs = torch.ones(1, 1, 7, 7, dtype=torch.bool)
    pairs[..., 5:] = False
    same(model(IDS, attention_bias=pairs).logits[:, :5], expected)
    with pytest.raises(ValueError, match=r"a mask of shape \[1, 7, 7\]"):
        model(IDS, attention_bias=bias[0])


def test_embeddings_in_the_place_of_ids(model: Any) -> None:
    embedded = model.get_input_embeddings().weight[IDS]
    same(model(inputs_embeds=embedded).logits, model(IDS).logits)
    for given in ({}, {"input_ids": IDS, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**given)


def test_the_loss_is_the_cross_entropy_of_each_labelled_token(model: Any, family: str) -> None:
    """By hand: in Dream's layout logits at i predict token i + 1, and the first token is predicted from itself."""
    labels = torch.tensor([[8, -100, 21, -100, -100, -100, 33]])
    logits = alone(family, IDS[0]).numpy()
    total = 0.0
    for place, label in ((0, 8), (2, 21), (6, 33)):
        row = logits[max(0, place - 1) if family == "dream" else place]
        total += np.log(np.exp(row).sum()) - row[label]
    found = model(IDS, labels=labels)
    assert float(found.loss) == pytest.approx(total / 3, abs=1e-5)
    same(found.logits, model(IDS).logits)
    with pytest.raises(ValueError, match=r"labels have shape \[1, 6\], the tokens \[1, 7\]"):
        model(IDS, labels=labels[:, 1:])


def test_hidden_states_are_the_embedding_and_every_blocks_output(model: Any) -> None:
    found = model(IDS, output_hidden_states=True)
    first, second, last = found.hidden_states
    assert model(IDS).hidden_states is None
    same(first, model.get_input_embeddings().weight[IDS])
    context = model.decoder.context(IDS)
    same(second, model.decoder.blocks[0](first, context))
    same(last @ model.get_output_embeddings().weight.T, found.logits)  # behind the final norm


def test_a_tuple_where_no_dict_is_wanted(model: Any) -> None:
    assert isinstance(model(IDS), MaskedLMOutput)
    (logits,) = model(IDS, return_dict=False)
    same(logits, model(IDS).logits)
    loss, logits, states = model(IDS, labels=IDS, output_hidden_states=True, return_dict=False)
    assert (loss.ndim, logits.shape, len(states)) == (0, (1, 7, 50), 3)


def test_logits_of_the_last_positions_alone(model: Any) -> None:
    same(model(IDS, num_logits_to_keep=2).logits, model(IDS).logits[:, -2:])
    assert model(IDS, num_logits_to_keep=0).logits.shape == (1, 7, 50)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"past_key_values": object()}, "past_key_values"),
        ({"use_cache": True}, "use_cache"),
        ({"cache_position": torch.arange(7)}, "cache_position"),
        ({"output_attentions": True}, "output_attentions"),
        ({"token_type_ids": torch.ones(1, 7, dtype=torch.long)}, "token_type_ids"),
    ],
)
def test_what_is_not_computed_is_refused(model: Any, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}.* not supported"):
        model(IDS, **given)


def test_what_nobody_knows_is_refused_and_what_asks_for_nothing_passes(model: Any) -> None:
    with pytest.raises(TypeError, match="head_mask"):
        model(IDS, head_mask=torch.ones(4))
    same(model(IDS, use_cache=False, token_type_ids=torch.zeros_like(IDS)).logits, model(IDS).logits)


# --- configs ---


def load(folder: Path, config: dict[str, Any], weights_of: dict[str, Any], module: Any) -> Any:
    write_checkpoint(folder, config, module.random_weights(weights_of))
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64)


def test_rope_theta_inside_rope_parameters_is_what_the_model_turns_by(tmp_path: Path, family: str) -> None:
    config, module = FAMILIES[family]
    moved = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    for place, extra in enumerate(
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
            {"rope_scaling": {"type": "default", "rope_theta": 100.0}},
            {"rope_theta": 100.0, "rope_scaling": None},
            {"rope_theta": 100.0, "rope_scaling": {"type": "default"}},
        )
    ):
        model = load(tmp_path / str(place), moved | extra, config, module)
        expected = module.forward(config | {"rope_theta": 100.0}, module.random_weights(config), IDS[0].numpy())
        near(model(IDS).logits[0].detach(), torch.from_numpy(expected))
    with pytest.raises(InputError, match=r"rope_parameters\.rope_theta is 100, and rope_theta is 10000"):
        load(tmp_path / "conflict", config | {"rope_parameters": {"rope_theta": 100.0}}, config, module)


def test_two_spellings_of_a_width_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="d_model is 24, and hidden_size says 48"):
        load(tmp_path, TINY | {"hidden_size": 48}, TINY, layout)
    assert hf.LLaDAConfig(**TINY | {"hidden_size": 24}).d_model == 24
