"""Probes and trials against what a plain float model gives, computed here in another way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec import numerics
from qspec.compiler import CompileOptions, find_inputs, read_recipe
from qspec.errors import InputError
from qspec.evaluate.forward import MaskedRow
from qspec.models.decoder import Decoder
from qspec.runtime import load_tokenizer
from qspec.search.engine import Engine
from qspec.search.jobs import Errors, Fisher, Noise, Probe, Trial
from qspec.search.rows import facts, search_rows
from qspec.search.space import ProbeTarget
from tests.hub_tasks import put
from tests.search.conftest import Mini, search_recipe

QKV = ProbeTarget(1, ("attention.q", "attention.k", "attention.v"))
DOWN = ProbeTarget(1, ("mlp.down",))
WORDS = 600  # of the tokenizer; the embedding has 640 rows, and an id without a word has no probability


def engine_for(recipe: Path) -> Engine:
    return Engine(find_inputs(read_recipe(recipe), device="cpu", options=CompileOptions(evaluate=False)))


@pytest.fixture(scope="module")
def rounding(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine whose quantizer is rounding to nearest: anybody can do that."""
    return engine_for(search_recipe(mini, tmp_path_factory.mktemp("rtn"), quantizer="rtn"))


def logits(model: Decoder, ids: Tensor) -> Tensor:
    """log p of the tokenizer's words."""
    return model(ids).logits[..., :WORDS].double().log_softmax(-1)


def kl(engine: Engine, model: Decoder, rows: Sequence[MaskedRow]) -> float:
    """Mean over rows of the mean over masked positions of KL(unquantized || model), a row at a time."""
    found = []
    for row in rows:
        ids = row.tokens.masked_fill(row.masked, engine.model.shape.mask_token)[None]
        p, q = logits(engine.model, ids)[0, row.masked], logits(model, ids)[0, row.masked]
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(found) / len(found)


def rounded_model(engine: Engine, schemes: dict[str, str]) -> Decoder:
    """The float model with the weights of these roles (of weight-only schemes) rounded to nearest."""
    model = engine.inputs.checkpoint.load("cpu", torch.float32)
    for module in engine.space.plan.modules:
        name = schemes.get(str(module.entry.role))
        if name is not None and module.entry.role.block is not None:
            linear = model.blocks[module.entry.role.block].part(module.entry.role.part)
            fmt = engine.space.plan.spec.schemes[name].weights
            linear.weight = torch.nn.Parameter(numerics.quantize_weight(linear.weight, fmt).dequantize(), False)
    return model


def test_a_probe_is_the_loss_of_its_linears_alone(rounding: Engine) -> None:
    found = rounding.run(Probe(1, "w2", (QKV, DOWN)))
    for target in (QKV, DOWN):
        model = rounded_model(rounding, {f"blocks[1].{part}": "w2" for part in target.parts})
        assert found[str(target)]["mean"] == pytest.approx(
            kl(rounding, model, search_rows(rounding.inputs).probes), rel=1e-3
        )
    assert found[str(DOWN)]["mean"] > 0


def test_a_trial_is_the_loss_of_the_whole_layout(rounding: Engine) -> None:
    roles = [str(m.entry.role) for m in rounding.space.plan.modules if m.entry.role.block is not None]
    schemes = {role: "w2" if role.endswith("down") else "w4" for role in roles}
    found = rounding.run(Trial(tuple(schemes.items())))
    rows = search_rows(rounding.inputs).trials
    assert found["mean"] == pytest.approx(kl(rounding, rounded_model(rounding, schemes), rows), rel=1e-3)
    assert len(found["rows"]) == len(rows) == 2 * len(search_rows(rounding.inputs).probes)
    assert sum(found["rows"]) / len(rows) == pytest.approx(found["mean"])


GSM8K = [("Tom has 2 hens and buys 3.", "2+3=5 #### 5"), ("Ann has 9 eggs and eats 4 of them.", "9-4=5 #### 5")]


