from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qspec.catalog import kernels_for
from qspec.errors import InputError
from qspec.formats import NUMBER_FORMATS, Granularity, Scheme, TensorFormat
from qspec.kernels.attention import own_heads
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import RMSNorm
from qspec.models.family import Role
from qspec.models.llada import LLADA
from qspec.models.operations import attention, project
from qspec.numerics import quantize_weight
from qspec.passes.linear import Linear
from qspec.search.direction import Directed
from qspec.transforms import InputTransform
from tests.models.layout import LLADA_8B, TINY, Array, forward, random_weights, shapes

VARIANTS = {
    "full": {},
    "gqa": {"n_kv_heads": 2},
    "multi-query": {"n_kv_heads": 1},
    "qkv-bias": {"include_qkv_bias": True, "n_kv_heads": 2},
    "tied": {"weight_tying": True},
}

WIDE = TINY | {"d_model": 128, "mlp_hidden_size": 256, "n_layers": 1}  # as kernels take it


def build(config: dict[str, Any], weights: dict[str, Array], dtype: torch.dtype = torch.float64) -> Decoder:
    decoder = Decoder(LLADA, LLADA.shape(config), dtype=dtype)
    decoder.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return decoder.requires_grad_(False)


def some_ids(count: int, seed: int = 5) -> Array:
    return np.random.default_rng(seed).integers(0, TINY["embedding_size"], count)


def test_llada_8b_state_dict_is_the_published_layout() -> None:
    decoder = Decoder(LLADA, LLADA.shape(LLADA_8B), device="meta", dtype=torch.bfloat16)
    found = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    expected = shapes(LLADA_8B)
    assert found == expected
    assert len(expected) == 291  # 32 blocks of 9, embedding, final norm, head
    assert sum(value.numel() for value in decoder.state_dict().values()) == 8_015_581_184
    assert LLADA.tensors(LLADA.shape(LLADA_8B)) == expected


def test_llada_8b_block_weights() -> None:
    linears = [m for m in LLADA.modules(LLADA.shape(LLADA_8B)) if m.role.block is not None]
    assert len(linears) == 32 * 7
    assert sum(m.weights for m in linears) == 32 * (4 * 4096**2 + 3 * 4096 * 12288) == 6_979_321_856


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_the_papers_equations(change: dict[str, Any]) -> None:
    config = TINY | change
    weights = random_weights(config)
    ids = some_ids(17)
    expected = forward(config, weights, ids)
    wide = build(config, weights)(torch.from_numpy(ids)[None]).logits[0].numpy()
    single = build(config, weights, torch.float32)(torch.from_numpy(ids)[None]).logits[0].numpy()
    size = np.abs(expected).max()
    assert wide.shape == expected.shape == (17, 50)
    assert np.abs(wide - expected).max() < 2e-6 * size  # rotary angles are float32
    assert np.abs(single - expected).max() < 2e-5 * size


def test_every_token_sees_every_other() -> None:
    """Bidirectional: the first token's logits change with the last token, the last one's with the first."""
    decoder = build(TINY, random_weights(TINY))
    ids = torch.from_numpy(some_ids(6))[None]
    changed_last, changed_first = ids.clone(), ids.clone()
    changed_last[0, -1] = (ids[0, -1] + 1) % 50
    changed_first[0, 0] = (ids[0, 0] + 1) % 50
    logits = decoder(ids).logits
    assert not torch.allclose(decoder(changed_last).logits[0, 0], logits[0, 0])
    assert not torch.allclose(decoder(changed_first).logits[0, -1], logits[0, -1])


@pytest.mark.parametrize("place", ["left", "right", "middle"])
def test_padding_changes_nothing(place: str) -> None:
    weights = random_weights(TINY | {"n_kv_heads": 2})
    decoder = build(TINY | {"n_kv_heads": 2}, weights)
    short, long = some_ids(7, seed=1), some_ids(11, seed=2)
    gap = {"left": 0, "right": 7, "middle": 3}[place]
    padded = np.concatenate((short[:gap], np.zeros(4, dtype=np.int64), short[gap:]))
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, gap : gap + 4] = 0
    logits = decoder(torch.from_numpy(np.stack((long, padded))), mask).logits
    alone = decoder(torch.from_numpy(short)[None]).logits[0]
    assert torch.allclose(logits[1][mask[1] == 1], alone, rtol=0, atol=1e-9)
    assert torch.allclose(logits[0], decoder(torch.from_numpy(long)[None]).logits[0], rtol=0, atol=1e-9)
    expected = forward(TINY | {"n_kv_heads": 2}, weights, padded, mask[1].numpy())
    assert np.abs(alone.numpy() - expected).max() < 2e-6 * np.abs(expected).max()


