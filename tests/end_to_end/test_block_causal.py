"""Block-causal models through the commands: calibrated and measured on noised blocks behind clean ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import qspec
import qspec.hf
from qspec import cli
from qspec.calibrate.rollouts import record
from qspec.compiler import find_inputs, read_recipe
from qspec.data import TextData
from qspec.errors import InputError
from qspec.evaluate.forward import MaskedRow, batches, hidden_at_masks, log_probabilities
from qspec.inspect.measure import MaskedText, inspect, nested_masks
from qspec.language.spec import Rollouts
from qspec.models.decoder import Decoder
from qspec.models.family import Family
from qspec.models.fast_dllm import FAST_DLLM
from qspec.models.operations import AttentionContext
from qspec.models.registry import FAMILIES
from qspec.models.sampler import BlockSettings, sample
from qspec.models.sdar import SDAR
from qspec.models.shards import SINGLE
from tests.end_to_end.conftest import DUQUANT, GPTQ, RTN, SMOOTH, W4A4, W4A16, W8A8, Mini, one_scheme
from tests.models.block_layout import TINY_FAST, TINY_SDAR
from tests.models.hub import hub_folder
from tests.models.test_block_causal import tiny
from tests.models.test_block_sampler import logits
from tests.models.test_experts import tiny as tiny_mixture

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 1024}
LENGTH = 30  # of calibration rows: no whole number of blocks
CONFIGS = {"sdar": TINY_SDAR | {"head_dim": 32}, "fast_dllm": TINY_FAST | {"bd_size": 8}}


def checkpoint(name: str, folder: Path) -> Path:
    """A random one as the hub has them: vocab.json, merges.txt, a chat template; no tokenizer.json."""
    folder = hub_folder(folder / "model")
    config = CONFIGS[name] | SIZES
    config |= {"mask_token_id": 2, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("Question: {{ messages[-1].content }} Answer:")
    torch.manual_seed(0)
    family = FAMILIES[name]
    save_file(Decoder(family, family.shape(config), dtype=torch.bfloat16).state_dict(), folder / SINGLE)
    return folder


@pytest.mark.parametrize(
    ("family", "scheme", "passes"),
    [
        ("sdar", W4A4, f"{SMOOTH}\napply {DUQUANT}"),
        ("fast_dllm", W4A16, GPTQ),
        pytest.param("sdar", W8A8, RTN, marks=pytest.mark.slow),
        pytest.param("fast_dllm", W4A4, f"{SMOOTH}\napply {DUQUANT}", marks=pytest.mark.slow),
    ],
    ids=["sdar-w4a4", "fast_dllm-w4a16", "sdar-w8a8", "fast_dllm-w4a4"],
)
def test_a_folder_of_the_hub_goes_through_the_commands(
    mini: Mini,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    scheme: str,
    passes: str,
) -> None:
    model = checkpoint(family, tmp_path)
    path, out = one_scheme(model, mini.text, scheme, passes, length=LENGTH), model.with_name("out")

    def run(*arguments: object) -> str:
        code = cli.main([*map(str, arguments), "--device", "cpu"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    run("compile", path, "--out", out)
    manifest = json.loads((out / "qspec.json").read_text())
    assert manifest["calibration"]["length"] == 30
    assert len(manifest["modules"]) == 2 * 7 + 2
    assert all(module["gemm"] for module in manifest["modules"] if module["role"].startswith("blocks"))
    (nelbo,) = json.loads((out / "report" / "report.json").read_text())["metrics"]
    assert 0 < nelbo["baseline"] < 12
    assert abs(nelbo["quantized"] - nelbo["baseline"]) < 0.5
    assert "rows of 30 tokens, noised and clean, 360 in all" in cli_plan(path, capsys)
    ids = torch.arange(40, 60)[None]
    found, wanted = (qspec.load(folder, device="cpu")[0](ids).logits for folder in (out, model))
    assert float((found - wanted).norm() / wanted.norm()) < {W4A16: 0.3, W8A8: 0.05, W4A4: 1.0}[scheme]
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, found)
    (again,) = json.loads(run("eval", out, "--model", model, "--json", "--quiet"))["metrics"]
    assert (again["baseline"], again["quantized"]) == (nelbo["baseline"], nelbo["quantized"])
    monkeypatch.setattr("sys.stdin", io.StringIO("Tom has 3\n"))
    assert run("chat", out, "--length", 8)
    for folder in (model, out):
        assert run("generate", folder, "--prompt", "Tom has 3", "--length", 8, "--threshold", 0.5)
    assert {"tokenizer.json", "chat_template.jinja"} < manifest["files"].keys()


def cli_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["plan", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("family", CONFIGS)
def test_calibration_rows_are_a_noised_and_a_clean_text(mini: Mini, tmp_path: Path, family: str) -> None:
    model = checkpoint(family, tmp_path)
    inputs = find_inputs(read_recipe(one_scheme(model, mini.text, W8A8, RTN, length=LENGTH)), device="cpu")
    ids, masked = inputs.tokens.ids, inputs.tokens.masked
    assert ids.shape == masked.shape == inputs.tokens.weight.shape == (6, 60)
    noised, clean = ids.chunk(2, dim=1)
    assert torch.equal(noised, clean.masked_fill(masked[:, :30], 2))
    assert not masked[:, 30:].any()
    assert 0.2 < float(masked[:, :30].float().mean()) < 0.8


@pytest.mark.parametrize(("kind", "family"), [("sdar", SDAR), ("fast_dllm", FAST_DLLM)])
def test_rollouts_are_passes_of_the_sampler_behind_finished_blocks(kind: str, family: Family) -> None:
    """Blocks of 4, prompts of 6, 11 to write: each block of a row is one that the sampler computed, or has no mask."""
    _, _, decoder = tiny(kind, 4)
    passes: set[tuple[int, tuple[int, ...]]] = set()
    through = decoder.through

    def watched(ids: torch.Tensor, context: AttentionContext, kept: object = None) -> torch.Tensor:
        assert isinstance(context.tokens, torch.Tensor)
        passes.update((int(context.tokens[-4]), tuple(row[-4:])) for row in ids.tolist())  # behind a clean block
        return through(ids, context, kept)  # type: ignore[arg-type]

    decoder.through = watched  # type: ignore[method-assign, assignment]
    prompts = torch.randint(2, 40, (3, 6), generator=torch.Generator().manual_seed(1))
    recorded = record(decoder, prompts, Rollouts(prompt=6, steps=11, buckets=4), 17, draws=4, seed=0)
    assert recorded.finished is not None
    for row, (ids, finished) in enumerate(zip(recorded.ids.tolist(), recorded.finished.tolist(), strict=True)):
        text = sample(decoder, prompts[row // 4 : row // 4 + 1], None, BlockSettings(11, 11))[0].tolist()
        assert finished == text
        assert ids[:6] == text[:6]
        assert all(token in (47, wanted) for token, wanted in zip(ids, text, strict=True))
        for start in range(4, 16, 4):
            own = tuple(ids[start : start + 4])
            assert 47 not in own or (start, own) in passes
        share = ids.count(47) / 11
        assert float(recorded.ratio[row]) == pytest.approx(share)
    counts = [[ids[start : start + 4].count(47) for start in (8, 12)] for ids in recorded.ids.tolist()]
    if not decoder.shape.shift:  # buckets 0 to 3 of a block of four masks: 1 to 4 of them
        assert counts == [[1, 1], [2, 2], [3, 3], [4, 4]] * 3
    else:  # three masks behind the block's first token: shares 1/8, 3/8, 5/8, 7/8 are nearest to 1, 1, 2 and 3 of 3
        assert counts == [[1, 1], [1, 1], [2, 2], [3, 3]] * 3
    assert decoder.family is family


def test_rollouts_calibrate_block_causal_models(mini: Mini, tmp_path: Path) -> None:
    path = one_scheme(checkpoint("sdar", tmp_path), mini.text, W8A8, RTN, length=LENGTH)
    rollouts = f'text rollouts(prompts = file("{mini.text}"), prompt = 8, steps = STEPS, buckets = 2, chat = off)'
    whole = path.read_text().replace(f'text    file("{mini.text}")', rollouts, 1)
    path.write_text(whole.replace("STEPS", "11"))
    tokens = find_inputs(read_recipe(path), device="cpu").tokens
    noised, finished = tokens.ids.chunk(2, dim=1)
    assert tokens.ids.shape == (6, 60)
    assert torch.equal(noised, finished.masked_fill(tokens.masked[:, :30], 2))
    assert not tokens.masked[:, :8].any()
    path.write_text(whole.replace("STEPS", "3"))
    with pytest.raises(InputError, match="length 22 is not a multiple of steps 3"):
        find_inputs(read_recipe(path), device="cpu")


@pytest.mark.parametrize("family", CONFIGS)
def test_inspect_shows_noised_tokens_behind_clean_blocks(mini: Mini, tmp_path: Path, family: str) -> None:
    """The input of gate in the second block, token by token, behind clean blocks alone: the largest is the report's."""
    model = checkpoint(family, tmp_path)
    wanted = MaskedText(str(mini.text), samples=2, length=20, ratios=(0.6,))
    found = inspect(str(model), wanted, device="cpu")
    (row,) = [r for r in found.rows if (r.block, r.input, r.positions) == (1, "mlp.input", "all")]
    decoder, tokenizer = qspec.load(model, device="cpu")
    masks = nested_masks(read(wanted.text), tokenizer, decoder, wanted)
    largest, size = 0.0, decoder.shape.block
    gate = decoder.blocks[1].part("mlp.gate")
    seen: list[torch.Tensor] = []
    gate.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for ids, masked in zip(masks.ids, masks.masked[0], strict=True):
        for start in range(0, 20, size):
            noised = ids[start : start + size].masked_fill(masked[start : start + size], 2)
            decoder(torch.cat((ids[:start], noised))[None])
            largest = max(largest, float(seen[-1][0, start:].abs().max()))
    assert row.found.peak == pytest.approx(largest, rel=1e-4)


