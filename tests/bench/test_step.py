"""What follows from measured steps and how it is shown; the models that are timed, on a CPU. Times need a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec import passes, resources
from qspec.bench import step
from qspec.bench.step_data import MODELS, Measured, Step, Steps, kind_of, markdown, parts_of, read
from qspec.cli import main
from qspec.cli.bench import RECIPES
from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import GatedPart, MergedPart
from qspec.language import load_recipe
from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.models.family import DecoderShape, Family
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES
from qspec.plan import Plan, make_plan, plan_module
from tests.models.dream_layout import DREAM_7B
from tests.models.layout import LLADA_8B

OURS = Measured(4.0, {"GEMM": 2.5, "activation quantization": 0.5, "attention": 0.25, "rest": 0.5}, 400)
BASE = Measured(9.0, {"GEMM": 8.0, "rest": 1.0}, 300)
ONE = Step("llada", "w4a4", 32, 1024, False, OURS, BASE)
RUN = Steps({"gpu": "A GPU", "torch": "2", "triton": "3"}, (ONE, replace(ONE, model="dream", compiled=True)))


def test_the_models_are_the_published_ones() -> None:
    assert {"llada": (LLADA, LLADA.shape(LLADA_8B)), "dream": (DREAM, DREAM.shape(DREAM_7B))} == MODELS


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("gemm_w4_sym_a4_hopper", "GEMM"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64", "GEMM"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "GEMM"),
        ("row_rmsnorm_none_int8_token_sym", "activation quantization"),
        ("row_rmsnorm_none_float", "rest"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_add_mm_1", "rest"),  # torch.compile names what is near
        ("void at::native::elementwise_kernel<128, 2, ...>", "rest"),
        ("Memcpy DtoD (Device -> Device)", "rest"),
    ],
)
def test_kernels_have_a_kind(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_time_is_that_of_the_kernel_that_began_first() -> None:
    spans = [
        ("row_a", 1.0, 3.0),
        ("gemm_a", 2.5, 7.0),  # waits for row_a until 3
        ("row_b", 3.5, 8.0),  # waits for gemm_a until 7
        ("add", 5.0, 6.0),  # within another
        ("attention_a", 9.0, 11.0),
    ]
    expected = {"activation quantization": 2.0 + 1.0, "GEMM": 4.0, "rest": 0.0, "attention": 2.0}
    assert parts_of(spans[::-1]) == expected


def test_a_run_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = "2.50 / 8.00 | 0.50 / 0.00 | 0.25 / 0.00 | 0.50 / 1.00 | 0.25 / 0.00"
    row = f"| w4a4 | 32 of 1024 | no | 4.00 / 9.00 | 2.25 | {parts} | 400 / 300 |"
    lines = markdown(RUN).splitlines()
    assert row in lines
    assert lines.index("**llada**") < lines.index(row) < lines.index("**dream**")
    stored, document = tmp_path / "step.json", tmp_path / "page.md"
    stored.write_text(json.dumps(RUN.as_json()))
    assert read([stored]) == RUN
    document.write_text("a\n<!-- bench -->\nkept\n<!-- /bench -->\n<!-- step -->\nold\n<!-- /step -->\nz\n")
    out = tmp_path / "out"
    assert main(["bench", "--step", "--results", str(stored), "--document", str(document), "--out", str(out)]) == 0
    assert row in capsys.readouterr().out
    text = document.read_text()
    assert row in text
    assert "kept" in text
    assert "old" not in text
    assert text.endswith("<!-- /step -->\nz\n")
    (again, _) = json.loads((out / "step.json").read_text())["steps"]
    assert again["ratio"] == 2.25


def test_a_file_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = json.dumps(RUN.as_json()).replace('"GEMM"', '"products"')  # as earlier versions called them
    for text in ('{"steps": [{}], "environment": {}}', other):
        (tmp_path / "x.json").write_text(text)
        assert main(["bench", "--step", "--results", str(tmp_path / "x.json"), "--out", str(tmp_path)]) == 3
        assert "not a benchmark's step.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--step", "--format", "w4a4"],
        ["--step", "--shape", "4096x4096"],
        ["--step", "--no-peers"],
        ["--compile"],
        ["--rows", "--no-peers"],
    ],
)
def test_options_that_do_not_belong_together_are_usage_errors(arguments: list[str]) -> None:
    assert main(["bench", *arguments]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--step"]) == 3
    assert "need a CUDA GPU" in capsys.readouterr().err


def small(model: str, recipe: str, **settings: str) -> tuple[Family, Plan]:
    family, shape = MODELS[model]
    tiny: DecoderShape = replace(
        shape, layers=2, width=256, heads=4, kv_heads=2, head_width=64, ffn=384, vocab=64, mask_token=1, eos_token=1,
        pad_token=1,
    )  # fmt: skip
    path = resources.recipes() / f"{recipe}.qs"
    return family, make_plan(load_recipe(path, passes.available(), settings, FAMILIES).spec, family, tiny)


OTHERS = [("llada", "llada_mixed"), *(("dream", f"floats/{name}") for name in ("rtn_fp8", "gptq_mxfp4", "gptq_nvfp4"))]
PLANNED = [*((model, f"paper/{name}") for model in MODELS for name in RECIPES), *OTHERS]
EVERY_OTHER = [
    pytest.param(*case, marks=[pytest.mark.slow] if number % 2 else []) for number, case in enumerate(PLANNED)
]


@pytest.mark.parametrize(("model", "recipe"), EVERY_OTHER)
def test_a_random_model_is_the_planned_one(model: str, recipe: str) -> None:
    family, plan = small(model, recipe)
    plain = Decoder(family, plan.shape, dtype=torch.bfloat16).requires_grad_(False)
    decoder = step.quantized(plan, plain)
    assert all(tensor.device.type == "cpu" for tensor in decoder.state_dict().values())
    for module in plan.modules:
        found = decoder.module(module.entry.role)
        if module.kernels is None:
            assert found.weight.shape == (module.entry.out_features, module.entry.in_features)
            assert found.weight.dtype == torch.bfloat16
        else:
            whole = found.whole if isinstance(found, MergedPart | GatedPart) else found
            assert isinstance(whole, QuantLinear)
            assert whole.kernels == module.kernels
    assert decoder.embedding is plain.embedding
    ids = torch.randint(64, (1, 48))
    window = decoder.window(1, 48)
    for part in (None, window, replace(window, tokens=slice(8, 16))):
        token, probability = step.step(decoder, ids, part)
        count = 8 if part and part.tokens.start else step.BLOCK
        assert token.shape == probability.shape == (1, count)
        assert bool(((probability > 1 / 64) & (probability < 1)).all())  # no collapse into one token, no NaN


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("model", "recipe"), PLANNED)
def test_a_quantized_model_computes_on_a_gpu_what_it_computes_on_a_cpu(model: str, recipe: str) -> None:
    """Norms and gates inside the activation quantization kernels, merged GEMMs; codes may differ at ties."""
    torch.manual_seed(3)
    family, plan = small(model, recipe)
    decoder = step.quantized(plan, Decoder(family, plan.shape, dtype=torch.float32).requires_grad_(False)).float()
    assert any(isinstance(module, MergedPart) for module in decoder.modules())
    ids = torch.randint(64, (2, 48))
    here = decoder(ids).logits
    there = decoder.cuda()(ids.cuda()).logits.cpu()
    assert (there - here).norm() < 2e-2 * here.norm()


@pytest.mark.parametrize("recipe", ["rtn_w4a4", "duquant_w8a8", "gptq_w4a16"])
def test_a_gated_product_leaves_a_block_as_it_was(recipe: str) -> None:
    """As gate and up in one product, and silu(gate) up computed where down reads it: the same bits of integers."""
    family, plan = small("dream", f"paper/{recipe}")
    apart = replace(plan, modules=tuple(plan_module(plan.spec, m.entry, m.rule, 2) for m in plan.modules))
    kernels = [[k.name for k in p.kernels() if "gated" in k.name or "silu_mul" in k.name] for p in (plan, apart)]
    assert ["gated" in name for names in kernels for name in names] == [True, False]
    plain = Decoder(family, plan.shape, dtype=torch.float32).requires_grad_(False)
    ids, found = torch.randint(64, (2, 9)), []
    for one in (plan, apart):
        torch.manual_seed(5)
        decoder = step.quantized(one, plain).float()
        assert any(isinstance(m, GatedPart) for m in decoder.modules()) == (one is plan)
        found.append(decoder.hidden(ids))
    if recipe == "gptq_w4a16":  # sums of floats, of other rows next to each other
        assert torch.allclose(*found, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(*found)


@pytest.mark.parametrize("recipe", [pytest.param("duquant_w4a4", marks=pytest.mark.slow), "gptq_w4a16"])
def test_every_block_runs_one_compiled_graph(recipe: str) -> None:
    """With merged products and transforms of their own."""
    family, plan = small("dream", f"paper/{recipe}")
    decoder = step.quantized(plan, Decoder(family, plan.shape, dtype=torch.bfloat16).requires_grad_(False))
    ids, graphs = torch.randint(64, (1, 8)), list[torch.fx.GraphModule]()
    expected = decoder.hidden(ids)

    def record(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    for block in decoder.blocks:
        block.compile(backend=record, fullgraph=True, dynamic=False)
    assert torch.equal(decoder.hidden(ids), expected)
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("model", MODELS)
def test_steps_are_timed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec.progress import Quiet

    family, plan = small(model, "paper/rtn_w8a8")
    table: Mapping[str, tuple[Family, DecoderShape]] = {model: (family, plan.shape)}
    monkeypatch.setattr(step, "MODELS", table)
    recipes = [resources.recipes() / "paper" / f"{name}.qs" for name in RECIPES]
    run = step.run_steps(recipes, [model], [16, 1024], [False], Quiet())
    assert [(s.recipe, s.tokens) for s in run.steps] == [(name, count) for name in RECIPES for count in (16, 1024)]
    for one in run.steps:
        for times in (one.ours, one.base):
            assert 0 < times.milliseconds < 50
            assert 0 < sum(times.parts.values()) < 1.2 * times.milliseconds
            assert times.parts["GEMM"] > 0
            assert times.kernels > 20
        assert "activation quantization" not in one.base.parts
        quantized = one.ours.parts.get("activation quantization", 0.0) > 0
        assert quantized == ("a16" not in one.recipe), one.recipe


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize("recipe", RECIPES)
def test_compiled_blocks_compute_the_same(recipe: str) -> None:
    """Up to roundings to bfloat16, of which compiled blocks make fewer; in a pass over all tokens and in a window's."""
    family, plan = small("dream", f"paper/{recipe}")
    plain = Decoder(family, plan.shape, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    decoder, ids = step.quantized(plan, plain), torch.randint(64, (1, 48), device="cuda")
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        if compiled:
            for block in decoder.blocks:
                block.compile(fullgraph=True, dynamic=False)
        window = decoder.window(1, 48)
        whole = decoder.hidden(ids, None, window).float()
        part = decoder.hidden(ids.flip(1), None, replace(window, tokens=slice(8, 24))).float()
        found.append((whole, part))
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / one.norm()) < 0.05
