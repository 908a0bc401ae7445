"""What the plan says of calibration: rows, tokens, masks, and the memory of running the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qspec import passes, resources
from qspec.bench.generation_data import read as read_generation
from qspec.catalog import Activation
from qspec.errors import InputError, UsageError
from qspec.language import load_recipe
from qspec.models.config import read_config
from qspec.models.dream import DREAM
from qspec.models.family import DecoderShape, Family
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES
from qspec.models.samplers.common import HEAD_VALUES
from qspec.models.sdar import SDAR
from qspec.plan import Plan, make_plan
from qspec.plan.data import plan_data
from qspec.plan.estimates import compile_memory, compile_operations
from qspec.plan.generating import LOGITS, TextSizes, generating_memory
from qspec.plan.notes import notes
from qspec.plan.text import render
from qspec.planned import planned as planned_recipe
from tests.language.fakes import load, recipe
from tests.models.block_layout import FAST_DLLM_7B, SDAR_1_7B
from tests.models.dream_layout import DREAM_7B
from tests.models.expert_layout import SDAR_30B
from tests.models.gemma_layout import PUBLISHED
from tests.models.layout import LLADA_8B

ROOT = Path(__file__).parent.parent


def planned(calibrate: str) -> Plan:
    family, shape, _ = read_config(resources.standin("llada"))  # takes 256 tokens
    return make_plan(load(recipe(f"\ncalibrate {{\n  {calibrate}\n}}\n")).spec, family, shape, standin=True)


@pytest.mark.parametrize(
    ("calibrate", "line"),
    [
        ("samples 8", "8 rows of 256 tokens, 2,048 in all; mask uniform(0.0, 1.0)"),
        ("samples 8  length 64  mask none", "8 rows of 64 tokens, 512 in all; mask none"),
        (
            "samples 8  length 64  mask grid(0, 1)  draws 4  weigh unmasked 0.5",
            "32 rows of 64 tokens (8 samples, 4 draws each), 2,048 in all; mask grid(0.0, 1.0), "
            "weigh masked 1.0, unmasked 0.5",
        ),
        (
            "samples 8  length 128  text rollouts(prompt = 32)",
            "8 rows of 128 tokens, 1,024 in all; "
            'rollouts(prompts = "wikitext2", prompt = 32, steps = 64, buckets = 8, chat = auto)',
        ),
    ],
)
def test_the_calibration_line(calibrate: str, line: str) -> None:
    assert f"  calibration      {line}\n" in render(planned(calibrate))


def test_json_has_the_same() -> None:
    assert plan_data(planned("samples 8  draws 2  weigh certainty"))["calibration"] == {
        "text": '"wikitext2"', "samples": 8, "draws": 2, "rows": 16, "length": 256, "tokens": 4096,
        "mask": "uniform(0.0, 1.0)", "weigh": "certainty, masked 1.0, unmasked 1.0",
    }  # fmt: skip


@pytest.mark.parametrize("calibrate", ["weigh certainty", "text rollouts()"])
def test_running_the_whole_model_takes_its_memory_and_time(calibrate: str) -> None:
    """LLaDA-8B has 8.02 billion weights, 4 bytes each in float32."""
    from qspec.models.llada import LLADA

    shape = LLADA.shape(LLADA_8B)
    plain, running = (
        make_plan(load(recipe(f"\ncalibrate {{\n  {text}\n}}\n")).spec, LLADA, shape)
        for text in ("samples 128", calibrate)
    )
    weights = 2 * 126464 * 4096 + 32 * (4 * 4096 * 4096 + 3 * 4096 * 12288) + 65 * 4096
    assert compile_memory(running) == 4 * weights > compile_memory(plain)
    forwards = {"weigh certainty": 1, "text rollouts()": 64}[calibrate]
    more = compile_operations(running) - compile_operations(plain)
    assert more == 2 * 128 * 2048 * forwards * 32 * (4 * 4096 * 4096 + 3 * 4096 * 12288)


def test_following_the_unquantized_model_takes_two_more_streams() -> None:
    """128 x 2048 tokens of 4096 float32 values are 4 GiB: once at a block's input, once at its output."""
    from qspec import passes
    from qspec.diagnostics import Source
    from qspec.language import load_source
    from qspec.models.llada import LLADA
    from qspec.models.registry import FAMILIES

    needs = []
    for name in ("gptq", "gptaq"):
        source = Source("r.qs", recipe(apply=f"\napply {name}() on blocks[*].*\n"))
        spec = load_source(source, passes.available(), {}, FAMILIES).spec
        needs.append(compile_memory(make_plan(spec, LLADA, LLADA.shape(LLADA_8B))))
    assert needs[1] - needs[0] == 8 << 30


