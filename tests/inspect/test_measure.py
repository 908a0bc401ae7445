"""What inspection finds, against hand-made activations, numpy and the whole model; and that it reads block by block."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qspec.calibrate.outliers import SiteOutliers
from qspec.errors import InputError, NumericsError
from qspec.evaluate.outliers import collect
from qspec.inspect import Inspection, MaskedText, inspect
from qspec.inspect.data import Row
from qspec.inspect.measure import Masks, _Found
from qspec.models.checkpoint import Checkpoint, load_decoder
from qspec.runtime import load_tokenizer
from tests.inspect.conftest import BLOCK, CONFIG, Change, checkpoint
from tests.models.layout import Array, random_weights

SMALL = MaskedText(samples=3, length=16, seed=5)
INPUTS = ("attention.input", "attention.mixed", "mlp.input", "mlp.gated")


@pytest.fixture(scope="module")
def found(plain: Path, text: Path) -> Inspection:
    return inspect(str(plain), replace(SMALL, text=str(text)), device="cpu")


def row_of(data: Inspection, block: int, name: str, ratio: float, positions: str = "all") -> Row:
    chosen = [r for r in data.rows if (r.block, r.input, r.ratio, r.positions) == (block, name, ratio, positions)]
    assert len(chosen) == 1
    return chosen[0]


def close(one: SiteOutliers, other: SiteOutliers) -> None:
    """Equal to 1e-6, counts and kinds exactly."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, float):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-9), field.name
        elif field.name == "top":
            assert [t.channel for t in a] == [t.channel for t in b]
            assert [t.peak for t in a] == pytest.approx([t.peak for t in b], rel=1e-6)
        else:
            assert a == b, field.name


# The tokens and the masks


