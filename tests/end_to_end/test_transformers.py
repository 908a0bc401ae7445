"""An artifact in transformers: the logits of `qspec.load`, every tensor placed, anything changed refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import qspec
import qspec.hf
from qspec.artifact import verify
from qspec.card import model_card
from qspec.compiler import Artifact, find_inputs, read_recipe
from qspec.errors import InputError, UsageError
from qspec.models.hf import LLaDAModelLM
from qspec.models.sampler import sample, settings_for
from qspec.models.tokens import know_tokens
from qspec.runtime import load_tokenizer
from tests.end_to_end.conftest import NO_REPORT, Mini, quantized_linears
from tests.end_to_end.test_every_recipe import BOTH, EXPECTED, short, write_model

IDS = torch.arange(1, 25).reshape(2, 12)
MASK = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
DOWN = "model.transformer.blocks.1.ff_out"


@pytest.fixture(scope="module")
def compiled(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("out") / "mini"
    return qspec.compile(mini.recipe, out=out, device="cpu", options=NO_REPORT)


@pytest.fixture
def copy(compiled: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled.path, tmp_path / "copy"))


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_those_of_load(compiled: Artifact, auto: type[AutoModel], dtype: torch.dtype) -> None:
    model, info = auto.from_pretrained(compiled.path, dtype=dtype, output_loading_info=True)
    ours, _ = qspec.load(compiled.path, device="cpu", dtype=dtype)
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits
        assert torch.equal(logits, ours(IDS, MASK).logits)
    assert logits.shape == (2, 12, 640)
    assert logits.dtype == dtype
    assert not any(info.values())


LOADS = """
import sys
import qspec.hf, torch, transformers

ids = torch.arange(1, 25).reshape(2, 12)
for folder in sys.argv[1:]:
    ours, _ = qspec.load(folder, device="cpu", dtype=torch.bfloat16)
    transformers.AutoModel.from_pretrained(folder)
    assert transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("a").input_ids
    for name in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"):
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        kept = {t.dtype for part, t in model.state_dict().items() if t.is_floating_point() and t.ndim == 2
                and part.endswith(".weight")}
        assert model.config.dtype == torch.bfloat16, (folder, name, model.config.dtype)
        assert kept == {torch.bfloat16}, (folder, name, kept)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, ours(ids).logits), (folder, name)
    print("loaded", folder)
"""


def load_elsewhere(artifacts: list[Path]) -> list[str]:
    """What a process of its own prints of artifacts that were moved, in which only `qspec.hf` was imported and every
    warning is an error; nothing is said of strange tensors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADS, *map(str, artifacts)], capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert not [word for word in ("UNEXPECTED", "MISSING", "MISMATCH", "Unknown") if word in output], output
    return done.stdout.splitlines()


def check_shipped(recipes: list[tuple[str, str]], home: Path) -> None:
    """Each (recipe, family), from a checkpoint that says float32 and names code, neither true of the artifact."""
    targets, untrue = [], {"torch_dtype": "float32", "auto_map": {"AutoModel": "modeling.Model"}}
    for name, family in recipes:
        blocks = 2 if name in BOTH else 4
        model = home / f"{family}{blocks}"
        if not model.exists():
            write_model(model, family, blocks)
            edit(model / "config.json", lambda keys: keys.update(untrue))
        folder = home / f"{family}_{name.replace('/', '_')}"
        folder.mkdir()
        made = qspec.compile(short(name, folder), str(model), folder / "out", "cpu", options=NO_REPORT)
        stored = json.loads((made.path / "config.json").read_text())
        assert stored["dtype"] == "bfloat16"
        assert not {"auto_map", "torch_dtype"} & set(stored)
        targets.append(Path(shutil.copytree(made.path, folder / "elsewhere")))
        shutil.rmtree(made.path)
    assert load_elsewhere(targets) == [f"loaded {target}" for target in targets]


def test_artifacts_of_shipped_recipes_load_by_every_class_after_a_copy(tmp_path: Path) -> None:
    check_shipped([("llada_rtn_w4a4", "llada"), ("paper/rtn_w4a16", "dream")], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"), [*((name, "llada") for name in EXPECTED), *((name, "dream") for name in BOTH)]
)
def test_every_shipped_recipes_artifact_loads_by_every_class_after_a_copy(
    name: str, family: str, tmp_path: Path
) -> None:
    check_shipped([(name, family)], tmp_path)


