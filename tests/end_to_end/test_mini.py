"""From recipe to report on a checkpoint that compiles in seconds: the result, its determinism, the ways to fail."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import qspec
from qspec import cli, compiler, numerics, passes, resources, workspace
from qspec.artifact import verify
from qspec.calibrate.tokens import windows
from qspec.compiler import Artifact, find_inputs, read_recipe
from qspec.errors import InputError, MachineError, NumericsError, QspecError
from qspec.evaluate import Measuring, evaluate, evaluate_artifact
from qspec.files import sha256
from qspec.inspect import Inspection, MaskedText, inspect
from qspec.kernels.generate import digest, library
from qspec.kernels.linear import QuantLinear
from qspec.language import load_recipe
from qspec.language.spec import Pass
from qspec.lock import Lock
from qspec.manifest import Manifest
from qspec.models.inputs import value_of
from qspec.models.shards import INDEX
from qspec.origin import find_checkpoint
from qspec.passes.parameters import Gptq, RotateDuquant, Smooth
from qspec.progress import Quiet
from qspec.runtime import load_tokenizer
from tests.end_to_end.conftest import NO_REPORT, Mini, quantized_linears
from tests.end_to_end.hostile import mutated, seal


@pytest.fixture(scope="module")
def compiled(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return qspec.compile(mini.recipe, out=tmp_path_factory.mktemp("out") / "mini", device="cpu")


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the report, which holds timings."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith("report/")}


def test_everything_named_was_quantized_as_planned(compiled: Artifact) -> None:
    model, _ = qspec.load(compiled.path, device="cpu")
    kinds = quantized_linears(model)
    assert len(kinds) == 13
    assert len({id(m) for m in kinds.values()}) == 8  # q, k and v are one product; gate is kept in the first block
    assert type(model.blocks[0].part("mlp.gate")) is torch.nn.Linear
    for module in compiled.plan.modules:
        if module.entry.role.block is not None and str(module.entry.role) != "blocks[0].mlp.gate":
            wanted = 8 if str(module.entry.role) == "blocks[1].mlp.down" else 4
            assert kinds[module.entry.module].kernels.gemm.weight_bits == wanted
            assert kinds[module.entry.module].kernels.gemm.activation_bits == wanted


def test_stored_bytes_are_the_plans(compiled: Artifact) -> None:
    index = json.loads((compiled.path / INDEX).read_text())
    assert index["metadata"]["total_size"] == compiled.plan.bytes_after == compiled.manifest.bytes_after


def test_the_published_layout_is_kept(compiled: Artifact) -> None:
    index = json.loads((compiled.path / INDEX).read_text())["weight_map"]
    modules = {re.sub(r"\.(weight|codes|scale|transform\.\w+)$", "", name) for name in index}
    assert modules == {m.entry.module for m in compiled.plan.modules} | {
        *(f"model.transformer.blocks.{i}.{norm}" for i in (0, 1) for norm in ("attn_norm", "ff_norm")),
        "model.transformer.ln_f",
    }


def test_report_is_the_contracts(compiled: Artifact) -> None:
    report = json.loads((compiled.path / "report" / "report.json").read_text())
    assert report["model"]["standin"] is False
    assert report["execution"].startswith("CPU reference")
    assert {m["metric"] for m in report["metrics"]} == {"nelbo"}
    keys = {"task", "metric", "baseline", "quantized", "drop_percent", "tier", "n", "stderr"}
    assert set(report["metrics"][0]) >= keys
    assert report["bits_per_weight"] == pytest.approx(compiled.plan.bits_per_weight)
    assert report["bits_per_weight_model"] == pytest.approx(compiled.plan.bits_per_weight_model)
    assert report["bytes"] == {"before": compiled.plan.bytes_before, "after": compiled.plan.bytes_after}
    assert all(row["sqnr_db"] > 5 for row in report["layers"] if row["scheme"])
    assert {"outliers", "kernels", "environment", "timings"} <= set(report)


def test_the_reference_is_the_recipe_that_only_rounds(compiled: Artifact, mini: Mini, tmp_path: Path) -> None:
    """The same schemes in a recipe without the other passes: its NELBO is what the report compares with."""
    text = re.sub(r"apply (smooth|rotate_duquant).*\n", "", mini.recipe.read_text()).replace(
        "apply gptq()", "apply rtn()"
    )
    recipe = mini.recipe.with_name("rounded.qs")
    recipe.write_text(text)
    alone = qspec.compile(recipe, out=tmp_path / "rounded", device="cpu").report
    assert alone is not None
    assert alone.reference is None  # it is its own
    assert compiled.report is not None
    found = compiled.report.reference
    assert found is not None
    assert found.bits_per_weight == alone.bits_per_weight < compiled.report.bits_per_weight
    assert found.bits_per_weight_model == alone.bits_per_weight_model
    assert [(one.task, one.quantized, one.items) for one in found.metrics] == [
        (one.task, one.quantized, one.items) for one in alone.metrics
    ]
    assert found.kl == alone.kl
    assert found.metrics[0].baseline == compiled.report.metrics[0].baseline
    assert "Only rounded (RTN), " in (compiled.path / "report" / "report.md").read_text()
    without = evaluate_artifact(compiled.path, files=mini.recipe.parent, how=Measuring(reference=False)).measurements
    assert without.reference is None
    assert [one.quantized for one in without.metrics] == [one.quantized for one in compiled.report.metrics]


def test_load_gives_the_logits_that_were_evaluated(
    compiled: Artifact, mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini.recipe.parent)
    again = evaluate(compiled.path, str(mini.model), device="cpu")
    report = json.loads((compiled.path / "report" / "report.json").read_text())
    for found, wanted in zip(again["metrics"], report["metrics"], strict=True):
        assert found["quantized"] == wanted["quantized"]
        assert found["baseline"] == wanted["baseline"]


def test_inspecting_an_artifact_shows_what_is_quantized(compiled: Artifact, mini: Mini) -> None:
    """The transformed input of a quantized linear, as a hook on the loaded artifact sees it."""
    wanted = MaskedText(str(mini.recipe.parent / "text.txt"), samples=2, length=32, ratios=(0.0, 0.5))
    before, after = (inspect(str(path), wanted, device="cpu") for path in (mini.model, compiled.path))
    assert (before.subject.stage, after.subject.stage) == ("before", "after")
    assert after.input == before.input
    model, _ = qspec.load(compiled.path, device="cpu")
    seen: list[torch.Tensor] = []
    down = model.blocks[0].part("mlp.down")
    assert isinstance(down, QuantLinear)
    prepare = down.prepare
    down.prepare = lambda x: (seen.append(down.transform.apply(value_of(x))), prepare(x))[1]  # type: ignore[method-assign]
    tokens = windows_of(before, mini)
    model(tokens)
    row = next(r for r in after.rows if (r.block, r.input, r.ratio) == (0, "mlp.gated", 0.0))
    assert row.found.peak == pytest.approx(float(seen[0].abs().max()), rel=1e-5)


def windows_of(inspection: Inspection, mini: Mini) -> torch.Tensor:
    """The unmasked tokens that were inspected."""
    text = (mini.recipe.parent / "text.txt").read_text()
    generator = torch.Generator().manual_seed(inspection.input.seed)
    return windows([text], load_tokenizer(mini.model), 640, 2, 32, generator).ids


def test_compiling_twice_gives_the_same_bytes(compiled: Artifact, mini: Mini, tmp_path: Path) -> None:
    again = qspec.compile(mini.recipe, out=tmp_path / "again", device="cpu", options=NO_REPORT)
    assert files(again.path) == files(compiled.path)


def test_calibration_on_rollouts_by_certainty(mini: Mini, tmp_path: Path) -> None:
    """Made anew by the next run, so an interrupted compile goes on in the same bytes; the manifest says what it was."""
    text = mini.recipe.read_text()
    for old, new in (
        (
            'text    file("text.txt")',
            'text    rollouts(prompts = file("text.txt"), prompt = 16, steps = 8, buckets = 4)',
        ),
        ("mask    uniform(0.0, 1.0)", "draws   2\n  weigh   certainty, unmasked 0.5"),
    ):
        assert old in text
        text = text.replace(old, new)
    recipe = mini.recipe.with_name("rollouts.qs")
    recipe.write_text(text)
    out = qspec.compile(recipe, out=tmp_path / "one", device="cpu", options=NO_REPORT)
    record = out.manifest.calibration
    assert (record.text, record.mask) == (
        'rollouts(prompts = file("text.txt"), prompt = 16, steps = 8, buckets = 4, chat = off)', None,
    )  # fmt: skip
    assert (record.samples, record.draws, record.rows, record.length) == (6, 2, 12, 48)
    assert record.weigh == "certainty, masked 1.0, unmasked 0.5"
    again = qspec.compile(recipe, out=tmp_path / "again", device="cpu", options=NO_REPORT)
    assert files(again.path) == files(out.path)
    plain = recipe.with_name("plain.qs")
    plain.write_text(text.replace("  weigh   certainty, unmasked 0.5\n", ""))
    assert find_inputs(read_recipe(plain), device="cpu").tokens.sha256 != record.tokens_sha256


def test_rollouts_fit_a_stand_in(mini: Mini, tmp_path: Path) -> None:
    """A stand-in of 64 tokens: half of them for the prompt, a step a token for the rest; a real model is refused."""
    recipe = tmp_path / "long.qs"
    text = mini.recipe.read_text().replace('file("text.txt")', f'file("{mini.recipe.parent}/text.txt")')
    text = text.replace(
        f'file("{mini.recipe.parent}/text.txt")\n  samples 6',
        f'rollouts(prompts = file("{mini.recipe.parent}/text.txt"), prompt = 40, steps = 50)\n  samples 3',
    )
    recipe.write_text(text.replace("length  48\n  mask    uniform(0.0, 1.0)", "length  2048"))
    with pytest.raises(InputError, match="calibration length 2048 exceeds the model's 64 tokens"):
        find_inputs(read_recipe(recipe), device="cpu")
    standin = tmp_path / "tiny"
    shutil.copytree(mini.model, standin)
    shutil.copy(resources.standin("llada") / "standin.json", standin)
    inputs = find_inputs(read_recipe(recipe), str(standin), device="cpu")
    assert inputs.tokens.ids.shape == (3, 64)
    assert not inputs.tokens.masked[:, :32].any()
    assert inputs.sources.replacements[0] == f"calibration length 2048: 64, the most that {standin} takes"
    assert "prompt = 32, steps = 32, buckets = 8, chat = auto), which fit that length" in inputs.sources.replacements[1]


CPU = ("--device", "cpu", "--no-eval")


def compile_command(mini: Mini, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "qspec", "compile", str(mini.recipe), "--out", str(out), *CPU, *more]


def recorded(work: Path, shard: str) -> bool:
    """Whether an unfinished compile has noted that this shard is whole."""
    progress = work / workspace.PROGRESS
    return progress.exists() and shard in progress.read_text()


def test_killed_and_started_again_ends_in_the_same_bytes(compiled: Artifact, mini: Mini, tmp_path: Path) -> None:
    """SIGKILL after the first whole block; the next run takes it over and the result is the same to the byte."""
    out = tmp_path / "killed"
    process = subprocess.Popen(compile_command(mini, out), stderr=subprocess.DEVNULL)
    work = out.with_name("killed.partial")
    while not recorded(work, "model-00001-of-00004.safetensors") and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists(), "the compile ended before it was killed"
    done = subprocess.run(compile_command(mini, out), capture_output=True, text=True, check=True)
    assert "block 0: taken from the interrupted run" in done.stderr
    assert files(out) == files(compiled.path)


def test_ctrl_c_says_how_to_go_on(mini: Mini, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    process = subprocess.Popen(
        compile_command(mini, out),
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in a shell's background has SIGINT ignored, and its children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    work = out.with_name("interrupted.partial")
    while not list(work.glob("*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)  # until a block is kept: before that there is nothing to go on from
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "finished shards are kept in" in errors
    assert "the same command goes on" in errors
    assert not out.exists()


def test_out_of_memory_says_what_was_kept(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Smooth, "rewrite", exhausted)
    with pytest.raises(MachineError, match=r"out of memory\n  where: 2 finished shards are kept"):
        qspec.compile(mini.recipe, out=tmp_path / "full", device="cpu", options=NO_REPORT)


def test_a_full_disk_is_one_message_and_the_next_run_goes_on(
    compiled: Artifact, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = iter(range(100))
    save = workspace.save_file

    def fail_late(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if next(writes) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(workspace, "save_file", fail_late)
    out = tmp_path / "full"
    with pytest.raises(MachineError, match="the disk is full"):
        qspec.compile(mini.recipe, out=out, device="cpu", options=NO_REPORT)
    assert not out.exists()
    again = qspec.compile(mini.recipe, out=out, device="cpu", options=NO_REPORT)
    assert files(again.path) == files(compiled.path)


def test_killed_at_a_kernel_file_the_next_run_ends_in_the_same_bytes(
    compiled: Artifact, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between writing the file and renaming it, without a chance to tidy up; other threads start over, and say so."""
    out, notes = tmp_path / "killed", []

    class Killed(BaseException):
        pass

    class Notes(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    def compiled_again() -> Artifact:
        return qspec.compile(mini.recipe, out=out, device="cpu", options=NO_REPORT, progress=Notes())

    replace_file = os.replace

    def kill(source: Path, target: Path) -> None:
        if Path(target).parent.name == "kernels":
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise Killed
        replace_file(source, target)

    threads = torch.get_num_threads()
    for count in (threads, threads + 1):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "get_num_threads", lambda count=count: count)
            patched.setattr(os, "replace", kill)
            with pytest.raises(Killed):
                compiled_again()
        assert list((tmp_path / "killed.partial" / "kernels").glob(".*/*.py"))
    monkeypatch.undo()
    change = f"machine.threads is {threads + 1}, before {threads}"
    assert notes == [f"starting over, not where the interrupted run stopped: {change}"]
    assert files(compiled_again().path) == files(compiled.path)