def test_a_task_loses_where_its_answers_are_masked(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-log p of the true tokens: of the layout, less that of the unquantized model; prompts are visible."""
    items = [{"question": question, "answer": answer} for question, answer in GSM8K]
    put(tmp_path / "data", {"openai/gsm8k": {f"main/{split}.jsonl": items for split in ("train", "test")}})
    monkeypatch.setenv("QSPEC_DATA", str(tmp_path / "data"))
    engine = engine_for(search_recipe(mini, tmp_path, "loss task gsm8k", quantizer="rtn"))
    tokenizer = load_tokenizer(mini.model)
    rows = search_rows(engine.inputs)
    assert rows.measure == "nelbo"
    assert len(rows.probes) == len(rows.trials) == 2 * len(GSM8K)  # draws; there are no more items than these
    for row, (question, answer) in zip(rows.probes, [one for one in GSM8K for _ in range(2)], strict=True):
        assert tokenizer.decode(row.tokens.tolist()) == f"Question: {question}\nAnswer: {answer}"
        prompt = len(tokenizer.encode(f"Question: {question}\nAnswer:", add_special_tokens=False))
        assert not row.masked[:prompt].any()
        assert row.masked[prompt:].any()
    schemes = {str(m.entry.role): "w2" for m in engine.space.plan.modules if m.entry.role.block is not None}
    model, expected = rounded_model(engine, schemes), []
    for row in rows.trials:
        ids = row.tokens.masked_fill(row.masked, engine.model.shape.mask_token)[None]
        lost = logits(engine.model, ids)[0, row.masked] - logits(model, ids)[0, row.masked]
        expected.append(float(lost.gather(1, row.tokens[row.masked][:, None]).mean()))
    assert engine.run(Trial(tuple(schemes.items())))["rows"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_task_that_needs_code_to_run_is_refused(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"task_id": "x/0", "prompt": "def f():\n", "canonical_solution": "  0", "test": "", "entry_point": "f"}
    put(tmp_path, {"openai/openai_humaneval": {"openai_humaneval/test.jsonl": [row]}})
    monkeypatch.setenv("QSPEC_DATA", str(tmp_path))
    with pytest.raises(InputError, match="a search cannot lose on task humaneval: its score needs model-written code"):
        engine_for(search_recipe(mini, tmp_path, "loss task humaneval", quantizer="rtn"))


def test_a_trial_does_not_depend_on_the_trials_before(rounding: Engine) -> None:
    """Blocks that are alike are taken over from the trial before."""
    roles = [str(m.entry.role) for m in rounding.space.plan.modules if m.entry.role.block is not None]
    first = Trial(tuple((role, "w4") for role in roles))
    second = Trial(tuple((role, "w2" if role.startswith("blocks[1]") else "w4") for role in roles))
    third = Trial(tuple((role, "w2" if role.startswith("blocks[0]") else "w4") for role in roles))
    fresh = [engine_for(Path(rounding.inputs.recipe)).run(job) for job in (second, third)]
    rounding.run(first)
    assert [rounding.run(second), rounding.run(third)] == fresh


def test_keeping_everything_loses_nothing(rounding: Engine) -> None:
    roles = [str(m.entry.role) for m in rounding.space.plan.modules if m.entry.role.block is not None]
    assert abs(rounding.run(Trial(tuple((role, None) for role in roles)))["mean"]) < 1e-9


def test_errors_are_those_of_the_outputs(rounding: Engine) -> None:
    """Of `down` in the last block: sum ||x (W^ - W)^T||^2 / sum ||x W^T||^2."""
    found = rounding.run(Errors(1, "w2", (DOWN,)))[str(DOWN)]
    block = rounding.model.blocks[1]
    seen: list[Tensor] = []
    hook = block.part("mlp.down").register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0]))
    for row in search_rows(rounding.inputs).probes:
        rounding.model(row.tokens.masked_fill(row.masked, rounding.model.shape.mask_token)[None])
    hook.remove()
    x = torch.cat([one.reshape(-1, one.shape[-1]) for one in seen]).double()
    weight = block.part("mlp.down").weight.detach()
    fmt = rounding.space.plan.spec.schemes["w2"].weights
    change = (numerics.quantize_weight(weight, fmt).dequantize() - weight).double()
    expected = float((x @ change.T).square().sum() / (x @ weight.double().T).square().sum())
    assert found == pytest.approx(expected, rel=1e-4)


def test_second_order_and_noise_agree_with_the_loss_where_it_is_small(rounding: Engine) -> None:
    """At 4 bits on a random model the KL is quadratic in what rounding changes, but for drawn tokens and noise."""
    forward = rounding.run(Probe(1, "w4", (QKV, DOWN)))
    fisher = rounding.run(Fisher(1, "w4", (QKV, DOWN)))
    slopes = rounding.run(Noise(1, (QKV, DOWN)))
    errors = rounding.run(Errors(1, "w4", (QKV, DOWN)))
    for target in map(str, (QKV, DOWN)):
        assert 0.3 < fisher[target]["mean"] / forward[target]["mean"] < 3
        assert 0.3 < slopes[target]["mean"] * errors[target] / forward[target]["mean"] < 3


def test_a_result_does_not_depend_on_the_jobs_before(searched: Path) -> None:
    jobs = [Probe(0, "w4", (ProbeTarget(0, ("mlp.down",)),)), Noise(1, (DOWN,)), Fisher(1, "w2", (DOWN,))]
    first, second = engine_for(searched), engine_for(searched)
    forwards = [first.run(job) for job in jobs]
    backwards = [second.run(job) for job in reversed(jobs)]
    assert forwards == backwards[::-1]


def test_what_is_kept_is_found_whatever_the_threads_of_the_caller(searched: Path) -> None:
    """Jobs compute in one thread each."""
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        inputs = find_inputs(read_recipe(searched), device="cpu", options=CompileOptions(evaluate=False))
        found.append(facts(inputs, search_rows(inputs)))
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_buckets_average_to_the_mean(rounding: Engine) -> None:
    found = rounding.run(Probe(1, "w2", (DOWN,)))[str(DOWN)]
    ratios = rounding.rows.ratios
    counts = [sum(k / 5 < r <= (k + 1) / 5 for r in ratios) for k in range(5)]
    pairs = zip(found["buckets"], counts, strict=True)
    assert sum(b * n for b, n in pairs if n) / len(ratios) == pytest.approx(found["mean"])
    assert [b is None for b in found["buckets"]] == [n == 0 for n in counts]
