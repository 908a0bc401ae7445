"""QuaRot against direct computation: each rotation by its formula, what it is for, and where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qspec.catalog import NoKernel
from qspec.errors import InputError
from qspec.hadamard import matrix
from qspec.models.family import ModuleEntry
from qspec.models.llada import LLADA
from qspec.passes.block import Block
from qspec.passes.outer_layers import OuterLayers
from qspec.passes.parameters import Quarot
from qspec.passes.quarot import online_hadamard
from tests.passes.conftest import SHAPE, scheme

R1 = Quarot(heads="none", online=False)
R2 = Quarot(residual=False, online=False)
R4 = Quarot(residual=False, heads="none")


def outer(seed: int = 3) -> OuterLayers:
    g = torch.Generator().manual_seed(0)
    tensors = {
        f"{LLADA.globals['embedding']}.weight": torch.randn(50, 64, generator=g),
        f"{LLADA.globals['final_norm']}.weight": torch.randn(64, generator=g),
        f"{LLADA.globals['head']}.weight": torch.randn(50, 64, generator=g),
    }
    return OuterLayers(LLADA, SHAPE, tensors, seed)


def basis(seed: int = 3) -> Tensor:
    rotated = outer(seed)
    R1.rewrite_outer_layers(rotated)
    assert rotated.basis is not None
    return rotated.basis


def seen(block: Block, site: str) -> Tensor:
    return torch.cat([x[site] for x, _ in block.observed.inputs({site})]).double()


def down(in_features: int) -> ModuleEntry:
    return replace(LLADA.outline([7])[7], in_features=in_features)


# --- R1 ---


def test_the_basis_is_a_hadamard_matrix_with_random_signs() -> None:
    q = basis()
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.double() @ q.double().T, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-6)
    signs = q * 8 * matrix(64)  # 8 = sqrt(64)
    assert torch.equal(signs, signs[:, :1].expand_as(signs))  # one sign for each channel of the stream
    assert set(signs[:, 0].tolist()) == {-1.0, 1.0}
    assert torch.equal(q, basis())
    assert not torch.equal(q, basis(seed=4))


def test_embedding_and_head_follow() -> None:
    plain, rotated = outer(), outer()
    R1.rewrite_outer_layers(rotated)
    q = basis().double()
    embedding, norm, head = (f"{LLADA.globals[part]}.weight" for part in ("embedding", "final_norm", "head"))
    h = plain.tensors[embedding].double()
    torch.testing.assert_close(rotated.tensors[embedding].double(), h @ q, rtol=0, atol=1e-5)
    assert torch.equal(rotated.tensors[norm], torch.ones(64))
    logits = (h * plain.tensors[norm].double()) @ plain.tensors[head].double().T
    torch.testing.assert_close((h @ q) @ rotated.tensors[head].double().T, logits, rtol=0, atol=1e-4)
    assert {t.dtype for t in rotated.stored().values() if t.ndim == 2} == {torch.bfloat16}
    untouched = outer()
    R2.rewrite_outer_layers(untouched)
    assert untouched.basis is None


def test_a_block_reads_and_writes_the_rotated_stream(make_block: Callable[..., Block]) -> None:
    """With no help from the stream: the rewritten block on h Q gives the old one's output on h, times Q."""
    q = basis()
    plain, rotated = make_block(scheme("int4", "int4")), make_block(scheme("int4", "int4"), basis=q)
    rotated.linears["attention.k"].scheme = None  # a kept linear is rotated with the others
    R1.rewrite(rotated, tuple(rotated.linears.values()))
    batch = plain.observed.stream.batches[0]
    with torch.no_grad():
        expected = plain.module(batch.x, batch.context) @ q
        got = rotated.module(batch.x @ q, batch.context)
    assert (got - expected).norm() / expected.norm() < 1e-5
    gain = plain.module.part("mlp.norm").weight
    torch.testing.assert_close(rotated.linears["mlp.up"].weight, plain.linears["mlp.up"].weight * gain @ q)
    torch.testing.assert_close(rotated.linears["mlp.down"].weight, q.T @ plain.linears["mlp.down"].weight)
    assert torch.equal(rotated.module.part("attention.norm").weight, torch.ones(64))
    assert not any(linear.transform for linear in rotated.linears.values())


def test_a_channel_that_stands_out_is_spread(make_block: Callable[..., Block]) -> None:
    """The fixture's normal outlier, a gain of 30 on one channel; and one in the stream itself."""
    plain, rotated = make_block(scheme("int4", "int4")), make_block(scheme("int4", "int4"), basis=basis())
    R1.rewrite(rotated, tuple(rotated.linears.values()))
    before, after = (crest(seen(block, "attention.input")) for block in (plain, rotated))
    assert before > 5  # 30 against 1 in 64 channels: at most sqrt(64) = 8
    assert after < 4  # a normal variable's largest of 64 is about 2.4
    one = torch.zeros(64)
    one[9] = 100.0
    assert (one @ basis()).abs().max() == pytest.approx(100 / 8)