def test_content_of_padding_is_not_seen() -> None:
    decoder = build(TINY, random_weights(TINY))
    ids = torch.from_numpy(some_ids(8))[None]
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    other = ids.clone()
    other[0, 5:] = (ids[0, 5:] + 7) % 50
    assert torch.equal(decoder(ids, mask).logits[0, :5], decoder(other, mask).logits[0, :5])
    assert not torch.equal(decoder(ids).logits[0, :5], decoder(other).logits[0, :5])


def test_bad_masks_are_refused() -> None:
    decoder = build(TINY, random_weights(TINY))
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"shape \[2, 5\], the ids \[2, 4\]"):
        decoder(ids, torch.ones(2, 5))
    with pytest.raises(InputError, match="every token of a row"):
        decoder(ids, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))


def test_hidden_and_finish_are_the_forward_in_two_steps() -> None:
    decoder = build(TINY, random_weights(TINY))
    ids = torch.from_numpy(some_ids(9))[None]
    x = decoder.hidden(ids)
    assert torch.allclose(decoder.finish(x[:, 3:5]), decoder(ids).logits[:, 3:5], rtol=0, atol=1e-12)
    by_hand = decoder.embed(ids)
    for block in decoder.blocks:
        by_hand = block(by_hand, decoder.context((1, 9)))
    assert torch.equal(by_hand, x)


def test_it_trains() -> None:
    """Every parameter gets a gradient, and it is the slope of the loss."""
    config = TINY | {"n_kv_heads": 2, "include_qkv_bias": True}
    decoder = build(config, random_weights(config)).requires_grad_(True)
    ids = torch.from_numpy(some_ids(6))[None]
    loss = decoder(ids).logits.logsumexp(-1).sum()
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        flat = parameter.grad.abs().flatten()
        place = int(flat.argmax())
        before = parameter.detach().flatten()[place].item()
        with torch.no_grad():
            parameter.view(-1)[place] = before + 1e-6
            above = decoder(ids).logits.logsumexp(-1).sum()
            parameter.view(-1)[place] = before - 1e-6
            below = decoder(ids).logits.logsumexp(-1).sum()
            parameter.view(-1)[place] = before
        slope = (above - below).item() / 2e-6
        assert slope == pytest.approx(parameter.grad.flatten()[place].item(), rel=1e-4), name


def test_rms_norm_is_computed_wide() -> None:
    """300^2 overflows float16 and 3000 squares of bfloat16 lose their sum; neither may show."""
    norm = RMSNorm(64, 1e-5, dtype=torch.float16)
    x = torch.full((1, 64), 300.0, dtype=torch.float16)
    assert torch.equal(norm(x), torch.ones(1, 64, dtype=torch.float16))
    kept_wide = RMSNorm(64, 1e-5, dtype=torch.float32)
    assert kept_wide(x).dtype == torch.float16


def test_parts_and_replacement_keep_the_checkpoints_names() -> None:
    decoder = build(TINY, random_weights(TINY))
    block = decoder.blocks[1]
    assert block.part("mlp.down") is decoder.module(Role("mlp.down", 1))
    assert decoder.module(Role("mlp.down", 1)) is decoder.get_submodule("model.transformer.blocks.1.ff_out")
    assert decoder.head is decoder.get_submodule("model.transformer.ff_out")
    replacement = nn.Linear(40, 24, bias=False, dtype=torch.float64)
    names = list(decoder.state_dict())
    block.replace("mlp.down", replacement)
    assert block.part("mlp.down") is replacement
    assert list(decoder.state_dict()) == names
    decoder.replace(Role("head"), nn.Linear(24, 50, bias=False, dtype=torch.float64))
    assert list(decoder.state_dict()) == names


