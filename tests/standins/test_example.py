"""The scripts that made the stand-ins: splits, and outliers that leave the function alone."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qspec.models.decoder import Decoder
from qspec.models.registry import FAMILIES
from qspec.resources import standin
from tests.standins.test_tiny_llada import FOLDER, KINDS, rows

SCRIPTS = Path(__file__).parents[2] / "examples" / "standins"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The example's modules, which stand beside each other and not in a package."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    import batches
    import dataset
    import network
    import outliers
    import simulate
    import tasks
    import train

    modules = (batches, dataset, network, outliers, simulate, tasks, train)
    yield SimpleNamespace(**{module.__name__: module for module in modules})
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture(params=("llada", "dream", "fast_dllm", "sdar_moe"))
def model(request: pytest.FixtureRequest, scripts: SimpleNamespace) -> Decoder:
    return _two_blocks(scripts, request.param)


def _two_blocks(scripts: SimpleNamespace, family: str) -> Decoder:
    """Two blocks with random weights, norms and biases included."""
    tokens = {"<|endoftext|>": 0, "<|pad|>": 1, "<|mask|>": 2}
    torch.manual_seed(0)
    model = Decoder(FAMILIES[family], FAMILIES[family].shape(scripts.network.config(family, tokens, layers=2)))
    for block in model.requires_grad_(False).blocks:
        for norm in ("attention.norm", "mlp.norm"):
            block.part(norm).weight.copy_(torch.rand(256) + 0.5)  # type: ignore[operator]
    return model


def _trained(scripts: SimpleNamespace) -> Decoder:
    """Two blocks of experts as training has them, without noise."""
    tokens = {"<|endoftext|>": 0, "<|pad|>": 1, "<|mask|>": 2}
    torch.manual_seed(0)
    noise = (torch.zeros(()), torch.zeros(()))
    model: Decoder = scripts.network.build(
        scripts.network.config("sdar_moe", tokens, layers=2), torch.device("cpu"), noise
    )
    return model.requires_grad_(False)


@pytest.mark.parametrize("family", ["llada", "dream", "fast_dllm", "sdar_moe"])
def test_the_shipped_config_is_what_the_script_writes(scripts: SimpleNamespace, family: str) -> None:
    folder = standin(family)
    config = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert list(scripts.network.config(family, tokens).items()) == list(config.items())


def test_the_shipped_data_is_what_the_script_writes(scripts: SimpleNamespace, tmp_path: Path) -> None:
    scripts.dataset.write_data(tmp_path)
    for file in sorted((FOLDER / "data").iterdir()):
        assert (tmp_path / file.name).read_text() == file.read_text(), file.name


def test_no_shipped_item_is_among_the_training_items(scripts: SimpleNamespace) -> None:
    for kind in scripts.tasks.KINDS:
        training = {(item.prompt, item.answer) for item in scripts.dataset.training_items(kind, 20_000)}
        assert len(training) > 1000
        assert not training & {(row["prompt"], row["answer"]) for row in rows(kind.name)}


def test_a_problem_in_another_dress_is_in_the_same_split(scripts: SimpleNamespace) -> None:
    """Numbers and template decide, so no held-out arithmetic meets training under other names."""
    digits = {kind: {_skeleton(row["prompt"]) for row in rows(kind)} for kind in ("arithmetic",)}
    (kind,) = (k for k in scripts.tasks.KINDS if k.name == "arithmetic")
    training = {_skeleton(item.prompt) for item in scripts.dataset.training_items(kind, 50_000)}
    assert not training & digits["arithmetic"]


def _skeleton(prompt: str) -> tuple[str, ...]:
    """The numbers, with the verbs that tell the templates apart."""
    verbs = {"buys", "boxes", "shop", "euros", "pages", "birds"}
    words = prompt.replace(".", " ").replace("?", " ").split()
    return tuple(w for w in words if w.isdigit() or w in verbs)


def test_both_splits_come_up_in_every_kind(scripts: SimpleNamespace) -> None:
    assert tuple(kind.name for kind in scripts.tasks.KINDS) == KINDS
    for kind in scripts.tasks.KINDS:
        train, heldout = (next(scripts.tasks.items(kind, split, 7)) for split in ("train", "heldout"))
        assert scripts.tasks.split_of(train.key) == "train"
        assert scripts.tasks.split_of(heldout.key) == "heldout"


def test_outliers_keep_the_function(scripts: SimpleNamespace, model: Decoder) -> None:
    """Float32 logits move by 1e-6 relative at most, while every input's largest value grows far past its rms."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    before = model(ids).logits
    crest_before = _crests(scripts, model, ids)
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 3, 28, 3, 60, 3))
    after = model(ids).logits
    assert float((after - before).norm() / before.norm()) < 2e-6
    for name, crest in _crests(scripts, model, ids).items():
        # Two of 256 channels hold nearly all: sqrt(256 / 2) = 11.3, of an expert's 128 sqrt(128 / 2) = 8. In Dream's
        # input of o four query heads read one head of values, so eight of 256 do: sqrt(256 / 8) = 5.7.
        shared = name.endswith("attention.o") and model.shape.kv_heads < model.shape.heads
        assert crest > (5.0 if shared else 7.5 if name.endswith("].down") else 9.0), name
        assert crest > 1.4 * crest_before[name], name


