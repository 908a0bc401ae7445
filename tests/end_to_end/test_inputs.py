"""Checkpoints and texts in the forms in which people have them, through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qspec
from qspec import cli
from qspec.compiler import CompileOptions, find_inputs, read_recipe
from qspec.diagnostics import RecipeError
from qspec.errors import InputError
from qspec.manifest import Manifest
from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.models.shards import INDEX, SINGLE, tensor_table
from qspec.search.run import SearchOptions, search
from tests.end_to_end.conftest import NO_REPORT, Mini
from tests.models.hub import hub_folder

SHORT = """\
qspec 1

recipe short {{
  family llada, dream
  model  "{model}"
}}

calibrate {{
  text    file("{text}")
  samples 4
  length  32
}}

scheme w8 {{
  weights int8 per channel symmetric
}}

layers blocks[*].*     use w8
layers head, embedding keep

apply rtn() on blocks[*].*
"""


def short(mini: Mini, folder: Path, model: Path) -> Path:
    """A recipe that compiles in a second: 8-bit weights, rounded to nearest."""
    recipe = folder / "short.qs"
    recipe.write_text(SHORT.format(model=model, text=mini.recipe.with_name("text.txt")))
    return recipe


def single(mini: Mini, folder: Path, **config: object) -> Path:
    """The mini model's folder with its weights in one file and other keys in its config.json."""
    model = folder / "model"
    shutil.copytree(mini.model, model)
    tensors = {name: t for shard in sorted(model.glob("*.safetensors")) for name, t in load_file(shard).items()}
    for path in (*model.glob("*.safetensors"), model / INDEX):
        path.unlink()
    save_file(tensors, model / SINGLE)
    old = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(old | config))
    return model


def test_a_tied_model_with_its_head_stored_twice_compiles(mini: Mini, tmp_path: Path) -> None:
    model = single(mini, tmp_path, weight_tying=True)
    tensors = load_file(model / SINGLE)
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"].clone()
    save_file(tensors, model / SINGLE)
    made = qspec.compile(short(mini, tmp_path, model), out=tmp_path / "out", device="cpu", options=NO_REPORT)
    assert "model.transformer.ff_out.weight" not in tensor_table(made.path)
    ids = torch.arange(20)[None]
    found, wanted = (qspec.load(path, device="cpu")[0](ids).logits for path in (made.path, model))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # int8


def test_a_folder_as_dream_is_published_goes_through_the_commands(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vocab.json, merges.txt and added tokens alone; the artifact has a tokenizer.json, and no code is asked for."""
    model = hub_folder(tmp_path / "hub")
    config = json.loads((model / "config.json").read_text()) | {"hidden_size": 64, "intermediate_size": 96}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    (model / "config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    torch.manual_seed(0)
    save_file(Decoder(DREAM, DREAM.shape(config)).state_dict(), model / SINGLE)
    recipe, out, text = short(mini, tmp_path, model), tmp_path / "out", mini.recipe.with_name("text.txt")

    def run(*arguments: object) -> str:
        code = cli.main([*map(str, arguments), "--device", "cpu"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    run("lock", recipe)
    run("compile", recipe, "--out", out, "--no-eval", "--locked")
    generated = [run("generate", path, "--prompt", "Tom has 3", "--length", 4) for path in (model, out)]
    assert all(generated)
    for path in (model, out):
        run("inspect", path, "--text", text, "--samples", 1, "--length", 16, "--ratios", 0, "--out", tmp_path / "seen")
    tokenizer = qspec.load(out, device="cpu")[1]
    assert tokenizer.encode("<|mask|>") == [2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert {"tokenizer.json", "chat_template.jinja"} < json.loads((out / "qspec.json").read_text())["files"].keys()

    (model / "merges.txt").write_text((model / "merges.txt").read_text() + "\n")  # the same merges in another file
    code = cli.main(["compile", str(recipe), "--out", str(out), "--no-eval", "--locked", "--device", "cpu"])
    assert (code, "tokenizer.merges.txt is" in capsys.readouterr().err) == (3, True)


def test_a_lock_that_is_not_there_is_known_before_anything_is_looked_for(tmp_path: Path) -> None:
    recipe = tmp_path / "a.qs"
    recipe.write_text(SHORT.format(model="owner/nobody", text="none.txt"))
    with pytest.raises(InputError, match="there is no lock file"):
        qspec.compile(recipe, model=str(tmp_path / "nowhere"), options=CompileOptions(locked=True))


def test_what_cannot_be_measured_is_known_before_anything_is_quantized(mini: Mini, tmp_path: Path) -> None:
    recipe = short(mini, tmp_path, mini.model)
    (tmp_path / "held.txt").write_text("too short")
    recipe.write_text(recipe.read_text() + '\nevaluate {\n  nelbo on file("held.txt")\n}\n')
    with pytest.raises(InputError, match=r"the text has \d tokens, fewer than 8"):
        find_inputs(read_recipe(recipe), device="cpu")


def test_a_budget_that_is_none_is_known_before_a_search_looks_for_its_model(tmp_path: Path) -> None:
    recipe = tmp_path / "a.qs"
    recipe.write_text(SHORT.format(model="owner/nobody", text="none.txt"))
    for asked in (SearchOptions(budget="four bits"), SearchOptions(sweep=["3 bits", "some"])):
        with pytest.raises(RecipeError):
            search(recipe, model=str(tmp_path / "nowhere"), options=asked)


def test_too_little_text_is_said_while_compiling_in_the_manifest_and_in_the_report(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row's length of text and a little more, in chat format, under a template that adds an end to each talk."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(mini.model, model)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}<|endoftext|>")
    recipe = short(mini, tmp_path, model)
    talk = {"messages": [{"role": "user", "content": "Tom has 3 books and buys 4 more. The river is the Koso."}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(talk) + "\n")
    text = recipe.read_text().replace(
        f'file("{mini.recipe.with_name("text.txt")}")', 'file("chat.jsonl", field = "messages")'
    )
    recipe.write_text(text.replace("samples 4", "samples 128").replace("length  32", "length  24"))
    assert cli.main(["compile", str(recipe), "--out", str(out), "--device", "cpu"]) == 0
    tokenizer = qspec.load(out, device="cpu")[1]
    tokens = len(tokenizer.encode(talk["messages"][0]["content"] + "<|endoftext|>", add_special_tokens=False))
    record = Manifest.read(out).calibration
    assert (record.distinct, record.drawn) == (tokens, 128 * 24)
    said = f"its rows draw 3,072 tokens and hold {tokens} distinct ones"
    assert said in capsys.readouterr().err
    arguments = ("--text", tmp_path / "short.txt", "--length", 16, "--samples", 9, "--out", tmp_path / "seen")
    (tmp_path / "short.txt").write_text("Tom has 3 books and buys 4 more.")
    assert cli.main(["inspect", str(model), *map(str, arguments), "--ratios", "0", "--device", "cpu"]) == 0
    assert "the text is too short: its rows draw 144 tokens" in capsys.readouterr().err
    report = out / "report"
    assert said in json.loads((report / "report.json").read_text())["calibration"]["repetition"]
    for page in ("report.md", "report.html"):
        assert said in (report / page).read_text()
