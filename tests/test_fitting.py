"""What a recipe's sizes say of a model that they do not fit, by plan and compile alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qspec import cli
from qspec.diagnostics import Source
from qspec.errors import InputError
from qspec.language import load_source
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES
from qspec.passes import available
from qspec.plan import Plan, make_plan
from tests.language.fakes import load, recipe
from tests.models.layout import LLADA_8B, TINY, random_weights, write_checkpoint

SCHEME = "scheme s {{\nweights {weights}\nactivations {activations}\n}}\nlayers {layers} use s\n"


def plan(weights: str, activations: str = "none", layers: str = "blocks[*].*", ffn: int = 11008) -> Plan:
    """LLaDA's 4096 channels, and an MLP of LLaMA's 11008 = 2^8 43."""
    text = recipe(SCHEME.format(weights=weights, activations=activations, layers=layers))
    return make_plan(load(text).spec, LLADA, replace(LLADA.shape(LLADA_8B), ffn=ffn))


def refused(*arguments: str, **more: object) -> InputError:
    with pytest.raises(InputError) as caught:
        plan(*arguments, **more)  # type: ignore[arg-type]
    return caught.value


def test_a_group_that_does_not_divide_names_the_layers_and_the_sizes_that_do() -> None:
    error = refused("int4 per group 512 symmetric")
    assert error.what == "weights per group 512 do not fit `blocks[*].mlp.down` (11008 input channels)"
    assert error.hint == (
        "write `per group 256` (all its layers take 8, 16, 32, 64, 128, 256), "
        "or give `blocks[*].mlp.down` another scheme, or keep"
    )
    assert (error.where or "").endswith("scheme s")


def test_every_kind_of_layer_that_fails_is_named() -> None:
    """60 divides neither 4096 nor 9632 = 2^5 301; what divides both is 32."""
    error = refused("int4 per group 60 symmetric", ffn=9632)
    kinds = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up")
    named = ", ".join(f"`blocks[*].{kind}` (4096 input channels)" for kind in kinds)
    assert error.what == f"weights per group 60 do not fit {named}, `blocks[*].mlp.down` (9632 input channels)"
    assert (error.hint or "").startswith("write `per group 32` (all its layers take 8, 16, 32)")


def test_groups_of_activations_are_looked_at_too() -> None:
    error = refused("int4 per group 128 symmetric", "int8 per group 512 symmetric")
    assert error.what.startswith("activations per group 512 do not fit `blocks[*].mlp.down`")


def test_layers_of_other_schemes_do_not_count() -> None:
    plan("int4 per group 512 symmetric", layers="blocks[*].attention.*")


def test_what_a_search_offers_is_looked_at_before_it_starts() -> None:
    search = "search {\noffer w8a8, g on blocks[*].*\nbudget 4 bits\n}\n"
    text = recipe(f"{search}scheme g {{\nweights int4 per group 512 symmetric\n}}\n")
    with pytest.raises(InputError, match=r"weights per group 512 do not fit `blocks\[\*\]\.mlp\.down`"):
        make_plan(load(text).spec, LLADA, replace(LLADA.shape(LLADA_8B), ffn=11008))


def test_channels_that_no_kernel_packs_are_named() -> None:
    error = refused("int8 per channel symmetric", ffn=11000)
    assert error.what == "no kernel takes `blocks[*].mlp.down` (11000 input channels): not a multiple of 32"
    assert error.hint == "keep them: `layers blocks[*].mlp.down keep`"


def test_plan_and_compile_refuse_a_calibration_longer_than_the_model_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real model of 1,024 tokens under a recipe of 2,048; a stand-in gets shorter rows, and says so."""
    model = tmp_path / "model"
    config = TINY | {"max_sequence_length": 1024, "d_model": 128, "mlp_hidden_size": 256}
    write_checkpoint(model, config, random_weights(config))
    said = []
    for command in ("plan", "compile"):
        assert cli.main([command, "recipes/llada_w8a8.qs", "--model", str(model)]) == 3
        said.append(capsys.readouterr().err)
    assert "calibration length 2048 exceeds the model's 1024 tokens" in said[0]
    assert said[0] == said[1]
    assert cli.main(["plan", "recipes/llada_w8a8.qs", "--model", "tiny-llada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"]["length"] == 256


def rotated(apply: str, **sizes: int) -> Plan:
    text = recipe(
        SCHEME.format(
            weights="int4 per channel symmetric", activations="int4 per token symmetric", layers="blocks[*].*"
        ),
        apply=f"\napply {apply} on blocks[*].*\napply rtn() on blocks[*].*\n",
    )
    spec = load_source(Source("r.qs", text), available(), {}, FAMILIES).spec
    return make_plan(spec, LLADA, replace(LLADA.shape(LLADA_8B), **sizes))


def test_a_rotation_that_does_not_fit_names_all_layers_and_what_does() -> None:
    """128 divides neither 9632 = 2^5 301 nor, of 31 heads of 96, 2976 = 2^5 93."""
    with pytest.raises(InputError) as caught:
        rotated("rotate_duquant()", ffn=9632, heads=31, kv_heads=31, head_width=96)
    kinds = "`blocks[*].attention.o` (2976 input channels), `blocks[*].mlp.down` (9632 input channels)"
    assert caught.value.what == f"`rotate_duquant` rotates blocks of 128, which do not fit {kinds}"
    assert caught.value.hint == (
        "write `rotate_duquant(block = 32)`, which fits all its layers, "
        "or leave `blocks[*].attention.o` and `blocks[*].mlp.down` out of it"
    )
    rotated("rotate_duquant(block = 32)", ffn=9632)


@pytest.mark.parametrize("ffn", [11008, 1184, 13824, 14336])
def test_quarot_fits_every_width_that_kernels_take(ffn: int) -> None:
    plan = rotated("quarot(heads = across)", ffn=ffn)
    down = plan.module("blocks[3].mlp.down")
    assert down is not None
    assert all(ffn % block == 0 for block in down.rotations)