def test_linears_of_one_input_and_scheme_are_one_product() -> None:
    """llada_mixed: q and k in 4 bits, v in 8 but for the first block, where all are in 8."""
    plan = planned_recipe(resources.recipes() / "llada_mixed.qs", "tiny-llada", {}).plan
    mlp = ["mlp.gate", "mlp.up"]
    assert [[m.entry.role.part for m in group] for group in plan.merged(0)] == [
        ["attention.q", "attention.k", "attention.v"],
        mlp,
    ]
    assert [[m.entry.role.part for m in group] for group in plan.merged(1)] == [["attention.q", "attention.k"], mlp]
    assert plan_data(plan)["merged"][2] == ["blocks[1].attention.q", "blocks[1].attention.k"]
    last = plan.shape.layers - 1
    assert f"\n  blocks[1..{last}]: attention.q + attention.k\n" in render(plan) + "\n"
    v = plan.module("blocks[1].attention.v")
    assert v is not None
    assert plan.gemm(v) is None


W4A16 = "scheme s {\nweights int4 per group 64\nactivations none\n}\nlayers blocks[*].* use s\n"


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("text", "ffn", "gated", "down"),
    [
        (W4A16, 768, True, None),
        (W4A16.replace("none", "int8 per token"), 768, True, "row_none_int8_token_sym"),
        (W4A16 + "layers blocks[*].mlp.down keep\n", 104, True, None),
        (W4A16 + "layers blocks[*].mlp.down keep\n", 100, False, None),  # 8 does not divide the channels
        (W4A16 + "layers blocks[*].mlp.up keep\n", 768, False, "row_{}_mul_none_float"),
        (W4A16 + "layers blocks[*].mlp.{gate,up} keep\n", 768, False, "row_{}_mul_none_float"),
    ],
)
def test_gate_and_up_of_one_product_are_gated_by_it(
    text: str, ffn: int, gated: bool, down: str | None, activation: Activation
) -> None:
    family, shape, _ = read_config(resources.standin("llada"))
    plan = make_plan(load(recipe(text)).spec, family, replace(shape, ffn=ffn, activation=activation), standin=True)
    names = {kernel.name for kernel in plan.kernels()}
    assert any(name.endswith("_gated" if activation == "silu" else "_gated_gelu_tanh") for name in names) == gated
    rows = {m.kernels.row.name for m in plan.modules if m.kernels and m.kernels.row and m.entry.role.part == "mlp.down"}
    assert rows == ({down.format(activation)} if down else set())
    line = f"\n  blocks[0..{shape.layers - 1}]: mlp.gate + mlp.up, which gives {activation}(gate) up\n"
    assert (line in render(plan) + "\n") == gated


NOTES = {  # scheme -> for each target, what it lacks
    "weights int4 per channel\nactivations int4 per token": {
        "sm_80": "sm_80: W4A4 runs as int8 arithmetic; Triton has no native int4 mma",
        "sm_90": "sm_90 has no int4 tensor cores: W4A4 is 4-bit storage with int8 arithmetic",
        "sm_120": "sm_120 has no int4 tensor cores: W4A4 is 4-bit storage with int8 arithmetic",
    },
    "weights nvfp4 per group 16\nactivations nvfp4 per group 16": {
        "sm_80": "sm_80 has no 4-bit float tensor cores: nvfp4 is multiplied as bfloat16",
        "sm_90": "sm_90 has no 4-bit float tensor cores: nvfp4 is multiplied as bfloat16",
        "sm_100": None,
    },
    "weights fp8_e4m3 per channel\nactivations fp8_e4m3 per token": {
        "sm_80": "sm_80 has no fp8 tensor cores: fp8_e4m3 is multiplied as float16",
        "sm_90": None,
        "sm_120": None,
    },
}


@pytest.mark.parametrize("scheme", NOTES, ids=lambda scheme: scheme.split()[1])
def test_notes_say_what_a_target_lacks_and_where_nothing_ran(scheme: str) -> None:
    for target, lacks in NOTES[scheme].items():
        text = f"scheme s {{\n{scheme}\n}}\nlayers blocks[*].* use s\nemit {{\n  kernels triton for {target}\n}}\n"
        family, shape, _ = read_config(resources.standin("llada"))
        plan = make_plan(load(recipe(text)).spec, family, shape, standin=True)
        about = [note for note in notes(plan) if note.startswith(target)]
        never = f"{target}: kernels are compiled for it ahead of time; none was run on such a GPU yet"
        assert about == [*([lacks] if lacks else []), *([never] if target != "sm_90" else [])]