def test_a_model_without_weights_is_made_without_a_compiler() -> None:
    """torch._dynamo takes longer to import than a small model to compile, and nothing traces here."""
    code = (
        "import sys; from qspec.models.decoder import Decoder; from qspec.models.llada import LLADA\n"
        f"Decoder(LLADA, LLADA.shape({TINY!r}), device='meta')\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_embedding_starts_as_torchs_own() -> None:
    torch.manual_seed(3)
    ours = Decoder(LLADA, LLADA.shape(TINY))
    torch.manual_seed(3)
    wanted = nn.Embedding(*ours.embedding.weight.shape)
    assert torch.equal(ours.embedding.weight, wanted.weight)
    assert ours.embedding.weight.requires_grad


def test_meta_device_gives_shapes() -> None:
    decoder = Decoder(LLADA, LLADA.shape(LLADA_8B), device="meta", dtype=torch.bfloat16)
    ids = torch.zeros(2, 33, dtype=torch.int64, device="meta")
    assert decoder(ids, torch.ones(2, 33, device="meta")).logits.shape == (2, 33, 126464)
    assert decoder(ids).logits.dtype == torch.bfloat16


class Counting(nn.Module):
    """A quantized linear's outline: prepares (here: doubles) its input, then multiplies."""

    def __init__(self, row: str, transform: object, factor: float) -> None:
        super().__init__()
        self.input_key, self.factor = (row, id(transform)), factor
        self.prepared = 0

    def prepare(self, x: Tensor) -> Tensor:
        self.prepared += 1
        return 2 * x

    def multiply(self, prepared: Tensor) -> Tensor:
        return prepared * self.factor


def test_project_prepares_a_shared_input_once() -> None:
    shared, other = object(), object()
    q, k = Counting("rotate_int4", shared, 1), Counting("rotate_int4", shared, 10)
    v, plain = Counting("rotate_int4", other, 100), nn.Linear(3, 3)
    w8 = Counting("rotate_int8", shared, 1000)
    x = torch.arange(3.0)[None]
    outputs = project([q, k, v, plain, w8], x)
    assert [m.prepared for m in (q, k, v, w8)] == [1, 0, 1, 1]
    for output, factor in zip((*outputs[:3], outputs[4]), (2, 20, 200, 2000), strict=True):
        assert torch.equal(output, factor * x)
    assert torch.equal(outputs[3], plain(x))


def packed(linear: nn.Linear, scheme: Scheme) -> nn.Module:
    quantized = quantize_weight(linear.weight.float(), scheme.weights)
    return QuantLinear(PackedLinear.from_quantized(quantized, kernels_for(scheme)))


def compiling(linear: nn.Linear, scheme: Scheme) -> Linear:
    (entry,) = (e for e in LLADA.modules(LLADA.shape(WIDE)) if str(e.role) == "blocks[0].mlp.down")
    one = Linear(entry, scheme, linear.weight, None)
    one.quantized = quantize_weight(one.weight, scheme.weights)
    return one


KINDS = {
    "float": lambda linear, _: linear,
    "packed": packed,
    "compiling": compiling,
    "directed": lambda linear, scheme: Directed(compiling(linear, scheme), torch.tensor([0.25, 0.75])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_linears_add_the_residual_as_the_block_would(kind: str) -> None:
    decoder = build(WIDE, random_weights(WIDE), torch.bfloat16)
    (block,) = decoder.blocks
    number = NUMBER_FORMATS["int4"]
    scheme = Scheme("w4a4", TensorFormat(number, Granularity("channel")), TensorFormat(number, Granularity("token")))
    for part in block.paths:
        if not part.endswith("norm"):
            block.replace(part, KINDS[kind](block.part(part), scheme))
    context = decoder.context((2, 9))
    x = decoder.embed(torch.from_numpy(some_ids(18)).reshape(2, 9))
    h = x + block.attend(block.part("attention.norm")(x), context)
    assert not torch.equal(h, x)
    expected = h + block.feed_forward(block.part("mlp.norm")(h))
    assert not torch.equal(expected, h)
    assert torch.equal(block(x, context), expected)


def test_quantized_linears_of_one_input_share_its_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(WIDE)
    number, channel, token = NUMBER_FORMATS["int4"], Granularity("channel"), Granularity("token")
    scheme = Scheme("w4a4", TensorFormat(number, channel), TensorFormat(number, token))
    orthogonal = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0].half()

    def quantized(sharing: bool) -> Decoder:
        decoder = build(WIDE, weights, torch.float32)
        one = InputTransform((orthogonal,))
        for part in ("attention.q", "attention.k", "attention.v"):
            transform = one if sharing else InputTransform((orthogonal.clone(),))
            w = transform.absorb(decoder.blocks[0].part(part).weight)
            codes, kernels = quantize_weight(w, scheme.weights), kernels_for(scheme, transform.blocks)
            packed = PackedLinear.from_quantized(codes, kernels, transform=transform)
            decoder.blocks[0].replace(part, QuantLinear(packed).to("cpu"))
        return decoder

    prepare, prepared = QuantLinear.prepare, []
    monkeypatch.setattr(QuantLinear, "prepare", lambda self, x: prepared.append(self) or prepare(self, x))
    ids = torch.from_numpy(some_ids(9))[None]
    shared = quantized(sharing=True)(ids).logits
    assert len(prepared) == 1
    assert torch.equal(shared, quantized(sharing=False)(ids).logits)
    assert len(prepared) == 4
    plain = build(WIDE, weights, torch.float32)(ids).logits
    assert 0.01 < (shared - plain).norm() / plain.norm() < 0.6  # quantized to 4 bits, and not broken


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_keys_and_values_of_shared_heads_written_out_attend_to_the_same(groups: int) -> None:
    """As a GPU is given them with a mask (`kernels.attention`)."""
    sizes = ((4, 7), (groups, 9), (groups, 9))
    q, k, v = (torch.randn(2, heads, tokens, 16, dtype=torch.float64) for heads, tokens in sizes)
    mask = torch.rand(2, 1, 1, 9) > 0.4
    mask[..., 0] = True
    found = attention(q, *own_heads(q, k, v), mask)
    torch.testing.assert_close(found, attention(q, k, v, mask), rtol=0, atol=1e-12)
