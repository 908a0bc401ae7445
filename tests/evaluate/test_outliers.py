"""Where outliers are looked for in a decoder; what an outlier is: tests/calibrate/test_outliers.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qspec.evaluate.outliers import collect, compare
from qspec.models.decoder import Decoder
from qspec.models.family import DecoderShape
from qspec.models.inputs import LayerInput, value_of
from qspec.models.llada import LLADA
from qspec.transforms import InputTransform

SHAPE = DecoderShape(
    layers=2, width=16, heads=2, kv_heads=2, head_width=8, ffn=24, vocab=11, max_length=32,
    norm_eps=1e-5, rope_theta=1e4, qkv_bias=False, bias=False, tied=False, shift=False, sampler="llada",
    mask_token=10, eos_token=9, pad_token=9,
)  # fmt: skip


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(LLADA, SHAPE).requires_grad_(False)


def ids() -> Tensor:
    return torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(1))


def test_every_site_is_seen_once(decoder: Decoder) -> None:
    found = collect(decoder, ids(), "before")
    names = ("attention.input", "attention.mixed", "mlp.input", "mlp.gated")
    assert list(found) == [f"blocks[{block}].{name}" for block in range(2) for name in names]
    assert [found[f"blocks[1].{name}"][0].channels for name in names] == [16, 16, 16, 24]
    assert all(row.tokens == 16 for row, _ in found.values())


def test_the_inputs_are_those_of_the_linears(decoder: Decoder) -> None:
    seen: list[Tensor] = []
    handle = decoder.blocks[1].part("mlp.down").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder(ids())
    handle.remove()
    row, _ = collect(decoder, ids(), "before")["blocks[1].mlp.gated"]
    assert row.peak == pytest.approx(float(seen[0].abs().max()), rel=1e-6)


def test_nothing_is_left_behind(decoder: Decoder) -> None:
    before = decoder(ids()).logits
    collect(decoder, ids(), "before")
    assert not any(module._forward_pre_hooks for module in decoder.modules())
    assert torch.equal(decoder(ids()).logits, before)


class Quantized(nn.Module):
    """The face of a quantized linear: what it is given is prepared once for all linears of a site."""

    def __init__(self, inner: nn.Linear, transform: InputTransform | None) -> None:
        super().__init__()
        self.inner, self.transform = inner, transform
        self.input_key = id(transform)

    def prepare(self, given: LayerInput) -> Tensor:
        return value_of(given)

    def multiply(self, prepared: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.inner(prepared)
        return y if residual is None else residual + y

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.prepare(x))


def test_quantized_linears_show_their_transformed_input(decoder: Decoder) -> None:
    torch.manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q.half()
    transform = InputTransform((rotation,))
    expected: dict[str, Tensor] = {}
    for part in ("attention.q", "attention.k", "attention.v", "mlp.down"):
        linear = decoder.blocks[0].part(part)
        name = {"attention.q": "attention.input", "mlp.down": "mlp.gated"}.get(part)
        if name:
            linear.register_forward_pre_hook(
                lambda _, args, name=name: expected.update({name: transform.apply(args[0])})
            )
        decoder.blocks[0].replace(part, Quantized(linear, transform))
    decoder(ids())
    found = collect(decoder, ids(), "after")
    for name, x in expected.items():
        assert found[f"blocks[0].{name}"][0].peak == pytest.approx(float(x.abs().max()), rel=1e-5)
    assert "prepare" not in vars(decoder.blocks[0].part("attention.q"))


def test_pictures_show_the_largest_outlier_of_each_kind(decoder: Decoder) -> None:
    with torch.no_grad():
        decoder.blocks[0].part("attention.norm").weight[3] = 80.0
        decoder.blocks[1].part("mlp.up").weight[5] *= 20_000
    quiet = Decoder(LLADA, SHAPE).requires_grad_(False)
    found = compare(decoder, quiet, ids())
    assert [(one.site, one.stage) for one in found.pictures] == [
        ("blocks[0].attention.input", "before"),
        ("blocks[0].attention.input", "after"),
        ("blocks[1].mlp.gated", "before"),
        ("blocks[1].mlp.gated", "after"),
    ]
    rows = {row.site: row for row in found.before}
    assert rows["blocks[0].attention.input"].top[0].channel == 3
    assert rows["blocks[0].attention.input"].tokens_spanned > 0.5
    assert rows["blocks[1].mlp.gated"].kind == "massive"
    assert rows["blocks[1].mlp.gated"].top[0].channel == 5
    assert len(found.after) == len(found.before) == 8
