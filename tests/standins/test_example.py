"""The scripts that made the stand-ins: splits, and outliers that leave the function alone."""

from __future__ import annotations

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
    import dataset
    import network
    import outliers
    import simulate
    import tasks

    yield SimpleNamespace(dataset=dataset, network=network, outliers=outliers, simulate=simulate, tasks=tasks)
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture(params=("llada", "dream"))
def model(request: pytest.FixtureRequest, scripts: SimpleNamespace) -> Decoder:
    """Two blocks with random weights, norms and biases included."""
    tokens = {"<|endoftext|>": 0, "<|pad|>": 1, "<|mask|>": 2}
    family = FAMILIES[request.param]
    torch.manual_seed(0)
    model = Decoder(family, family.shape(scripts.network.config(request.param, tokens, layers=2)))
    for block in model.requires_grad_(False).blocks:
        for norm in ("attention.norm", "mlp.norm"):
            block.part(norm).weight.copy_(torch.rand(256) + 0.5)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("family", ["llada", "dream"])
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
        # Two of 256 channels hold nearly all: sqrt(256 / 2) = 11.3. In Dream's input of o four query heads read one
        # head of values, so eight do: sqrt(256 / 8) = 5.7.
        shared = name.endswith("attention.o") and model.shape.kv_heads < model.shape.heads
        assert crest > (5.0 if shared else 9.0), name
        assert crest > 1.5 * crest_before[name], name


def test_outlier_weights_are_exact_in_bfloat16(scripts: SimpleNamespace, model: Decoder) -> None:
    """Storing the model in 16 bits must not break the twins apart."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 3, 28, 3, 60, 3))
    group, width = model.shape.heads // model.shape.kv_heads, model.shape.head_width
    for block, values, neurons in zip(model.blocks, room.values, room.neurons, strict=True):
        head = values[0] // width
        first = [value % width + head * group * width for value in values]  # of the first query head that reads them
        mixed = [[slot + query * width for slot in first] for query in range(group)]
        for pair, part in ((room.residual, "attention.q"), (neurons, "mlp.down"), *((p, "attention.o") for p in mixed)):
            columns = block.part(part).weight[:, list(pair)]  # type: ignore[index]
            assert torch.equal(columns, columns.bfloat16().float())
            assert torch.equal(columns[:, 0], -columns[:, 1])
            silent = 2 if part in ("attention.o", "mlp.down") else 0  # nothing writes to the spare residual channels
            assert int((columns == 0).all(1).sum()) == silent


def test_a_folded_gain_meets_columns_of_the_size_asked_for(scripts: SimpleNamespace, model: Decoder) -> None:
    """A rotation of the residual stream moves the norm's gain into the weights: gain times column is 3 times the rms of
    the row's other weights, while the gain itself lifts the channels to 28 times the others."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    others = [channel for channel in range(256) if channel not in room.residual]
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 3, 28, 3, 60, 3))
    for block, seen in zip(model.blocks, scripts.outliers.inputs(model, ids), strict=True):
        for norm, readers in scripts.outliers.NORMS.items():
            gain = block.part(norm).weight[room.residual[0]]  # type: ignore[index]
            for reader in readers:
                w = block.part(reader).weight
                rows = w[:, others].norm(dim=1) / 16  # type: ignore[index]
                folded = (gain * w[:, room.residual[0]]).abs() / rows  # type: ignore[index]
                reads = folded > 0  # but for the two rows that make the other twins
                assert int(reads.sum()) >= len(rows) - 2
                folded = folded[reads]
                assert float(folded.min()) == pytest.approx(3, rel=0.01)
                assert float(folded.max()) == pytest.approx(3, rel=0.01)
            x = seen[readers[0]]
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