def masks_of(plain: Path, text: Path, ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> Masks:
    from qspec.data import read_documents
    from qspec.data.items import TextData
    from qspec.inspect.measure import nested_masks

    decoder = load_decoder(plain, "cpu", torch.float32)
    content = TextData("text", (text,), read_documents(text))
    return nested_masks(content, load_tokenizer(plain), decoder, replace(SMALL, ratios=ratios))


def test_masks_are_nested_and_of_the_ratio_asked_for(plain: Path, text: Path) -> None:
    masks = masks_of(plain, text)
    assert masks.masked.shape == (5, 3, 16)
    assert not masks.masked[0].any()
    assert masks.masked[4].all()
    for low, high in zip(masks.masked, masks.masked[1:], strict=False):
        assert (high | ~low).all()
        assert high.sum() > low.sum()


def test_a_ratio_draws_the_same_masks_beside_whichever_others(plain: Path, text: Path) -> None:
    every, one = masks_of(plain, text), masks_of(plain, text, (0.5,))
    assert torch.equal(every.ids, one.ids)
    assert torch.equal(every.masked[2], one.masked[0])
    assert every.sha256 == one.sha256


# Statistics by hand


def test_masked_and_unmasked_positions_by_hand(plain: Path) -> None:
    masked = torch.tensor([[True, False, True], [False, False, True]])
    masks = Masks(torch.tensor([[30, 31, 32], [33, 34, 35]]), masked[None], (0.5,), 2, "", None)
    found = _Found(load_tokenizer(plain), masks, "before")
    x = torch.ones(6, 5)
    x[0, 4], x[2, 4], x[5, 4] = 400.0, 40.0, 4.0  # masked positions: sample 0 at 0 and 2, sample 1 at 2
    x[1, 3], x[3, 3] = 6.0, 3.0  # unmasked ones: sample 0 at 1, sample 1 at 0; at sample 1, 1 all are 1
    every, hidden, shown = found._site(7, "blocks[7].mlp.gated", 0.5, x, masked.flatten())
    assert [(row.positions, row.block, row.input) for row in (every, hidden, shown)] == [
        ("all", 7, "mlp.gated"), ("masked", 7, "mlp.gated"), ("unmasked", 7, "mlp.gated"),
    ]  # fmt: skip
    assert (every.found.kind, every.found.peak, every.found.tokens) == ("massive", 400.0, 6)
    assert (every.found.outlier_channels, every.found.spanning_tokens) == (2, 2)  # peaks 1 1 1 6 400; 400, 40 >= 5
    assert (hidden.found.kind, hidden.found.peak, hidden.found.tokens) == ("massive", 400.0, 3)
    assert (hidden.found.outlier_channels, hidden.found.spanning_tokens) == (1, 2)
    assert hidden.found.tokens_spanned == pytest.approx(2 / 3)
    assert (shown.found.kind, shown.found.peak, shown.found.tokens) == ("normal", 6.0, 3)
    assert (shown.found.outlier_channels, shown.found.spanning_tokens) == (1, 1)
    # 11 ones, 16e4 + 1600 + 16 of 15 values; 13 ones, 36 + 9 of 15
    assert hidden.found.crest == pytest.approx(400 / np.sqrt((160_000 + 1_600 + 16 + 12) / 15))
    assert shown.found.crest == pytest.approx(6 / np.sqrt((36 + 9 + 13) / 15))
    places = [(t.sample, t.position, t.masked, t.magnitude) for t in hidden.tokens]
    assert places == [(0, 0, True, 400.0), (0, 2, True, 40.0)]
    assert [(t.sample, t.position, t.masked, t.magnitude) for t in shown.tokens] == [(0, 1, False, 6.0)]
    assert [t.token for t in hidden.tokens] == [load_tokenizer(plain).decode([i]) for i in (30, 32)]


def test_the_first_input_against_numpy(found: Inspection, plain: Path, text: Path) -> None:
    """RMSNorm of the embedded tokens, masked positions apart."""
    weights = random_weights(CONFIG)
    masks = masks_of(plain, text)
    ids = np.where(masks.masked[2].numpy(), 2, masks.ids.numpy())
    x = weights["model.transformer.wte.weight"][ids].astype(np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{BLOCK}.0.attn_norm.weight"]
    for positions, chosen in (("masked", masks.masked[2].numpy()), ("unmasked", ~masks.masked[2].numpy())):
        part = np.abs(x[chosen])
        row = row_of(found, 0, "attention.input", 0.5, positions).found
        peaks = np.sort(part.max(0))
        assert row.tokens == len(part)
        assert row.peak == pytest.approx(peaks[-1], rel=1e-5)
        assert row.median == pytest.approx(peaks[(len(peaks) - 1) // 2], rel=1e-5)
        assert row.typical == pytest.approx(np.sort(part.flatten())[(part.size - 1) // 2], rel=1e-5)
        assert row.crest == pytest.approx(peaks[-1] / np.sqrt((part**2).mean()), rel=1e-5)


def test_streaming_gives_what_the_whole_model_gives(found: Inspection, plain: Path, text: Path) -> None:
    decoder, masks = load_decoder(plain, "cpu", torch.float32), masks_of(plain, text)
    for place, ratio in enumerate(masks.ratios):
        whole = collect(decoder, masks.ids.masked_fill(masks.masked[place], 2), "before")
        assert len(whole) == 8
        for site, (row, _) in whole.items():
            block, name = int(site[7]), site.partition("].")[2]
            close(row_of(found, block, name, ratio).found, row)


def test_every_block_input_ratio_and_position_has_its_row(found: Inspection) -> None:
    kinds = {0.0: ["all", "unmasked"], 1.0: ["all", "masked"]}
    wanted = [
        (block, name, ratio, positions)
        for block in (0, 1)
        for name in INPUTS
        for ratio in (0.0, 0.25, 0.5, 0.75, 1.0)
        for positions in kinds.get(ratio, ["all", "masked", "unmasked"])
    ]
    assert [(r.block, r.input, r.ratio, r.positions) for r in found.rows] == wanted
    assert found.inputs == INPUTS


def test_masks_that_differ_only_in_the_ratio_are_one_token_at_one(found: Inspection) -> None:
    """Where every position is masked, all tokens are the same vector, whatever their position."""
    for name in INPUTS:
        row = row_of(found, 1, name, 1.0).found
        assert row.median == pytest.approx(row.typical, rel=1e-4)


# Planted outliers


def gain(part: str, block: int, channel: int) -> Change:
    def change(weights: dict[str, Array]) -> None:
        weights[f"{BLOCK}.{block}.{part}.weight"][channel] *= 50

    return change


@pytest.mark.parametrize(
    ("part", "block", "name", "channel"),
    [
        ("attn_norm", 1, "attention.input", 17),
        ("v_proj", 0, "attention.mixed", 5),
        ("ff_norm", 0, "mlp.input", 23),
        ("up_proj", 1, "mlp.gated", 31),
    ],
)
def test_a_planted_outlier_is_found_where_it_is(
    part: str, block: int, name: str, channel: int, found: Inspection, text: Path, tmp_path: Path
) -> None:
    """A norm's gain, or a row of v or up, scaled by 50 makes one channel of one input 50 times as large."""
    folder = checkpoint(tmp_path / "planted", gain(part, block, channel))
    planted = inspect(str(folder), replace(SMALL, text=str(text)), device="cpu")
    for ratio in planted.input.ratios:
        before, after = (row_of(data, block, name, ratio).found for data in (found, planted))
        assert after.top[0].channel == channel
        assert after.kind != "none"
        assert after.ratio > before.ratio
        plain_peaks = {top.channel: top.peak for top in before.top}
        if channel in plain_peaks:
            assert after.peak == pytest.approx(50 * plain_peaks[channel], rel=1e-4)
        earlier = [(b, n) for b in (0, 1) for n in INPUTS if (b, INPUTS.index(n)) < (block, INPUTS.index(name))]
        for b, n in earlier:
            assert row_of(planted, b, n, ratio).found == row_of(found, b, n, ratio).found
    drawn = {one.picture.site for one in planted.pictures}
    assert f"blocks[{block}].{name}" in drawn


def test_an_outlier_of_the_mask_token_stands_at_masked_positions_alone(text: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Array]) -> None:
        weights["model.transformer.wte.weight"][:, 9] = 0.0
        weights["model.transformer.wte.weight"][2, 9] = 3.0
        weights[f"{BLOCK}.0.attn_norm.weight"][9] = 20.0

    data = inspect(str(checkpoint(tmp_path / "mask", change)), replace(SMALL, text=str(text)), device="cpu")
    every, masked, shown = (row_of(data, 0, "attention.input", 0.5, p) for p in ("all", "masked", "unmasked"))
    count = masked.found.tokens
    assert 0 < count < every.found.tokens == 48
    assert (every.found.top[0].channel, masked.found.top[0].channel) == (9, 9)
    assert every.found.spanning_tokens == masked.found.spanning_tokens == count
    assert masked.found.tokens_spanned == 1.0
    assert shown.found.top[0].channel != 9
    assert all(token.masked for token in every.tokens)


def test_the_picture_shows_the_peak(found: Inspection) -> None:
    assert found.pictures
    for one in found.pictures:
        best = max((r for r in found.at() if r.found.kind == one.kind), key=lambda r: r.found.crest)
        assert (best.found.site, best.ratio) == (one.picture.site, one.ratio)
        shown = max(max(line) for line in one.picture.magnitudes)
        assert shown == pytest.approx(best.found.peak, rel=5e-3)  # three digits are kept
        assert len(one.picture.masked) == len(one.picture.magnitudes)


# Memory, errors


def test_one_block_at_a_time(plain: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_block, alive, most = Checkpoint.load_block, [], []

    def counted(self: Checkpoint, *args: Any) -> Any:
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        block = load_block(self, *args)
        alive.append(weakref.ref(block))
        return block

    def whole(*_: Any) -> Any:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(Checkpoint, "load_block", counted)
    monkeypatch.setattr(Checkpoint, "load", whole)
    inspect(str(plain), replace(SMALL, text=str(text)), device="cpu")
    assert most == [0, 0]


def test_numbers_that_cannot_be_right(text: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Array]) -> None:
        weights[f"{BLOCK}.0.ff_norm.weight"][:] = 3e38
        weights[f"{BLOCK}.0.up_proj.weight"][:] *= 1e30

    folder = checkpoint(tmp_path / "broken", change)
    with pytest.raises(NumericsError) as caught:
        inspect(str(folder), replace(SMALL, text=str(text)), device="cpu")
    assert caught.value.where is not None
    assert caught.value.where.startswith("blocks[0].mlp.")


def test_a_text_too_short_and_a_window_too_long(plain: Path, tmp_path: Path, text: Path) -> None:
    (tmp_path / "short.txt").write_text("The river.")
    with pytest.raises(InputError, match="fewer than one sample of 64"):
        inspect(str(plain), MaskedText(str(tmp_path / "short.txt")), device="cpu")
    with pytest.raises(InputError, match="length 65 exceeds the model's 64 tokens"):
        inspect(str(plain), MaskedText(str(text), length=65), device="cpu")


@pytest.mark.gpu
def test_a_gpu_finds_the_same(found: Inspection, plain: Path, text: Path) -> None:
    """In bfloat16: kinds may differ only near a threshold, so sizes are compared."""
    other = inspect(str(plain), replace(SMALL, text=str(text)), device="cuda")
    assert other.computed.startswith("bfloat16 on NVIDIA")
    assert [(r.block, r.input, r.ratio, r.positions) for r in other.rows] == [
        (r.block, r.input, r.ratio, r.positions) for r in found.rows
    ]
    for one, row in zip(other.rows, found.rows, strict=True):
        assert one.found.peak == pytest.approx(row.found.peak, rel=0.1)
        assert one.found.crest == pytest.approx(row.found.crest, rel=0.1)