def test_every_flipped_byte_is_exit_3_naming_the_file(
    compiled: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compiled.path, copy)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
        assert cli.main(["generate", str(copy), "--prompt", "x", "--length", "2", "--device", "cpu"]) == 3
        message = capsys.readouterr().err
        assert path.name in message
        assert "Traceback" not in message
        path.write_bytes(whole)
    verify(copy)


def test_an_artifact_of_another_version_runs_kernels_rendered_anew(
    compiled: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel files are whole by the manifest, and other than this version renders them."""
    older = tmp_path / "older"
    shutil.copytree(compiled.path, older)
    content = json.loads((older / "qspec.json").read_text())
    for record in content["kernels"]:
        path = older / record["file"]
        source = f"raise SystemExit\n{path.read_text()}"
        path.unlink()
        del content["files"][record["file"]]
        record["file"] = f"kernels/{record['name']}_{digest(source)}.py"
        (older / record["file"]).write_text(source)
        record["sha256"] = content["files"][record["file"]] = sha256(older / record["file"])
    seal(older, content)
    model, _ = qspec.load(older, device="cpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels = {kernel for linear in quantized_linears(model).values() for kernel in vars(linear.kernels).values()}
    with pytest.warns(UserWarning, match="this version's run in their place"):
        modules = {kernel.name: library(older / "kernels").module(kernel) for kernel in kernels if kernel}
    assert set(modules) == {record["name"] for record in content["kernels"]}
    assert all(Path(str(m.__file__)).is_relative_to(tmp_path / "cache") for m in modules.values())


def test_a_pass_that_changes_the_function_stops_the_compile(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Smooth.rewrite

    def wrong(self: Smooth, block: object, uses: tuple[object, ...]) -> None:
        honest(self, block, uses)  # type: ignore[arg-type]
        uses[0].weight = uses[0].weight * 1.01  # type: ignore[attr-defined]

    monkeypatch.setattr(Smooth, "rewrite", wrong)
    with pytest.raises(NumericsError, match="smooth changed the function of block 0"):
        qspec.compile(mini.recipe, out=tmp_path / "wrong", device="cpu", options=NO_REPORT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RotateDuquant, "rotate_duquant rotates its input in blocks of none, where the plan has (32, 32)"),
        (Gptq, "gptq leaves its weights in floats, where the plan has int4 per channel symmetric clip mse"),
    ],
)
def test_a_pass_that_does_not_do_what_the_plan_has_stops_the_compile(
    wrong: type[Pass], message: str, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = wrong.rewrite
    monkeypatch.setattr(wrong, "rewrite", lambda own, block, uses: honest(own, block, uses[1:]))
    with pytest.raises(QspecError, match=re.escape(message)) as caught:
        qspec.compile(mini.recipe, out=tmp_path / "wrong", device="cpu", options=NO_REPORT)
    assert caught.value.where == "blocks[0].attention.q"


def test_nan_scales_stop_the_compile(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(grouped: torch.Tensor, *_: object) -> torch.Tensor:
        return grouped[..., 0] * float("nan")

    monkeypatch.setattr(numerics, "_ideal", poisoned)
    with pytest.raises(NumericsError, match="NaN"):
        qspec.compile(mini.recipe, out=tmp_path / "nan", device="cpu", options=NO_REPORT)
    assert not (tmp_path / "nan").exists()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and everything that was printed."""
    code = cli.main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out + printed.err


def test_missing_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "recipes/llada_w4a4.qs"
    code, message = run(capsys, "compile", recipe, "--no-standin", "--out", tmp_path / "a")
    assert (code, "is not on this machine, and a stand-in was ruled out" in message) == (3, True)
    code, message = run(capsys, "compile", recipe, "--locked", "--out", tmp_path / "a")
    assert code == 3
    code, message = run(capsys, "compile", recipe, "--model", tmp_path / "nowhere", "--out", tmp_path / "a")
    assert (code, "nowhere" in message) == (3, True)
    assert not (tmp_path / "a").exists()


def test_bundled_stand_ins() -> None:
    spec = load_recipe(resources.recipes() / "llada_w4a4.qs", passes.available()).spec
    several = replace(spec, families=("llada", "other"))
    missing = find_checkpoint(several, None, download=False, standin=True)
    named = find_checkpoint(several, "tiny-llada", download=False, standin=False)
    assert missing.folder == named.folder == resources.standin("llada")
    assert (named.id, named.revision, named.standin) == (missing.id, missing.revision, True)
    assert missing.notice == (
        "GSAI-ML/LLaDA-8B-Instruct is not on this machine: compiling the bundled stand-in tiny-llada instead"
    )
    assert named.notice == "tiny-llada is a bundled stand-in model, not a real checkpoint"
    with pytest.raises(InputError, match="the family other has no stand-in"):
        find_checkpoint(replace(spec, families=("other", "llada")), None, download=False, standin=True)


def test_a_corrupt_checkpoint_names_file_and_tensor(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(mini.model, broken)
    shard = broken / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    code, message = run(capsys, "compile", mini.recipe, "--model", broken, "--out", tmp_path / "a")
    assert (code, shard.name in message) == (3, True)


def test_an_unwritable_output(mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    code, message = run(capsys, "compile", mini.recipe, "--out", tmp_path / "file" / "out", "--no-eval")
    assert (code, "cannot write here" in message) == (3, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    code, message = run(capsys, "compile", mini.recipe, "--out", tmp_path / "mine", "--no-eval")
    assert (code, "not a qspec artifact" in message) == (3, True)


def test_a_place_is_looked_at_before_the_work(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.tex").write_text("precious")
    monkeypatch.setattr(compiler, "find_inputs", work)
    monkeypatch.setattr("qspec.inspect.inspect", work)
    monkeypatch.chdir(tmp_path)
    for command in (
        ("compile", mini.recipe, "--out", "mine"),
        ("compile", mini.recipe, "--out", "."),
        ("inspect", mini.model, "--out", "mine.partial/thesis.tex"),
    ):
        assert run(capsys, *command)[0] in (1, 3), command
    assert [p.name for p in tmp_path.iterdir()] == ["mine.partial"]


def test_another_family(mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "other.qs"
    recipe.write_text(mini.recipe.read_text().replace("family llada", "family dreem"))
    code, message = run(capsys, "check", recipe)
    assert (code, "dreem" in message) == (1, True)


def test_missing_calibration_text(mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "elsewhere.qs"
    shutil.copy(mini.recipe, recipe)
    code, message = run(capsys, "compile", recipe, "--out", tmp_path / "a")
    assert (code, "text.txt" in message) == (3, True)


def test_lock_holds_and_refuses(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    for name in ("mini.qs", "text.txt"):
        shutil.copy(mini.recipe.parent / name, folder / name)
    recipe = folder / "mini.qs"
    code, message = run(capsys, "compile", recipe, "--locked", "--out", tmp_path / "a", "--no-eval")
    assert (code, "there is no lock file" in message) == (3, True)
    assert run(capsys, "lock", recipe, "--device", "cpu")[0] == 0
    assert run(capsys, "compile", recipe, "--locked", *CPU, "--out", tmp_path / "a", "--quiet")[0] == 0
    assert (tmp_path / "a" / "recipe.lock").read_text() == Lock.read(folder / "mini.lock").compiled.text()
    (folder / "text.txt").write_text((folder / "text.txt").read_text().replace("Koso", "Gubur"))
    code, message = run(capsys, "compile", recipe, "--locked", "--device", "cpu", "--out", tmp_path / "b", "--no-eval")
    assert (code, "data.calibration.text.txt.sha256 is" in message) == (3, True)
    shutil.copy(mini.recipe.parent / "text.txt", folder)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    told = f"machine.threads is {threads + 1}, locked {threads}"
    code, message = run(
        capsys, "compile", recipe, "--locked=strict", "--device", "cpu", "--out", tmp_path / "b", "--no-eval"
    )
    assert (code, told in message) == (3, True)
    code, message = run(capsys, "compile", recipe, "--locked", "--device", "cpu", "--out", tmp_path / "b", "--no-eval")
    assert (code, told in message) == (0, True)


def test_gather_reads_no_weights_into_memory(mini: Mini) -> None:
    """Planning a compile must not load the model: everything it holds is small."""
    inputs = find_inputs(read_recipe(mini.recipe), device="cpu")
    assert inputs.tokens.ids.shape == (6, 48)
    assert inputs.plan.block_weights == 2 * (4 * 64 * 64 + 3 * 64 * 192)


def test_manifest_round_trip(compiled: Artifact) -> None:
    manifest = Manifest.read(compiled.path)
    assert manifest == compiled.manifest
    assert {r.transform for r in manifest.modules if r.role == "blocks[0].attention.k"} == {
        "model.transformer.blocks.0.q_proj"
    }


def test_passes_cannot_be_called_without_a_rewrite() -> None:
    with pytest.raises(TypeError, match="Pass defines no rewrite"):
        Pass().rewrite(None, ())


def test_bad_devices(mini: Mini) -> None:
    with pytest.raises(InputError, match="unknown device"):
        qspec.compile(mini.recipe, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="no CUDA GPU"):
            qspec.compile(mini.recipe, device="cuda")


@pytest.mark.slow
def test_every_changed_manifest_is_refused_or_loads(compiled: Artifact, tmp_path: Path) -> None:
    outcomes = resealed(compiled.path, tmp_path / "copy", every=1)
    assert outcomes["refused"] > 2000


def test_a_changed_manifest_is_refused_or_loads(compiled: Artifact, tmp_path: Path) -> None:
    """Every 32nd change: what is sealed anew must still be a manifest, and of this model."""
    outcomes = resealed(compiled.path, tmp_path / "copy", every=32)
    assert outcomes["refused"] > 60
    assert outcomes["loaded"] > 2  # a name or a hash of something else: it decides nothing


def resealed(artifact: Path, copy: Path, every: int) -> Counter[str]:
    """Loads the artifact under changed manifests with digests that fit; raises whatever is not qspec's own error."""
    shutil.copytree(artifact, copy)
    outcomes: Counter[str] = Counter()
    for _, content in islice(mutated(json.loads((copy / "qspec.json").read_text())), 0, None, every):
        seal(copy, content)
        try:
            qspec.load(copy, device="cpu")
            outcomes["loaded"] += 1
        except QspecError:
            outcomes["refused"] += 1
    return outcomes


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        ("mlp.down", {"role": "blocks[0].mlp"}, "of different models"),
        ("mlp.down", {"role": "../x"}, "is no role"),
        ("mlp.down", {"gemm": {"weight_bits": 4}}, "not a kernel of the catalogue"),
        ("attention.k", {"out_features": 128}, "of different models"),
        ("attention.k", {"in_features": 1000}, "not a multiple of 32"),
        ("attention.k", {"merged": "nothing"}, "modules of other kernels"),
        ("attention.k", {"transform": "nothing"}, "another input"),
    ],
)
def test_what_is_wrong_with_a_changed_manifest(
    compiled: Artifact, tmp_path: Path, module: str, change: dict[str, object], message: str
) -> None:
    shutil.copytree(compiled.path, tmp_path / "copy")
    content = json.loads((tmp_path / "copy" / "qspec.json").read_text())
    (record,) = [record for record in content["modules"] if record["role"] == f"blocks[0].{module}"]
    record |= change
    seal(tmp_path / "copy", content)
    with pytest.raises(InputError, match=message):
        qspec.load(tmp_path / "copy", device="cpu")