@pytest.mark.parametrize("path", sorted(resources.recipes().rglob("*.qs")), ids=lambda path: path.stem)
def test_every_shipped_recipe_fits_a_model_with_tied_embeddings(path: Path) -> None:
    """quarot's residual rotation alone needs a head of its own, and says what to write instead."""
    spec = load_recipe(path, passes.available(), {}, FAMILIES).spec
    family = FAMILIES[spec.families[0]]
    configs = {
        "llada": LLADA_8B,
        "dream": DREAM_7B,
        "sdar": SDAR_1_7B,
        "fast_dllm": FAST_DLLM_7B,
        "sdar_moe": SDAR_30B,
    }
    shape = family.shape((configs | {"diffusion_gemma": PUBLISHED})[family.name])
    tied = replace(shape, tied=True)
    if any(use.params.whole_model for use in spec.passes):
        with pytest.raises(InputError, match=r"write quarot\(residual = false\)"):
            make_plan(spec, family, tied)
        return
    plan = make_plan(spec, family, tied)
    head, embedding = plan.module("head"), plan.module("embedding")
    assert head is embedding
    assert head is not None
    assert head.scheme is None


def test_every_family_has_a_shipped_recipe() -> None:
    paths = resources.recipes().rglob("*.qs")
    found = {name for path in paths for name in load_recipe(path, passes.available(), {}, FAMILIES).spec.families}
    assert found == set(FAMILIES)


def test_bits_of_the_blocks_and_of_the_whole_model_by_hand() -> None:
    """The main recipe on LLaDA-8B: 32 blocks of width 4096 and FFN 12288, a vocabulary of 126464 twice at 16 bits."""
    spec = load_recipe(resources.recipes() / "llada_w4a4.qs", passes.available(), {}, FAMILIES).spec
    plan = make_plan(spec, LLADA, LLADA.shape(LLADA_8B))
    codes = 32 * (4 * 4096 * 4096 + 2 * 4096 * 12288) * 4 + (29 * 4 + 3 * 8) * 4096 * 12288
    scales = 32 * (5 * 4096 + 2 * 12288) * 32  # float32, one for each output channel
    # four inputs a block, each with two rotations of 128 x 128 in float16 and an int32 for each channel between them
    transforms = 32 * (4 * 2 * 128**2 * 16 + (3 * 4096 + 12288) * 32)
    blocks, outer = 32 * (4 * 4096 * 4096 + 3 * 4096 * 12288), 2 * 126464 * 4096
    assert (blocks, outer) == (6_979_321_856, 1_035_993_088)
    assert plan.bits_per_weight == (codes + scales + transforms) / blocks == pytest.approx(4.10637, abs=1e-5)
    assert plan.bits_per_weight_model == (codes + scales + transforms + outer * 16) / (blocks + outer)
    assert plan.bits_per_weight_model == pytest.approx(5.64364, abs=1e-5)
    assert "\n  bits per weight  4.106 in the blocks, 5.644 in the whole model\n" in render(plan)
    assert plan_data(plan)["bits_per_weight_model"] == plan.bits_per_weight_model


@pytest.mark.parametrize(("rows", "tokens"), [("samples 2", 2 * 256), ("samples 16", 4096), ("samples 160", 4096)])
def test_memory_counts_a_batch_inside_a_block(rows: str, tokens: int) -> None:
    """tiny-llada: 256 wide, MLPs of 768, 640 words, 6 blocks of 4 x 256^2 + 3 x 256 x 768 weights; float32."""
    plan = planned(rows)
    block = 3 * (4 * 256**2 + 3 * 256 * 768) * 4
    stream = plan.calibration_tokens * 256 * 4
    expected = block + 768**2 * 8 * 4 + stream + tokens * (6 * 256 + 2 * 768) * 4 + 2 * 640 * 256 * 4
    assert compile_memory(plan) == expected


LLADA_8B_SHAPE = LLADA.shape(LLADA_8B)


@pytest.mark.parametrize(
    ("texts", "activations", "logits", "cache"),
    [
        (TextSizes(1, 1024), 1024 * (2 * 4096 + 3 * 12288) * 2, 32 * 126464 * 12, 0),
        (TextSizes(8, 1024, cache=True), 8192 * (2 * 4096 + 3 * 12288) * 2, 256 * 126464 * 12, 8192 * 266_240 * 2),
        (TextSizes(8, 192, 64), 1536 * (2 * 4096 + 3 * 12288) * 2, 2**25 * 12, 0),
        (TextSizes(1, 192, 64, guided=True), 384 * (2 * 4096 + 3 * 12288) * 2, 128 * 126464 * 12, 0),
    ],
)
def test_memory_of_generating_by_hand(texts: TextSizes, activations: int, logits: int, cache: int) -> None:
    """LLaDA-8B: of a token, keys and values are 2 x 32 x 4096 and a hidden state 4096 values in 16 bits."""
    found = generating_memory(LLADA_8B_SHAPE, 5_000_000_000, texts)
    assert (found.activations, found.logits, found.cache) == (activations, logits, cache)
    assert found.total == 5_000_000_000 + max(activations, logits) + cache + (64 << 20)


