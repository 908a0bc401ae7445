"""From text to Spec: values, defaults, params, bases, the order of passes; expectations written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qspec import passes, resources
from qspec.data import texts
from qspec.diagnostics import RecipeError, Source
from qspec.errors import InputError
from qspec.formats import Clip, Granularity
from qspec.language import load_recipe, load_source
from qspec.language.presets import PRESETS
from qspec.language.spec import (
    TASKS,
    TEXTS,
    Calibration,
    Emit,
    Evaluation,
    FileText,
    Gate,
    MaskDistribution,
    ModelRef,
    NamedText,
    NelboRequest,
    Rollouts,
    TaskRequest,
    Weighting,
)
from qspec.models.config import read_json
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES
from qspec.plan import make_plan
from tests.language.fakes import APPLY, HEAD, PASSES, ROOT, RULES, SCHEME, Gptq, Smooth, codes, load, recipe

RECIPES = sorted((ROOT / "recipes").glob("*.qs"))


def test_defaults() -> None:
    spec = load(recipe()).spec
    assert (spec.name, spec.families, spec.model) == (
        "r",
        ("llada",),
        ModelRef("GSAI-ML/LLaDA-8B-Instruct", "main"),
    )
    assert spec.calibrate == Calibration(
        NamedText("wikitext2"), 128, 2048, MaskDistribution("uniform", 0.0, 1.0), 1, Weighting(1.0, 1.0, False), 0
    )
    assert spec.evaluate == Evaluation((), ())
    assert spec.emit == Emit(("sm_90",), ("full_sequence",))


def test_the_main_recipe() -> None:
    spec = load_recipe(ROOT / "recipes" / "llada_w4a4.qs", passes.available(), (), FAMILIES).spec
    w4a4 = spec.schemes["w4a4"]
    assert w4a4.label == "W4A4"
    assert (w4a4.weights.number.name, w4a4.weights.granularity, w4a4.weights.clip) == (
        "int4", Granularity("channel"), Clip("mse"),
    )  # fmt: skip
    assert w4a4.activations is not None
    assert (w4a4.activations.granularity, w4a4.activations.symmetric, w4a4.activations.clip) == (
        Granularity("token"), True, Clip("ratio", 0.9),
    )  # fmt: skip
    assert [(r.selector.text, r.scheme.name if r.scheme else None) for r in spec.rules] == [
        ("blocks[*].{attention,mlp}.*", "w4a4"), ("blocks[-3..-1].mlp.down", "w8a8"), ("head, embedding", None),
    ]  # fmt: skip
    assert [use.text for use in spec.passes] == [
        "apply smooth(alpha = 0.6) on blocks[*].*",
        "apply rotate_duquant(block = 128, steps = 256) on blocks[*].*",
        "apply gptq(damp = 0.01, order = activation) on blocks[*].*",
    ]
    assert spec.evaluate.nelbo == (NelboRequest(NamedText("wikitext2"), 64),)
    assert spec.evaluate.tasks[1:] == (
        TaskRequest("gsm8k", 4, 256, 256, 32, None), TaskRequest("humaneval", 0, 512, 512, 32, None),
    )  # fmt: skip
    assert spec.emit == Emit(("sm_90", "sm_80"), ("block_decode", "full_sequence"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_have_no_diagnostics_and_flatten_to_themselves(path: Path) -> None:
    known = passes.available()
    loaded = load_recipe(path, known, (), FAMILIES)
    assert loaded.warnings == ()
    assert load(loaded.spec.text).spec.rules == loaded.spec.rules
    again = path.parent / "again.qs"
    assert load_source(Source(str(again), loaded.spec.text), known, (), FAMILIES).spec == loaded.spec


def test_calibration_and_evaluation() -> None:
    more = (
        '\ncalibrate {\n  text file("a b.jsonl", field = "body")\n  samples 3 length 64 seed 9\n  mask fixed(0.25)\n}\n'
        '\nevaluate {\n  nelbo on "c4"\n  nelbo on file("x.txt") samples 2\n'
        "  task mmlu { limit 10 }\n  task gsm8k { shots 2 length 64 steps 32 block 16 }\n}\n"
    )
    spec = load(recipe(more)).spec
    assert spec.calibrate == Calibration(
        FileText("a b.jsonl", "body"), 3, 64, MaskDistribution("fixed", 0.25, 0.25), seed=9
    )
    assert spec.evaluate.nelbo == (NelboRequest(NamedText("c4"), 64), NelboRequest(FileText("x.txt"), 2))
    assert spec.evaluate.tasks == (TaskRequest("mmlu", 5, limit=10), TaskRequest("gsm8k", 2, 64, 32, 16))
    assert load(spec.text).spec == spec


def test_gates() -> None:
    wanted = '  nelbo on "c4"\n  nelbo on file("x.txt")\n  task gsm8k\n'
    gates = '  require nelbo loss <= 2 %\n  require nelbo on file("x.txt") loss <= 0.5 %\n'
    gates += "  require gsm8k loss <= 3 points\n"
    spec = load(recipe(f"\nevaluate {{\n{wanted}{gates}}}\n")).spec
    assert spec.evaluate.gates == (
        Gate("nelbo", 2, "%"),
        Gate("nelbo", 0.5, "%", FileText("x.txt")),
        Gate("gsm8k", 3, "points"),
    )
    assert load(spec.text).spec == spec
    assert spec.evaluate.limited(3).gates == spec.evaluate.gates


def test_a_gate_on_a_task_whose_name_is_in_quotes() -> None:
    wanted = '  task "mmlu_pro-x"\n  task gsm8k\n'
    gates = '  require "mmlu_pro-x" loss <= 3 points\n  require "gsm8k" loss <= 1 %\n'
    spec = load(recipe(f"\nevaluate {{\n{wanted}{gates}}}\n")).spec
    assert spec.evaluate.gates == (Gate("mmlu_pro-x", 3, "points"), Gate("gsm8k", 1, "%"))
    assert 'require "mmlu_pro-x" loss <= 3 points' in spec.text
    assert "require gsm8k loss <= 1 %" in spec.text
    assert load(spec.text).spec == spec
    near, other = 'did you mean `"mmlu_pro-x"`?', 'add a line such as `task "boolq"`'
    for written, hint in (('"mmlu_pro"', near), ("boolq", other)):
        with pytest.raises(RecipeError) as caught:
            load(recipe(f"\nevaluate {{\n{wanted}  require {written} loss <= 3 points\n}}\n"))
        (problem,) = caught.value.diagnostics
        assert (problem.message, problem.hint) == (f"`require {written}`: nothing of that name is measured", hint)


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("uniform(0.1, 0.9)", MaskDistribution("uniform", 0.1, 0.9)),
        ("grid(0, 1)", MaskDistribution("grid", 0.0, 1.0)),
        ("prefix(0.25, 1)", MaskDistribution("prefix", 0.25, 1.0)),
        ("fixed(0.5)", MaskDistribution("fixed", 0.5, 0.5)),
        ("none", MaskDistribution("none", 0.0, 0.0)),
    ],
)
def test_masks(text: str, mask: MaskDistribution) -> None:
    spec = load(recipe(f"\ncalibrate {{\n  mask {text}\n}}\n")).spec
    assert spec.calibrate.mask == mask
    assert load(spec.text).spec == spec


@pytest.mark.parametrize(
    ("text", "weigh", "written"),
    [
        ("masked 2", Weighting(2.0, 1.0), "masked 2.0, unmasked 1.0"),
        ("unmasked 0.5, masked 1", Weighting(1.0, 0.5), "masked 1.0, unmasked 0.5"),
        ("certainty", Weighting(1.0, 1.0, True), "certainty, masked 1.0, unmasked 1.0"),
        ("unmasked 0, certainty", Weighting(1.0, 0.0, True), "certainty, masked 1.0, unmasked 0.0"),
    ],
)
def test_weights(text: str, weigh: Weighting, written: str) -> None:
    spec = load(recipe(f"\ncalibrate {{\n  draws 3\n  weigh {text}\n}}\n")).spec
    assert (spec.calibrate.weigh, spec.calibrate.rows) == (weigh, 384)
    assert f"\n  weigh   {written}\n" in spec.text
    assert spec.calibrate.runs_model == weigh.certainty
    assert load(spec.text).spec == spec


def test_rollouts() -> None:
    spec = load(recipe("\ncalibrate {\n  text rollouts()\n}\n")).spec
    assert (spec.calibrate.text, spec.calibrate.mask) == (Rollouts(NamedText("wikitext2"), 64, 64, 8), None)
    assert spec.calibrate.runs_model
    more = (
        '\nparam n = 16\n\ncalibrate {\n  text rollouts(buckets = 4, prompts = file("p.jsonl", field = "q"),'
        "\n    prompt = 8, steps = $n,\n  )\n  draws 4\n}\n"
    )
    spec = load(recipe(more), {"n": "32"}).spec
    assert spec.calibrate.text == Rollouts(FileText("p.jsonl", "q"), 8, 32, 4)
    assert spec.calibrate.source == FileText("p.jsonl", "q")
    assert load(spec.text).spec == spec


def test_rollouts_take_the_place_of_a_bases_masked_text(tmp_path: Path) -> None:
    masked, rollouts = "\ncalibrate {\n  mask fixed(0.5)\n}\n", "\ncalibrate {\n  text rollouts()\n}\n"
    write(tmp_path, "masked.qs", recipe(masked))
    write(tmp_path, "rollouts.qs", recipe(rollouts))
    mine = 'qspec 1\n\nextends "{}"\n\nrecipe mine {{\n  model "m"\n}}\n{}'
    path = write(tmp_path, "mine.qs", mine.format("masked.qs", rollouts))
    assert load_recipe(path, PASSES, (), FAMILIES).spec.calibrate == Calibration(Rollouts(), mask=None)
    again = write(tmp_path, "again.qs", mine.format("mine.qs", ""))
    assert load_recipe(again, PASSES, (), FAMILIES).spec.calibrate == Calibration(Rollouts(), mask=None)
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, "bad.qs", mine.format("rollouts.qs", masked)), PASSES, (), FAMILIES)
    assert [d.code for d in caught.value.diagnostics] == ["QS060"]


@pytest.mark.parametrize(
    ("operands", "weights", "activations"),
    [
        ("weights int4 per channel", "int4 per channel symmetric", None),
        ("weights int(4) per group 64 asymmetric", "int4 per group 64 asymmetric", None),
        ("weights int8 per channel clip none activations none", "int8 per channel symmetric", None),
        ("weights int8 per channel\n activations int4 per group 128 asymmetric clip 0.85", "int8 per channel symmetric",
         "int4 per group 128 asymmetric clip 0.85"),
    ],
)  # fmt: skip
def test_operands(operands: str, weights: str, activations: str | None) -> None:
    spec = load(recipe(scheme=f"\nscheme w8a8 {{\n  {operands}\n}}\n")).spec
    scheme = spec.schemes["w8a8"]
    assert str(scheme.weights) == weights
    assert (str(scheme.activations) if scheme.activations else None) == activations
    assert load(spec.text).spec == spec


def test_passes_get_typed_parameters() -> None:
    apply = "\napply smooth() on blocks[*].*\napply gptq(damp = 1e-2, order = natural, block = 64) on blocks[*].*\n"
    spec = load(recipe(apply=apply)).spec
    assert [use.params for use in spec.passes] == [Smooth(0.5), Gptq(0.01, "natural", 64)]
    assert spec.passes[1].text == "apply gptq(damp = 1e-2, order = natural, block = 64) on blocks[*].*"
    assert load(recipe(apply="\napply rtn on blocks[*].*\n")).spec.passes[0].text == "apply rtn() on blocks[*].*"


def test_tasks_have_the_settings_of_their_presets() -> None:
    text = (
        recipe()
        + """