def test_the_model_holds_what_the_artifact_holds(compiled: Artifact) -> None:
    model = AutoModel.from_pretrained(compiled.path)
    assert isinstance(model, LLaDAModelLM)
    quantized = quantized_linears(model)
    ours, _ = qspec.load(compiled.path, device="cpu")
    assert set(quantized) == set(quantized_linears(ours))
    assert len(quantized) == 13
    assert quantized[DOWN].codes.dtype == torch.int8
    assert quantized[DOWN].codes.shape == (64, 192)
    transforms = {id(m.transform) for m in quantized.values()}
    assert len(transforms) == 2 * 4  # one for each site, shared by its linears
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(t.is_meta for t in model.state_dict().values())
    assert model.is_quantized


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_that_moves_to_the_gpu_and_back(compiled: Artifact) -> None:
    model = AutoModel.from_pretrained(compiled.path, dtype=torch.float32)
    with torch.no_grad():
        before = model(IDS, MASK).logits
        ours, _ = qspec.load(compiled.path, device="cuda", dtype=torch.float32)
        on_gpu = model.to("cuda")(IDS.cuda(), MASK.cuda()).logits
        assert torch.equal(on_gpu, ours(IDS.cuda(), MASK.cuda()).logits)
        assert torch.equal(model.to("cpu")(IDS, MASK).logits, before)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "pattern", ["model-00001-*.safetensors", "model-*-of-00004.safetensors", "kernels/*.py", "README.md", "recipe.qs"]
)
def test_a_changed_file_is_refused(copy: Path, pattern: str) -> None:
    path = sorted(copy.glob(pattern))[-1]
    flip(path)
    with pytest.raises(InputError, match="changed after it was written") as caught:
        AutoModel.from_pretrained(copy)
    assert path.name in str(caught.value)


def test_a_changed_config_is_refused(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(rope_theta=10000.0))
    with pytest.raises(InputError, match="changed after it was written"):
        AutoModel.from_pretrained(copy)


def test_a_config_that_hides_the_quantization_is_refused(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(copy / "config.json", lambda config: config.pop("quantization_config"))
    with pytest.raises(InputError, match=r"tensors are missing, the first is model\.transformer\.blocks\.0"):
        AutoModel.from_pretrained(copy)
    capfd.readouterr()


@pytest.mark.parametrize("change", [{"manifest": "../other.json"}, {"bits": 4}])
def test_another_quantization_config_is_refused(copy: Path, change: dict[str, object]) -> None:
    edit(copy / "config.json", lambda config: config["quantization_config"].update(change))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="not one that qspec wrote"):
        AutoModel.from_pretrained(copy)


def test_a_file_too_many_is_refused(copy: Path) -> None:
    (copy / "extra.py").write_text("")
    with pytest.raises(InputError, match="does not belong to the artifact"):
        AutoModel.from_pretrained(copy)


def test_a_float_checkpoint_is_not_quantized_on_the_way(mini: Mini) -> None:
    with pytest.raises(ValueError, match="require the model to be pre-quantized"):
        AutoModel.from_pretrained(mini.model, quantization_config=qspec.hf.QspecConfig())