def test_outliers_can_be_taken_out_again(scripts: SimpleNamespace, model: Decoder) -> None:
    """The function stays, and every channel of every input is as large as before there were any."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    before, crest_before = model(ids).logits, _crests(scripts, model, ids)
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 3, 28, 3, 60, 3))
    scripts.outliers.take_out(model)
    after = model(ids).logits
    assert float((after - before).norm() / before.norm()) < 2e-6
    for name, crest in _crests(scripts, model, ids).items():
        assert crest < 1.5 * crest_before[name], name


def test_a_block_causal_model_learns_each_block_behind_clean_ones(scripts: SimpleNamespace) -> None:
    """With every target masked, the loss is that of each block of 16 computed alone: clean tokens before it, masks from
    its first target on, whose first token is predicted from the last clean one."""
    model = _two_blocks(scripts, "fast_dllm").eval()
    ids = torch.randint(3, 600, (1, 48), generator=torch.Generator().manual_seed(1))
    target = torch.arange(48)[None] >= 21
    batch = scripts.batches.Batch(ids, target, None)
    found = scripts.train.masked_loss(model, batch, torch.ones(1, 1), torch.zeros(1, 48))
    losses = []
    for start in (16, 32):
        canvas = ids[:, : start + 16].clone()
        canvas[target[:, : start + 16] & (torch.arange(start + 16) >= start)] = 2
        x, clean = model.hidden(canvas), model.hidden(ids[:, :start])
        x = torch.cat((clean[:, -1:], x[:, start:-1]), dim=1)
        own = torch.nn.functional.cross_entropy(model.finish(x)[0], ids[0, start : start + 16], reduction="none")
        losses.append(own[target[0, start : start + 16]])
    assert float(found) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_experts_begin_as_slices_of_a_dense_mlp(scripts: SimpleNamespace) -> None:
    """All six together, each as much as a token's two are of six, are the MLP; what both models have is the same."""
    plain, model = _two_blocks(scripts, "llada").eval(), _trained(scripts)
    scripts.network.take_over(model, plain)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    block, own = model.eval().blocks[1], plain.blocks[1]
    whole = sum(block._mlp(f"mlp.experts[{expert}]", x, block.part) for expert in range(6))
    assert torch.allclose(whole / 3, own.feed_forward(x), atol=1e-5)
    for part in ("attention.q", "attention.o", "attention.norm", "mlp.norm"):
        assert torch.equal(block.part(part).weight, own.part(part).weight)  # type: ignore[arg-type]
    assert torch.equal(model.embedding.weight, plain.embedding.weight)  # type: ignore[arg-type]
    normed = torch.nn.functional.rms_norm(torch.randn(500, 256), (256,)) * own.part("attention.norm").weight  # type: ignore[operator]
    queries = own.part("attention.q")(normed).square().mean().sqrt()
    assert float(block.part("attention.q_norm").weight.mean()) == pytest.approx(float(queries), rel=0.05)  # type: ignore[operator,union-attr]