def crest(x: Tensor) -> float:
    """Mean over tokens of the largest magnitude against the root mean square."""
    return float((x.abs().amax(1) / x.square().mean(1).sqrt()).mean())


# --- R2 ---


def test_heads_are_rotated_each_by_itself(make_block: Callable[..., Block]) -> None:
    """o's input is what it was, times H / sqrt(16) in each of the four heads, which share two value heads."""
    plain, rotated = make_block(scheme("int4", "int4")), make_block(scheme("int4", "int4"))
    assert plain.linears["attention.v"].bias is not None
    R2.rewrite(rotated, tuple(rotated.linears.values()))
    h = matrix(16).double() / 4
    expected = torch.cat([part @ h for part in seen(plain, "attention.mixed").split(16, dim=1)], 1)
    torch.testing.assert_close(seen(rotated, "attention.mixed"), expected, rtol=1e-5, atol=1e-5)
    assert all(linear.transform is None for linear in rotated.linears.values())
    for got, expected in zip(rotated.observed.additions(), plain.observed.additions(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_statistics_are_taken_anew(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    before = block.observed.statistics("attention.mixed").peaks
    R2.rewrite(block, tuple(block.linears.values()))
    torch.testing.assert_close(
        block.observed.statistics("attention.mixed").peaks, seen(block, "attention.mixed").abs().amax(0).float()
    )
    assert not torch.equal(block.observed.statistics("attention.mixed").peaks, before)


# --- R4 ---


def test_two_rotations_are_one_kronecker_product() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 192, generator=g, dtype=torch.float64)
    transform = online_hadamard((16, 12), 192)
    first, second = matrix(16).double() / 4, matrix(12).double() / 12**0.5
    whole = x @ torch.kron(second, first)  # channel a * 16 + c
    expected = whole.reshape(3, 12, 16).transpose(1, 2).reshape(3, 192)  # at c * 12 + a
    torch.testing.assert_close(transform.apply(x).double(), expected, rtol=0, atol=5e-3)  # of float16
    assert {r.dtype for r in transform.rotations} == {torch.float16}
    assert transform.permutation is not None
    assert transform.permutation.dtype == torch.int32


def test_down_absorbs_what_is_stored(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    linear = block.linears["mlp.down"]
    weight, x = linear.weight.double(), seen(block, "mlp.gated")
    R4.rewrite(block, tuple(block.linears.values()))
    assert [part for part, one in block.linears.items() if one.transform] == ["mlp.down"]
    exact = x @ weight.T
    got = linear.transformed(x.float()).double() @ linear.weight.double().T
    assert (got - exact).norm() / exact.norm() < 1e-6
    assert crest(linear.transformed(x.float())) < 0.5 * crest(x)  # the fixture's massive outlier


def test_a_massive_outlier_is_spread_over_all_channels() -> None:
    x = torch.zeros(1, 12288)
    x[0, 4321] = 1000.0
    y = online_hadamard((128, 96), 12288).apply(x)
    torch.testing.assert_close(y.abs(), torch.full_like(y, 1000 / 12288**0.5), rtol=2e-3, atol=0)


def test_only_where_activations_are_quantized(make_block: Callable[..., Block]) -> None:
    assert Quarot().rotations(down(768), scheme("int4", "int4")) == (64, 12)
    assert Quarot().rotations(down(768), scheme("int4", None)) == ()
    assert Quarot(online=False).rotations(down(768), scheme("int4", "int4")) == ()
    assert Quarot().rotations(down(0), scheme("int4", "int4")) == ()  # no model is known yet
    block = make_block(scheme("int4", None))
    Quarot(residual=False).rewrite(block, tuple(block.linears.values()))
    assert block.linears["mlp.down"].transform is None


# --- where it cannot be ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tied": True}, r"whose head is its embedding\n  next:  write quarot\(residual = false\)"),
        ({"width": 92}, r"order 92\n  where: the residual stream\n  next:  write quarot\(residual = false\)"),
        ({"head_width": 92}, r"order 92\n  where: blocks\[\*\]\.attention\.v\n  next:  write quarot\(heads"),
    ],
)
def test_shapes_that_it_cannot_take(change: dict[str, int], message: str) -> None:
    shape = replace(SHAPE, **change)
    with pytest.raises(InputError, match=message):
        Quarot().check(shape)
    Quarot(residual=False, heads="none").check(shape)
    Quarot().check(SHAPE)


def test_all_that_it_cannot_take_is_named_at_once() -> None:
    message = (
        r"order 92 and 46\n  where: the residual stream, blocks\[\*\]\.attention\.v\n"
        r"  next:  write quarot\(residual = false, heads = none\)"
    )
    with pytest.raises(InputError, match=message):
        Quarot().check(replace(SHAPE, width=92, head_width=46))


def test_a_width_of_the_mlp_that_it_cannot_take() -> None:
    with pytest.raises(NoKernel, match=r"1000 input channels has a kernel: .* 16\n  where: blocks\[7\]\.mlp\.down"):
        Quarot().rotations(down(1000), scheme("int8", "int8"))


@pytest.mark.parametrize(("width", "blocks"), [(1184, (32,)), (11008, (16, 16)), (96, (32,)), (13824, (128, 108))])
def test_other_widths_are_rotated_in_blocks(width: int, blocks: tuple[int, ...]) -> None:
    """1184 = 37 x 32, 11008 = 43 x 256: one channel's outlier spreads evenly over its own block and no further."""
    assert Quarot().rotations(down(width), scheme("int4", "int4")) == blocks
    size = blocks[0] * blocks[-1] if len(blocks) == 2 else blocks[0]
    assert width % size == 0
    x = torch.zeros(1, width)
    x[0, size + 5 if size < width else 5] = 1000.0
    y = online_hadamard(blocks, width).apply(x)[0]
    (reached,) = y.nonzero(as_tuple=True)
    start = size if size < width else 0
    assert reached.tolist() == list(range(start, start + size))
    torch.testing.assert_close(y[reached].abs(), torch.full((size,), 1000 / size**0.5), rtol=2e-3, atol=0)


# --- R2 across heads ---


def test_across_heads_is_a_transform_of_the_whole_input(make_block: Callable[..., Block]) -> None:
    """Four heads of 16: all 64 channels by one Hadamard matrix, computed at run time; v stays as it is."""
    plain, rotated = make_block(scheme("int4", "int4")), make_block(scheme("int4", "int4"))
    across = Quarot(residual=False, heads="across", online=False)
    assert across.rotations(rotated.linears["attention.o"].entry, scheme("int4", "int4")) == (64,)
    across.rewrite(rotated, tuple(rotated.linears.values()))
    assert [part for part, one in rotated.linears.items() if one.transform] == ["attention.o"]
    assert torch.equal(rotated.linears["attention.v"].weight, plain.linears["attention.v"].weight)
    x = seen(plain, "attention.mixed")
    ready = rotated.linears["attention.o"].transformed(x.float()).double()
    torch.testing.assert_close(ready, x @ matrix(64).double() / 8, rtol=1e-5, atol=1e-5)
    for got, expected in zip(rotated.observed.additions(), plain.observed.additions(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_across_heads_is_the_papers_product() -> None:
    """H_(heads) (x) H_(head width) of 32 heads of 128, by two rotations: the paper folds one of them into v."""
    entry = replace(next(e for e in LLADA.outline([0]) if e.role.part == "attention.o"), in_features=4096)
    orders = Quarot(heads="across").rotations(entry, scheme("int4", "int4"))
    assert orders == (128, 32)
    x = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    within = torch.cat([head @ matrix(128).double() for head in x.split(128, dim=1)], 1).reshape(2, 32, 128)
    expected = torch.einsum("thc,hg->tcg", within, matrix(32).double()).reshape(2, 4096) / 64
    torch.testing.assert_close(online_hadamard(orders, 4096).apply(x).double(), expected, rtol=0, atol=1e-2)


def test_weights_alone_have_their_heads_rotated_within(make_block: Callable[..., Block]) -> None:
    across, within = make_block(scheme("int4", None)), make_block(scheme("int4", None))
    Quarot(residual=False, heads="across").rewrite(across, tuple(across.linears.values()))
    Quarot(residual=False, heads="within").rewrite(within, tuple(within.linears.values()))
    assert across.linears["attention.o"].transform is None
    assert torch.equal(across.linears["attention.o"].weight, within.linears["attention.o"].weight)
    assert torch.equal(across.linears["attention.v"].weight, within.linears["attention.v"].weight)


def test_values_are_still_the_decoders(make_block: Callable[..., Block]) -> None:
    """All three at once on one block, against the same block's own attention and MLP written out in float64."""
    q = basis()
    plain, rotated = make_block(scheme("int4", "int4")), make_block(scheme("int4", "int4"), basis=q)
    Quarot().rewrite(rotated, tuple(rotated.linears.values()))
    batch = plain.observed.stream.batches[1]
    with torch.no_grad():
        got = rotated.module(batch.x @ q, batch.context).double() @ q.double().T
        hidden = batch.x.double() + plain.module.attend(plain.module.part("attention.norm")(batch.x), batch.context)
        h = plain.module.part("mlp.norm")(hidden.float()).double()
        gate, up, back = (plain.linears[f"mlp.{part}"].weight.double() for part in ("gate", "up", "down"))
        expected = hidden + (functional.silu(h @ gate.T) * (h @ up.T)) @ back.T
    assert (got - expected).norm() / expected.norm() < 1e-5