def test_saving_is_refused_rather_than_half_done(compiled: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not serializable"):
        AutoModel.from_pretrained(compiled.path).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_config_keeps_its_keys(compiled: Artifact) -> None:
    stored = json.loads((compiled.path / "config.json").read_text())["quantization_config"]
    assert qspec.hf.QspecConfig(**stored).to_dict() == stored


def test_the_model_card_is_sealed_and_says_how_to_load(compiled: Artifact, mini: Mini) -> None:
    text = (compiled.path / "README.md").read_text()
    assert "README.md" in verify(compiled.path).files
    assert "# `mini`" in text
    assert f"| model | `{mini.model}`, revision `main` |" in text
    assert f"| bits per weight | {compiled.manifest.bits_per_weight:.2f} in the blocks, " in text
    assert f" {compiled.manifest.bits_per_weight_model:.2f} in the whole model;" in text
    assert "qspec.load(" in text
    assert "import qspec.hf" in text
    assert "stand-in" not in text


def test_the_model_card_keeps_hostile_names_in_their_place(mini: Mini) -> None:
    inputs = find_inputs(read_recipe(mini.recipe), device="cpu")
    hostile = "a`\n\n<script>alert(1)</script>\n---\n| [x](javascript:1) \u202e" + "b" * 500
    origin = replace(inputs.origin, id=hostile, standin=True)
    text = model_card(inputs.spec, inputs.plan, origin, "1")
    plain = model_card(inputs.spec, inputs.plan, replace(inputs.origin, standin=True), "1")
    assert len(text.splitlines()) == len(plain.splitlines())
    assert "stand-in model `a???<script>alert(1)</script>?---?? [x](javascript:1) ?bbb" in text
    assert "\u202e" not in text
    assert "b" * 201 not in text
    assert f"not from `{mini.model}`" in text


def test_the_model_cards_head_names_licence_and_base_model(mini: Mini, tmp_path: Path) -> None:
    inputs = find_inputs(read_recipe(mini.recipe), device="cpu")
    hub = replace(inputs.origin, id="GSAI-ML/LLaDA-8B-Instruct", folder=tmp_path)
    assert model_card(inputs.spec, inputs.plan, inputs.origin, "1").startswith("---\nlibrary_name: qspec\ntags:\n")
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlicense_link: x\n---\n\nlicense: no\n")
    head = "license: mit\nbase_model: GSAI-ML/LLaDA-8B-Instruct\nbase_model_relation: quantized\n"
    assert model_card(inputs.spec, inputs.plan, hub, "1").startswith(f"---\nlibrary_name: qspec\n{head}tags:\n")
    for text in ("license: mit\n", "---\nlicense: a: b\n---\n", "---\ntags: x\n---\nlicense: mit\n"):
        (tmp_path / "README.md").write_text(text)
        assert "license: " not in model_card(inputs.spec, inputs.plan, hub, "1")


PROMPTS = ["Tom has 3 books", "The river"]


@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModelForCausalLM])
def test_text_is_that_of_load(compiled: Artifact, auto: type[AutoModel]) -> None:
    ours, ours_tokenizer = qspec.load(compiled.path, device="cpu")
    theirs, tokenizer = auto.from_pretrained(compiled.path, dtype=torch.float32), load_tokenizer(compiled.path)
    text = qspec.generate(ours, ours_tokenizer, PROMPTS, length=12, steps=6, block=6)
    assert qspec.generate(theirs, tokenizer, PROMPTS, length=12, steps=6, block=6) == text
    assert any(text)


def test_diffusion_generate_fills_the_canvas_as_the_sampler_does(compiled: Artifact) -> None:
    ours, tokenizer = qspec.load(compiled.path, device="cpu")
    theirs = AutoModelForMaskedLM.from_pretrained(compiled.path, dtype=torch.float32)
    know_tokens(theirs.decoder, tokenizer)
    settings = settings_for(ours.shape, 12, 6, 6)
    ids = sample(ours, IDS[:, :8], MASK[:, :8], settings)
    found = theirs.diffusion_generate(IDS[:, :8], MASK[:, :8], max_new_tokens=12, steps=6, block=6)
    assert torch.equal(found, ids)
    whole = theirs.diffusion_generate(
        IDS[:, :8], MASK[:, :8], 12, 6, 6, return_dict_in_generate=True, output_history=True
    )
    assert torch.equal(whole.sequences, ids)
    assert len(whole.history) == 6
    assert torch.equal(whole.history[-1], ids)
    mask = ours.shape.mask_token
    assert [int((canvas[:, 8:] == mask).sum()) for canvas in whole.history] == [20, 16, 12, 8, 4, 0]
    with pytest.raises(UsageError, match="top_p is not a setting of the llada sampler"):
        theirs.diffusion_generate(IDS[:, :8], top_p=0.9)


def test_an_artifact_of_the_hubs_cache_loads_by_its_id(
    compiled: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `hf download user/mini` leaves it: links to blobs, in a snapshot folder of a commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--user--mini"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(file for file in compiled.path.rglob("*") if file.is_file())):
        shutil.copy(file, home / "blobs" / str(number))
        link = home / "snapshots" / commit / file.relative_to(compiled.path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(home / "blobs" / str(number))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = qspec.load("user/mini", device="cpu")
    ours, _ = qspec.load(compiled.path, device="cpu")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, ours(IDS).logits)
    assert quantized_linears(model)
    with pytest.raises(InputError, match="no such folder"):
        qspec.load("user/other", device="cpu")
