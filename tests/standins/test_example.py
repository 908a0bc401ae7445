"""The scripts that made tiny-llada: splits, and outliers that leave the function alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA
from tests.standins.test_tiny_llada import FOLDER, KINDS, rows

SCRIPTS = Path(__file__).parents[2] / "examples" / "tiny_llada"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The example's modules, which stand beside each other and not in a package."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    import dataset
    import outliers
    import simulate
    import tasks

    yield SimpleNamespace(dataset=dataset, outliers=outliers, simulate=simulate, tasks=tasks)
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def model() -> Decoder:
    """Two blocks with random weights, norms included."""
    config = json.loads((FOLDER / "config.json").read_text()) | {"n_layers": 2}
    torch.manual_seed(0)
    model = Decoder(LLADA, LLADA.shape(config)).requires_grad_(False)
    for block in model.blocks:
        for norm in ("attention.norm", "mlp.norm"):
            block.part(norm).weight.copy_(torch.rand(256) + 0.5)  # type: ignore[operator]
    return model


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
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 28, 60, 3))
    after = model(ids).logits
    assert float((after - before).norm() / before.norm()) < 2e-6
    for name, crest in _crests(scripts, model, ids).items():
        assert crest > 9.0, name  # two channels that hold nearly all: sqrt(256 / 2) = 11.3
        assert crest > 1.5 * crest_before[name], name


def test_outlier_weights_are_exact_in_bfloat16(scripts: SimpleNamespace, model: Decoder) -> None:
    """Storing the model in 16 bits must not break the twins apart."""
    ids = torch.randint(3, 600, (4, 64), generator=torch.Generator().manual_seed(1))
    room = scripts.outliers.make_room(model, ids)
    scripts.outliers.inject(model, ids, room, scripts.outliers.Sizes(28, 28, 60, 3))
    for block, values, neurons in zip(model.blocks, room.values, room.neurons, strict=True):
        for pair, part in ((room.residual, "attention.q"), (values, "attention.o"), (neurons, "mlp.down")):
            columns = block.part(part).weight[:, pair]  # type: ignore[index]
            assert torch.equal(columns, columns.bfloat16().float())
            assert torch.equal(columns[:, 0], -columns[:, 1])
            silent = 2 if part in ("attention.o", "mlp.down") else 0  # nothing writes to the spare residual channels
            assert int((columns == 0).all(1).sum()) == silent


def _crests(scripts: SimpleNamespace, model: Decoder, ids: torch.Tensor) -> dict[str, float]:
    """The mean over tokens of max / rms, of every input of every block."""
    seen = scripts.outliers.inputs(model, ids)
    return {
        f"{index} {part}": float((x.abs().amax(-1) / x.square().mean(-1).sqrt()).mean())
        for index, own in enumerate(seen)
        for part, x in own.items()
    }