def test_training_computes_the_mixture_that_evaluation_computes(scripts: SimpleNamespace) -> None:
    """All experts at once and those chosen alone, without noise; and the loss that keeps all of them in use."""
    model = _trained(scripts)
    ids = torch.randint(3, 600, (3, 48), generator=torch.Generator().manual_seed(1))
    at_once = model.train()(ids).logits
    assert torch.allclose(at_once, model.eval()(ids).logits, atol=1e-5)
    real = (torch.arange(48) < 32).expand(3, 48)
    batch = scripts.batches.Batch(ids, real, real)
    for block in model.blocks:
        logits = torch.zeros(3, 96, 6)
        logits[..., :2] = 20  # two experts for all that is real: 6 (1/2 1/2 + 1/2 1/2)
        logits[:, 32:48], logits[:, 80:] = -logits[:, 32:48], -logits[:, 80:]
        block.part("mlp.router").last = logits.flatten(0, 1)
    assert float(scripts.train.imbalance(model, batch)) == pytest.approx(3, rel=1e-4)


def test_outlier_weights_are_exact_in_bfloat16(scripts: SimpleNamespace, model: Decoder) -> None:
    """Storing the model in 16 bits must not break the twins apart."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 3, 28, 3, 60, 3))
    group, width = model.shape.heads // model.shape.kv_heads, model.shape.head_width
    for block, values, spare in zip(model.blocks, room.values, room.neurons, strict=True):
        head = values[0] // width
        first = [value % width + head * group * width for value in values]  # of the first query head that reads them
        mixed = [[slot + query * width for slot in first] for query in range(group)]
        neurons = [(pair, f"{mlp}.down") for mlp, pair in spare.items()]
        for pair, part in ((room.residual, "attention.q"), *neurons, *((p, "attention.o") for p in mixed)):
            columns = block.part(part).weight[:, list(pair)]  # type: ignore[index]
            assert torch.equal(columns, columns.bfloat16().float())
            assert torch.equal(columns[:, 0], -columns[:, 1])
            silent = 2 if part.endswith((".o", ".down")) else 0  # nothing writes to the spare residual channels
            assert int((columns == 0).all(1).sum()) == silent


def test_a_folded_gain_meets_columns_of_the_size_asked_for(scripts: SimpleNamespace, model: Decoder) -> None:
    """A rotation of the residual stream moves the norm's gain into the weights: gain times column is 3 times the rms of
    the row's other weights, while the gain itself lifts the channels to 28 times the others."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    others = [channel for channel in range(256) if channel not in room.residual]
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 3, 28, 3, 60, 3))
    for block, seen in zip(model.blocks, scripts.outliers.inputs(model, ids), strict=True):
        for norm in scripts.outliers.NORMS:
            gain = block.part(norm).weight[room.residual[0]]  # type: ignore[index]
            sites = scripts.outliers.readers(block, norm)
            for reader in itertools.chain(*sites):
                w = block.part(reader).weight
                rows = w[:, others].norm(dim=1) / 16  # type: ignore[index]
                folded = (gain * w[:, room.residual[0]]).abs() / rows  # type: ignore[index]
                reads = folded > 0  # but for the two rows that make the other twins
                assert int(reads.sum()) >= len(rows) - 2
                folded = folded[reads]
                assert float(folded.min()) == pytest.approx(3, rel=0.01)
                assert float(folded.max()) == pytest.approx(3, rel=0.01)
            x = torch.cat([seen[site] for site, *_ in sites])
            lifted = x[:, room.residual[0]].abs() / x[:, others].square().mean(1).sqrt()
            assert float(lifted.median()) == pytest.approx(28, rel=0.1)


def _crests(scripts: SimpleNamespace, model: Decoder, ids: torch.Tensor) -> dict[str, float]:
    """The mean over tokens of max / rms, of every input of every block."""
    seen = scripts.outliers.inputs(model, ids)
    return {
        f"{index} {part}": float((x.abs().amax(-1) / x.square().mean(-1).sqrt()).mean())
        for index, own in enumerate(seen)
        for part, x in own.items()
    }