def read(path: str) -> TextData:
    return TextData("", (Path(path),), (Path(path).read_text(),))


def softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["sdar", "fast_dllm", "llada2.2"])
def test_masked_tokens_are_rated_behind_clean_blocks(kind: str) -> None:
    """Each masked token by itself: its block noised, all before it clean; shifted, by the state of the token before."""
    config, weights, decoder = (tiny_mixture if kind == "llada2.2" else tiny)(kind, 4)
    rng = np.random.default_rng(7)
    rows = []
    for length in (11, 7):
        tokens, masked = torch.from_numpy(rng.integers(2, 46, length)), torch.from_numpy(rng.random(length) < 0.6)
        rows.append(MaskedRow(tokens, masked))
    (batch,) = batches(rows, decoder.shape, decoder.device)
    found = log_probabilities(decoder, hidden_at_masks(decoder, batch)).numpy()
    expected, size = [], decoder.shape.block
    for row in (rows[index] for index in batch.rows):
        clean = row.tokens.numpy()
        noised = np.where(row.masked.numpy(), 47, clean)
        for place in np.flatnonzero(row.masked.numpy()):
            start = place // size * size
            mixed = np.concatenate((clean[:start], noised[start : start + size]))
            source = max(place - 1, 0) if decoder.shape.shift else place
            behind = mixed if source >= start else mixed[:start]  # a finished block has no later one beside it
            expected.append(np.log(softmax(logits(config, weights, behind)[source])))
    assert np.abs(found - np.stack(expected)).max() < 1e-4