evaluate {
  task mmlu
  task gsm8k { shots 8  length 512  steps 512 }
  task "lambada_openai" { limit 5 }
}
"""
    )
    spec = load(text).spec
    mmlu, gsm8k, other = spec.evaluate.tasks
    assert (mmlu.shots, mmlu.length, mmlu.steps, mmlu.block) == (5, 256, 256, 32)
    assert (gsm8k.shots, gsm8k.length, gsm8k.steps, gsm8k.block) == (8, 512, 512, 32)
    assert (other.name, other.shots, other.length, other.limit) == ("lambada_openai", None, 256, 5)
    assert load(spec.text).spec == spec
    assert 'task "lambada_openai" {' in spec.text


def test_names_that_the_data_knows() -> None:
    assert set(TEXTS) == set(texts.TEXTS)
    assert set(TASKS) == set(PRESETS)


# --- params ---

PARAM_HEAD = HEAD.replace("qspec 1\n", "qspec 1\n\nparam bits = 8 in 2..8\nparam a = 0.5\nparam o = natural\n", 1)
PARAM_SCHEME = SCHEME.replace("weights     int8", "weights     int($bits)")
PARAM_APPLY = "\napply smooth(alpha = $a) on blocks[*].*\napply gptq(order = $o) on blocks[*].*\n"
PARAMS = recipe(head=PARAM_HEAD, scheme=PARAM_SCHEME, apply=PARAM_APPLY)


def test_params_stand_for_their_values() -> None:
    spec = load(PARAMS).spec
    assert spec.schemes["w8a8"].weights.number.name == "int8"
    assert spec.passes[0].text == "apply smooth(alpha = 0.5) on blocks[*].*"
    assert "param" not in spec.text
    assert "$" not in spec.text


def test_set_changes_them() -> None:
    spec = load(PARAMS, {"bits": "4", "a": "1", "o": "activation"}).spec
    assert spec.schemes["w8a8"].weights.number.name == "int4"
    assert spec.passes[0].params == Smooth(1.0)
    assert spec.passes[1].params == Gptq(order="activation")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bits": "9"}, ["QS015"]),
        ({"bits": "four"}, ["QS015"]),
        ({"bits": "4.0"}, ["QS015"]),
        ({"bitz": "4"}, ["QS014"]),
        ({"o": "no word"}, ["QS015"]),
        ({"o": "sideways"}, ["QS025"]),
        ({"a": "7"}, ["QS025"]),
        ({"a": "1e99999"}, ["QS015"]),
    ],
)
def test_bad_settings(settings: dict[str, str], expected: list[str]) -> None:
    assert codes(PARAMS, settings) == expected


# --- extends ---


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_extends(tmp_path: Path) -> None:
    base_more = "\ncalibrate {\n  samples 16\n  seed    3\n}\n\nevaluate {\n  task mmlu\n  task gsm8k { shots 1 }\n}\n"
    write(
        tmp_path,
        "bases/base.qs",
        recipe(base_more, head=HEAD.replace("qspec 1\n", "qspec 1\n\nparam n = 1\n", 1)),
    )
    path = write(
        tmp_path,
        "mine.qs",
        'qspec 1\n\nextends "bases/base.qs"\n\nparam n = 32\n\n'
        'recipe mine {\n  model "other"\n}\n\ncalibrate {\n  samples $n\n}\n'
        "\nscheme w8a8 {\n  weights int8 per group 128\n}\n\nlayers blocks[0].mlp.down keep\n\n"
        "apply gptq() on blocks[*].*\n\nevaluate {\n  task gsm8k { shots 4 }\n}\n",
    )
    loaded = load_recipe(path, PASSES, (), FAMILIES)
    spec = loaded.spec
    assert (spec.name, spec.families, spec.model.id) == ("mine", ("llada",), "other")
    assert (spec.calibrate.samples, spec.calibrate.seed) == (32, 3)
    assert spec.schemes["w8a8"].label == "W8A16"
    assert [r.text for r in spec.rules] == ["layers blocks[*].* use w8a8", "layers blocks[0].mlp.down keep"]
    assert [u.name for u in spec.passes] == ["gptq"]
    assert [(t.name, t.shots) for t in spec.evaluate.tasks] == [("mmlu", 5), ("gsm8k", 4)]
    assert load(spec.text).spec == spec
    assert set(loaded.sources) == {str(path), str(tmp_path / "bases/base.qs")}


def test_a_chain_is_bounded_and_circles_are_found(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path, f"b{i}.qs", f'qspec 1\n\nextends "b{i + 1}.qs"\n')
    write(tmp_path, "b12.qs", recipe())
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "b0.qs", PASSES)
    assert [d.code for d in caught.value.diagnostics] == ["QS013"]
    write(tmp_path, "x.qs", 'qspec 1\n\nextends "y.qs"\n')
    write(tmp_path, "y.qs", 'qspec 1\n\nextends "x.qs"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "x.qs", PASSES)
    assert [d.code for d in caught.value.diagnostics] == ["QS013"]


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "none.qs", PASSES)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path, PASSES)


# --- families ---

OTHER = replace(LLADA, name="other", parts={**LLADA.parts, "mlp.down": "down_proj"}, blocks="model.layers")


def test_a_recipe_for_several_families() -> None:
    families = {"llada": LLADA, "other": OTHER}
    text = recipe().replace("family llada", "family other, llada")
    spec = load_source(Source("r.qs", text), PASSES, (), families).spec
    assert spec.families == ("other", "llada")
    assert "\n  family other, llada\n" in spec.text
    assert load_source(Source("r.qs", spec.text), PASSES, (), families).spec == spec


def test_what_is_wrong_for_several_families_is_said_once() -> None:
    text = recipe(rules="\nlayers blocks[*].mpl.* use w8a8\n").replace("family llada", "family other, llada")
    with pytest.raises(RecipeError) as caught:
        load_source(Source("r.qs", text), PASSES, (), {"llada": LLADA, "other": OTHER})
    assert [d.code for d in caught.value.diagnostics] == ["QS030"]


def test_the_checkpoint_decides_which_family_applies() -> None:
    spec = load(recipe()).spec
    shape = LLADA.shape(read_json(resources.standin("llada") / "config.json", 1 << 20))
    assert make_plan(replace(spec, families=("other", "llada")), LLADA, shape, standin=True).family == "llada"
    with pytest.raises(InputError, match="for the family other or more, the checkpoint is llada") as caught:
        make_plan(replace(spec, families=("other", "more")), LLADA, shape, standin=True)
    assert caught.value.hint == "add llada to `family` in the recipe, or give a checkpoint of other or more"


# --- order ---


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["smooth() on blocks[*].*", "rotate_duquant() on blocks[*].*", "gptq() on blocks[*].*"], []),
        (["rtn() on blocks[*].attention.*", "gptq() on blocks[*].mlp.*"], []),
        (["rtn() on blocks[*].*", "smooth() on blocks[*].*"], ["QS050"]),
        (
            [
                "rtn() on blocks[*].mlp.*",
                "smooth() on blocks[*].attention.*",
                "rtn() on blocks[*].attention.*",
            ],
            [],
        ),
        (["rotate_duquant() on blocks[*].*", "smooth() on blocks[*].*", "rtn() on blocks[*].*"], ["QS050"]),
        (["rtn() on blocks[*].*", "rtn() on blocks[*].mlp.down"], ["QS050"]),
        (["rtn() on blocks[0..15].*", "gptq() on blocks[16..31].*"], []),
        (["rtn() on blocks[0..-2].*", "gptq() on blocks[-1].*"], []),
        (["rtn() on blocks[0..-2].*", "gptq() on blocks[-2..-1].*"], ["QS050"]),
        (["rtn() on blocks[0..-2].*"], ["QS051"]),
        (["rtn() on blocks[1..-1].*"], ["QS051"]),
        (['rtn() on module(".*")'], []),
    ],
)
def test_order_and_coverage(lines: list[str], expected: list[str]) -> None:
    apply = "\n" + "".join(f"apply {line}\n" for line in lines)
    assert codes(recipe(rules="\nlayers blocks[*].* use w8a8\n", apply=apply)) == expected


def test_the_message_says_which_line_to_move_where() -> None:
    apply = "\napply rotate_duquant() on blocks[*].*\napply gptq() on blocks[*].*\napply smooth() on blocks[*].*\n"
    with pytest.raises(RecipeError) as caught:
        load(recipe(apply=apply))
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.hint) == ("QS050", "move this line above `rotate_duquant`")


def test_without_families_only_the_text_is_checked() -> None:
    text = recipe(rules="\nlayers blocks[*].mpl.* use w8a8\n").replace("family llada", "family other")
    assert load_source(Source("r.qs", text), PASSES).spec.families == ("other",)


def test_parts_of_the_recipe_are_the_ones_above() -> None:
    assert recipe() == HEAD + SCHEME + RULES + APPLY