def test_memory_of_block_causal_texts_by_hand() -> None:
    """SDAR-1.7B: 28 layers with 8 key and value heads of 128, kept always; logits of blocks of 4."""
    shape = SDAR.shape(SDAR_1_7B)
    texts = TextSizes.of(shape, batch=2)
    found = generating_memory(shape, 4_000_000_000, texts)
    assert texts.cache
    assert found.cache == 2 * 1024 * 2 * 28 * 8 * 128 * 2
    assert found.logits == 2 * 4 * 151936 * 12


def test_logits_are_held_as_the_samplers_do() -> None:
    assert LOGITS == HEAD_VALUES


@pytest.mark.parametrize(
    ("canvas", "batch", "cache", "peak"),
    [
        (1024, 1, False, 5.694),
        (1024, 1, True, 6.256),
        (1024, 8, False, 6.287),
        (1024, 8, True, 10.515),
        (192, 1, False, 5.695),
        (192, 1, True, 5.798),
        (192, 8, False, 6.008),
        (192, 8, True, 6.826),
    ],
)
def test_measured_peaks_of_captured_steps_are_the_plans(canvas: int, batch: int, cache: bool, peak: float) -> None:
    """GB, `torch.cuda.max_memory_allocated` on an H200: duquant_w4a4, blocks of 32; dual cache or none."""
    spec = load_recipe(resources.recipes() / "paper" / "duquant_w4a4.qs", passes.available(), {}, FAMILIES).spec
    weights = make_plan(spec, LLADA, LLADA_8B_SHAPE).bytes_after
    found = generating_memory(LLADA_8B_SHAPE, weights, TextSizes(batch, canvas, 32, cache))
    assert found.total / 1e9 == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("family", "shape", "bf16"),
    [
        (LLADA, LLADA_8B_SHAPE, 2 * 126464 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 12288) + 65 * 4096),
        (
            DREAM, DREAM.shape(DREAM_7B),
            2 * 152064 * 3584 + 57 * 3584 + 28 * (2 * 3584 * (3584 + 512) + 3 * 3584 * 18944 + 3584 + 2 * 512),
        ),
    ],
    ids=["llada", "dream"],
)  # fmt: skip
def test_measured_peaks_of_texts_are_near_the_plan(family: Family, shape: DecoderShape, bf16: int) -> None:
    """docs/performance/generate.json, of bf16 and of recipes that had the GPU for themselves."""
    run = read_generation([ROOT / "docs" / "performance" / "generate.json"])
    own = [cell for cell in run.cells if cell.model == family.name and cell.planned is not None]
    cells = [cell for cell in own if cell.recipe == "bf16" or cell.prompt == 960]
    weights = {"bf16": 2 * bf16}
    for name in {cell.recipe for cell in cells} - {"bf16"}:
        spec = load_recipe(resources.recipes() / "paper" / f"{name}.qs", passes.available(), {}, FAMILIES).spec
        weights[name] = make_plan(spec, family, shape).bytes_after
    assert len(cells) > 10
    for cell in cells:
        rows = 32 if family is LLADA else cell.length  # of logits: a block's, or the text's
        texts = TextSizes(cell.batch, cell.prompt + cell.length, rows, cell.cache != "none")
        planned_bytes = generating_memory(shape, weights[cell.recipe], texts).total
        assert cell.planned == planned_bytes == pytest.approx(cell.peak, rel=0.05)


@pytest.mark.parametrize(("batch", "canvas", "what"), [(0, None, "batch is 0"), (1, 0, "canvas is 0"), (1, 257, "256")])
def test_texts_that_no_model_generates(batch: int, canvas: int | None, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        TextSizes.of(replace(LLADA_8B_SHAPE, max_length=256), batch, canvas)


def test_the_plan_says_the_memory_of_texts() -> None:
    plan = planned("samples 8")
    texts = TextSizes.of(plan.shape, 3)
    data = plan_data(plan, texts)["generate"]
    assert {**data, "memory_bytes": data["memory_bytes"]["total"]} == {
        "batch": 3, "canvas": 256, "block": 32, "cache": False, "guided": False,
        "memory_bytes": generating_memory(plan.shape, plan.bytes_after, texts).total,
    }  # fmt: skip
    assert " MiB of GPU memory for 3 texts of 256 tokens at once, " in render(plan, texts)
