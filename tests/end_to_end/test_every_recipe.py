"""Nothing is skipped in silence: every shipped recipe quantizes every module that it names, in the format it asks for.

EXPECTED was written by reading the recipes, not by running the resolver or the planner; what is checked against it are
the manifest and the tensors on disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qspec
from qspec import resources
from qspec.kernels.packing import unpack, unpack_zeros
from qspec.manifest import Manifest, ModuleRecord
from qspec.models.decoder import Decoder
from qspec.models.registry import FAMILIES
from qspec.models.shards import INDEX
from tests.end_to_end.conftest import NO_REPORT
from tests.models import block_layout, dream_layout, expert_layout, gemma_layout

RECIPES = Path(__file__).parents[2] / "recipes"
WIDTH, FFN, KV = 128, 256, {"llada": 128, "dream": 64, "sdar": 64, "fast_dllm": 64}


@dataclass(frozen=True)
class Format:
    """scheme: its name. group: input channels that share a scale, None for a whole row. zeros: asymmetric.

    number: of the codes.
    """

    scheme: str
    bits: int
    activations: int
    group: int | None = None
    zeros: bool = False
    number: str = "int"


W4A4, W4A8, W8A8 = Format("w4a4", 4, 4), Format("w4a8", 4, 8), Format("w8a8", 8, 8)
W4A16, W3A16 = Format("w4a16", 4, 16, 128), Format("w3a16", 3, 16, 128)
KEPT = None

# recipe -> (pattern of BLOCK.PART, format); the first pattern that fits says it. Models of four blocks, 0 to 3.
EXPECTED: dict[str, tuple[tuple[str, Format | None], ...]] = {
    "llada_w4a4": (("[123].mlp.down", W8A8), ("*", W4A4)),
    "llada_mixed": (
        ("3.mlp.down", KEPT),
        ("0.*", W8A8),
        ("*.attention.[vo]", W8A8),
        ("*.mlp.down", W8A8),
        ("*", W4A4),
    ),
    "llada_rtn_w4a4": (("*", W4A4),),
    "llada_w4a16": (("*", W4A16),),
    "llada_w8a8": (("*", W8A8),),
    **{f"paper/{method}_w4a16": (("*", W4A16),) for method in ("rtn", "gptq")},
    **{f"paper/{method}_w3a16": (("*", W3A16),) for method in ("rtn", "gptq")},
    "paper/awq_w4a16": (("*", Format("w4a16", 4, 16, 128, zeros=True)),),
    "paper/awq_w3a16": (("*", Format("w3a16", 3, 16, 128, zeros=True)),),
    **{f"paper/{method}_w8a8": (("*", W8A8),) for method in ("rtn", "smoothquant", "quarot", "duquant")},
    **{f"paper/{method}_w4a4": (("*", W4A4),) for method in ("rtn", "smoothquant", "quarot", "duquant")},
    "llada_search": (("*", Format("w4", 4, 16, 128, False)),),
    "search/weights": (("*", Format("w4g64", 4, 16, 64, False)),),
    "search/mix": (("*", W4A4),),
    "masking/gptq_w4a4": (("*", W4A4),),
    "masking/gptq_w3a16": (("*", Format("w3a16", 3, 16, 64)),),
    "masking/gptq_w2a16": (("*", Format("w2a16", 2, 16, 64, True)),),
    "blocks/w4a16": (("*", W4A16),),
    "blocks/w8a8": (("*", W8A8),),
    "blocks/w4a4": (("*", W4A4),),
    "blocks/rtn_w4a4": (("*", W4A4),),
    "experts/w4a16": (("*", W4A16),),
    "experts/w8a8": (("*", W8A8),),
    "experts/w4a4": (("*.mlp.experts*.down", W4A8), ("*", W4A4)),
    "experts/rtn_w4a4": (("*", W4A4),),
    "canvas/w4a16": (("*", Format("w4a16", 4, 16, 64)),),
    "canvas/w8a8": (("*", W8A8),),
    "canvas/w4a4": (("*", W4A4),),
    "floats/rtn_fp8": (("*", Format("fp8", 8, 8, number="fp8_e4m3")),),
    "floats/gptq_nvfp4": (("*", Format("nvfp4", 4, 4, 16, number="nvfp4")),),
    "floats/gptq_mxfp4": (("*", Format("mxfp4", 4, 16, 32, number="mxfp4")),),
}
# Rotations of the residual stream go into the embedding and the head, which are kept.
REWRITES_KEPT = ("paper/quarot_w4a4", "paper/quarot_w8a8")
BLOCKS = [name for name in EXPECTED if name.startswith("blocks/")]  # `family fast_dllm, sdar`
EXPERTS = [name for name in EXPECTED if name.startswith("experts/")]  # `family sdar_moe, llada2, llada_moe`
CANVAS = [name for name in EXPECTED if name.startswith("canvas/")]  # `family diffusion_gemma`
BOTH = [name for name in EXPECTED if "/" in name and name not in (*BLOCKS, *EXPERTS, *CANVAS)]  # `family llada, dream`

# part -> (module below a LLaDA block, outputs, inputs)
PARTS: dict[str, tuple[str, str, str]] = {
    "attention.q": ("q_proj", "width", "width"),
    "attention.k": ("k_proj", "kv", "width"),
    "attention.v": ("v_proj", "kv", "width"),
    "attention.o": ("attn_out", "width", "width"),
    "mlp.gate": ("ff_proj", "ffn", "width"),
    "mlp.up": ("up_proj", "ffn", "width"),
    "mlp.down": ("ff_out", "width", "ffn"),
}


def module_name(family: str, block: int, part: str) -> str:
    ours = PARTS[part][0]
    if family == "llada":
        return f"model.transformer.blocks.{block}.{ours}"
    return f"model.layers.{block}.{dream_layout.NAMES[ours]}"


QWEN = {"embedding": "model.embed_tokens", "head": "lm_head"}
OUTER = {
    "llada": {"embedding": "model.transformer.wte", "head": "model.transformer.ff_out"},
    **dict.fromkeys(("dream", "sdar", "fast_dllm"), QWEN),
}
CONFIGS = {
    "dream": dream_layout.TINY_DREAM,
    "sdar": block_layout.TINY_SDAR | {"head_dim": WIDTH // 4},
    "fast_dllm": block_layout.TINY_FAST,
}


def write_model(folder: Path, family: str, blocks: int) -> None:
    """Random bfloat16 weights at dimensions that groups and rotations of 128 divide, with tiny-llada's tokenizer."""
    folder.mkdir()
    standin = resources.standin("llada")
    config: dict[str, Any] = json.loads((standin / "config.json").read_text())
    if family == "llada":
        config |= {"d_model": WIDTH, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": FFN, "n_layers": blocks}
        config |= {"max_sequence_length": 64}
    else:
        tokens = {key: config[key] for key in ("vocab_size", "mask_token_id", "eos_token_id", "pad_token_id")}
        config = CONFIGS[family] | tokens | {"bos_token_id": tokens["eos_token_id"]}
        config |= {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": blocks}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(standin / name, folder / name)
    layout = FAMILIES[family]
    torch.manual_seed(0)
    state = Decoder(layout, layout.shape(config)).state_dict()
    save_file({name: tensor.detach().bfloat16() for name, tensor in state.items()}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    home = tmp_path_factory.mktemp("models")
    wanted = {("llada", 4), ("llada", 2), ("dream", 2), ("sdar", 2), ("fast_dllm", 2)}
    for family, blocks in wanted:
        write_model(home / f"{family}{blocks}", family, blocks)
    return {(family, blocks): home / f"{family}{blocks}" for family, blocks in wanted}


def short(name: str, folder: Path) -> Path:
    """The recipe with little text to calibrate on, and with few steps where it has a search of 256."""
    source = RECIPES / f"{name}.qs"
    applies = re.findall(r"^apply .*$", source.read_text(), flags=re.MULTILINE)
    assert applies
    (folder / "text.txt").write_text("The river of Biznia is the Koso. Tom has 3 books and buys 4 more. " * 40)
    path = folder / source.name
    lines = [
        "qspec 1",
        f'extends "{Path(os.path.relpath(source, folder)).as_posix()}"',
        f"recipe {source.stem} {{\n}}",
        'calibrate {\n  text file("text.txt")\n  samples 2\n  length 48\n}',
        *(line.replace("steps = 256", "steps = 4") for line in applies),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def stored(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values())):
        tensors |= load_file(folder / file)
    return tensors


def expected_format(name: str, block: int, part: str) -> Format | None:
    return next(form for pattern, form in EXPECTED[name] if fnmatchcase(f"{block}.{part}", pattern))


def block_and_part(role: str) -> tuple[int, str]:
    """Of `blocks[1].mlp.down`: 1, `mlp.down`."""
    block, part = role.removeprefix("blocks[").split("].", 1)
    return int(block), part


def check_quantized(record: ModuleRecord, own: dict[str, Tensor], form: Format, shape: tuple[int, int]) -> None:
    """The manifest's words and the tensors' shapes, types and codes of one module."""
    rows, columns = shape
    assert record.scheme == form.scheme
    assert record.label == f"W{form.bits}A{form.activations}"
    assert record.gemm is not None
    assert (record.gemm["weight_bits"], record.gemm["activation_bits"]) == (form.bits, form.activations)
    assert record.gemm["number"] == form.number
    assert (record.row["bits"] if record.row else 16) == form.activations
    assert record.passes
    assert "weight" not in own, "the float weight is still there"
    assert own["codes"].shape == (rows, columns if form.bits == 8 else columns * form.bits // 8)
    blocks = form.number in ("mxfp4", "nvfp4")
    codes = unpack(own["codes"], form.bits, 2 if blocks else 128)
    assert codes.shape == (rows, columns)
    low, high = -(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1
    assert low <= int(codes.min()) < int(codes.max()) <= high
    assert len(codes.unique()) > 2 ** (form.bits - 1), "fewer bits would hold these codes"
    assert all(len(row.unique()) > 1 for row in codes), "an output channel of one code alone"
    groups = columns // form.group if form.group else 1
    assert own["scale"].shape == (groups, rows)
    assert own["scale"].dtype == (torch.uint8 if blocks else torch.float16 if form.group else torch.float32)
    assert ("unit" in own) == (form.number == "nvfp4")
    assert "unit" not in own or own["unit"].shape == (rows,)
    assert bool((own["scale"] > 0).all())
    assert ("zero" in own) == form.zeros
    if form.zeros:
        zeros = unpack_zeros(own["zero"], form.bits, rows)
        assert zeros.shape == (groups, rows)
        assert low <= int(zeros.min()) < int(zeros.max()) <= high


def check(name: str, family: str, blocks: int, model: Path, folder: Path) -> None:
    artifact = qspec.compile(short(name, folder), str(model), folder / "out", "cpu", options=NO_REPORT)
    records = {record.role: record for record in Manifest.read(artifact.path).modules}
    tensors, before = stored(artifact.path), load_file(model / "model.safetensors")
    sizes = {"width": WIDTH, "ffn": FFN, "kv": KV[family]}
    roles = {f"blocks[{block}].{part}": (block, part) for block in range(blocks) for part in PARTS}
    assert set(records) == {*roles, "embedding", "head"}
    for role, (block, part) in roles.items():
        module, form = module_name(family, block, part), expected_format(name, block, part)
        shape = (sizes[PARTS[part][1]], sizes[PARTS[part][2]])
        assert records[role].module == module
        own = {key.removeprefix(f"{module}."): t for key, t in tensors.items() if key.startswith(f"{module}.")}
        if form is KEPT:
            check_kept(records[role], own)
            assert own["weight"].shape == shape
        else:
            check_quantized(records[role], own, form, shape)
        biased = family in ("dream", "fast_dllm") and part in ("attention.q", "attention.k", "attention.v")
        assert ("bias" in own) == biased
        assert not biased or own["bias"].shape == shape[:1]
    for role, module in OUTER[family].items():
        weight = f"{module}.weight"
        assert records[role].module == module
        check_kept(records[role], {"weight": tensors[weight]})
        assert torch.equal(tensors[weight], before[weight]) == (name not in REWRITES_KEPT)


def check_kept(record: ModuleRecord, own: dict[str, Tensor]) -> None:
    assert record.scheme is None
    assert record.gemm is None
    assert set(own) == {"weight"}
    assert own["weight"].dtype == torch.bfloat16


def test_every_shipped_recipe_is_here() -> None:
    """A recipe without an expectation is not shipped. Files in base/ are parts of recipes."""
    files = {
        p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.qs") if p.parent.name != "base"
    }
    assert set(EXPECTED) == files


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in (*BLOCKS, *EXPERTS, *CANVAS)])
def test_every_named_module_is_quantized(name: str, models: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    blocks = 2 if name in BOTH else 4
    check(name, "llada", blocks, models["llada", blocks], tmp_path)


@pytest.mark.parametrize("name", BOTH)
def test_every_named_module_is_quantized_on_dream(
    name: str, models: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    """The same text on the other family: grouped queries, and biases that stay."""
    check(name, "dream", 2, models["dream", 2], tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param("blocks/w4a16", "sdar", marks=pytest.mark.slow),
        ("blocks/w8a8", "fast_dllm"),
        ("blocks/w4a4", "sdar"),
        pytest.param("blocks/w4a16", "fast_dllm", marks=pytest.mark.slow),
        pytest.param("blocks/w8a8", "sdar", marks=pytest.mark.slow),
        pytest.param("blocks/w4a4", "fast_dllm", marks=pytest.mark.slow),
        pytest.param("blocks/rtn_w4a4", "fast_dllm", marks=pytest.mark.slow),
    ],
)
def test_every_named_module_is_quantized_in_block_causal_models(
    name: str, family: str, models: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    """Norms of queries and keys stay, too."""
    check(name, family, 2, models[family, 2], tmp_path)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(
            name, config, marks=pytest.mark.slow,
            id=f"{name}-{family}",
        )
        for name in EXPERTS
        for family, config in (
            ("llada2", expert_layout.TINY_LLADA2),
            ("sdar_moe", expert_layout.TINY_SDAR_MOE),
            ("llada_moe", expert_layout.TINY_LLADA_MOE),
        )
    ],
)  # fmt: skip
def test_every_named_module_is_quantized_in_mixtures_of_experts(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """Of each expert, and of the one that is shared; routers are not named."""
    model = tmp_path / "model"
    write_model(model, "llada", 2)
    own = json.loads((model / "config.json").read_text())
    config = config | {key: own[key] for key in ("vocab_size", "mask_token_id", "eos_token_id", "pad_token_id")}
    config |= {"hidden_size": WIDTH, "num_hidden_layers": 2, expert_layout.names(config)["ffn"]: 128}
    config |= {"head_dim": 32, "intermediate_size": FFN} | ({"rotary_dim": 16} if "rotary_dim" in config else {})
    (model / "config.json").write_text(json.dumps(config))
    weights = expert_layout.random_weights(config, seed=4)
    save_file({key: torch.from_numpy(t).bfloat16() for key, t in weights.items()}, model / "model.safetensors")
    artifact = qspec.compile(short(name, tmp_path), str(model), tmp_path / "out", "cpu", options=NO_REPORT)
    records = {record.module: record for record in Manifest.read(artifact.path).modules}
    tensors = stored(artifact.path)
    for key, weight in expert_layout.in_parts(config, weights).items():
        module = key.removesuffix(".weight")
        if weight.ndim == 1:
            assert tensors[key].shape == weight.shape
            assert tensors[key].dtype == torch.float32
        elif "embed" in key or module in ("lm_head",) or module.endswith("mlp.gate"):
            assert records.pop(module).scheme is None
            assert tensors[key].dtype == (torch.float32 if module.endswith("mlp.gate") else torch.bfloat16)
        else:
            held = {k.removeprefix(f"{module}."): t for k, t in tensors.items() if k.startswith(f"{module}.")}
            record = records.pop(module)
            form = expected_format(name, *block_and_part(record.role))
            assert form is not None
            check_quantized(record, held, form, weight.shape)
    assert records == {}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "canvas/w8a8" else pytest.mark.slow) for name in CANVAS]
)
def test_every_named_module_is_quantized_beside_experts(name: str, tmp_path: Path) -> None:
    """The MLP and every expert; routers and what conditions a canvas are not named."""
    model = tmp_path / "model"
    write_model(model, "llada", 2)
    sizes = {"hidden_size": WIDTH, "intermediate_size": FFN, "moe_intermediate_size": 128, "head_dim": 32}
    sizes |= {"global_head_dim": 64, "num_experts": 3, "vocab_size": 1024, "num_hidden_layers": 2}
    own = gemma_layout.tiny(**sizes, layer_types=["sliding_attention", "full_attention"])
    (model / "config.json").write_text(json.dumps(gemma_layout.config_of(own)))
    save_file({key: t.bfloat16() for key, t in gemma_layout.published(own).items()}, model / "model.safetensors")
    artifact = qspec.compile(short(name, tmp_path), str(model), tmp_path / "out", "cpu", options=NO_REPORT)
    tensors, (_, form) = stored(artifact.path), EXPECTED[name][0]
    assert form is not None
    records = Manifest.read(artifact.path).modules
    assert len(records) == 7 + 2 * (3 + 1 + 3 * 3) + 1 + 3
    for record in records:
        held = {k.removeprefix(f"{record.module}."): t for k, t in tensors.items() if k.startswith(f"{record.module}.")}
        if record.role.startswith(("embedding", "conditioning")) or record.role.endswith("router"):
            assert record.scheme is None
            assert held["weight"].shape == (record.out_features, record.in_features)
        else:
            check_quantized(record, held, form, (record.out_features, record.in_features))
