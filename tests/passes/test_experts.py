"""A mixture of experts under passes: what each expert's linears are calibrated on, and that the function stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qspec import hadamard
from qspec.calibrate.stream import Stream
from qspec.models.decoder import Decoder
from qspec.models.llada2 import LLADA2
from qspec.passes import observed, parameters
from qspec.passes.block import Block
from qspec.passes.parameters import Awq, ClipSearch, Gptaq, Gptq, Quarot, RotateDuquant, Rtn, Smooth
from tests.models.expert_layout import TINY_LLADA2, chosen, in_parts, random_weights, serving
from tests.passes.conftest import in_basis, scheme, unweighted

CONFIG = TINY_LLADA2 | {"hidden_size": 64, "head_dim": 16, "rotary_dim": 8, "moe_intermediate_size": 32, "n_group": 1}
CONFIG |= {"topk_group": 1, "block_size": 5, "mask_token_id": 49}
SHAPE = LLADA2.shape(CONFIG)
SERVED = CONFIG | {"expert_capacity": 3, "delete_token_id": 47, "split_token_id": 48}  # 3 for a block of tokens
NEVER = 3  # an expert that nothing is routed to
W4A4 = scheme("int4", "int4")


def make(basis: Tensor | None = None, config: dict[str, Any] = CONFIG) -> tuple[Block, dict[str, np.ndarray]]:
    """The second block, whose bias keeps every token from one expert, and the model's weights."""
    weights, shape = random_weights(config, seed=2), LLADA2.shape(config)
    weights["model.layers.1.mlp.gate.expert_bias"][NEVER] = -10.0
    decoder = Decoder(LLADA2, shape).requires_grad_(False)
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in in_parts(config, weights).items()})
    entries = {e.role.local: (e, None if e.only_kept else W4A4) for e in LLADA2.linears(shape, 1)}
    ids = torch.randint(0, 49, (6, 20), generator=torch.Generator().manual_seed(1))
    tokens = unweighted(torch.cat((torch.where(torch.rand(6, 20) < 0.5, 49, ids), ids), 1))
    stream = Stream.start(decoder, tokens, 2, exact=True)
    generator = torch.Generator().manual_seed(3)
    for batch in stream.batches:
        batch.weight = torch.rand(batch.weight.shape, generator=generator) + 0.5
        if config is SERVED:
            batch.weight[:, ::3] = 0  # tokens that are not calibrated on have a say in who serves their block
    return Block(1, shape, decoder.blocks[1], entries, stream if basis is None else in_basis(stream, basis), 0), weights


def seen(
    block: Block, weights: dict[str, np.ndarray], config: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the MLP reads [tokens, d], the tokens' weights, and the router's for each expert [tokens, 8], or 0."""
    router, bias = (weights[f"model.layers.1.mlp.gate.{name}"].astype(np.float64) for name in ("weight", "expert_bias"))
    batches, module = block.observed.stream.batches, block.module
    states = (module.normed("mlp.norm", module.attended(batch.x, batch.context)).value() for batch in batches)
    h = np.concatenate([x.detach().flatten(0, 1).double().numpy() for x in states])
    c = np.concatenate([batch.weight.flatten().double().numpy() for batch in batches])
    routed = np.zeros((len(h), 8))
    allowed = serving(config, router, bias, h) if config is SERVED else [None] * len(h)
    for row, token, own in zip(routed, h, allowed, strict=True):
        for expert, weight in chosen(config, router, bias, token, own).items():
            row[expert] = weight
    counted = c > 0
    return h[counted], c[counted], routed[counted]


def by_hand(weights: dict[str, np.ndarray], expert: int, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H of an expert's gate and up, and of its down, in float64, over tokens h with the weights c."""
    gate, up = (
        h @ weights[f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight"].astype(np.float64).T
        for name in ("gate", "up")
    )
    z = gate / (1 + np.exp(-gate)) * up
    return 2 * (h.T * c) @ h / c.sum(), 2 * (z.T * c) @ z / c.sum()


@pytest.mark.parametrize(
    ("bytes_held", "config"), [(1 << 30, CONFIG), (1, CONFIG), (1 << 30, SERVED)], ids=["held", "one by one", "served"]
)
def test_hessians_are_of_the_tokens_routed_to_an_expert(
    monkeypatch: pytest.MonkeyPatch, bytes_held: int, config: dict[str, Any]
) -> None:
    monkeypatch.setattr(observed, "FEW_TOKENS", 20)
    monkeypatch.setattr(observed, "HESSIAN_BYTES", bytes_held)
    block, weights = make(config=config)
    found = {
        linear.entry.role.local: hessian
        for group, hessian in block.observed.hessians([x for x in block.linears.values() if x.scheme])
        for linear in group
    }
    assert set(found) == set(block.linears) - {"mlp.router"}
    h, c, routed = seen(block, weights, config)
    counts = (routed > 0).sum(0).tolist()
    for expert in range(8):
        first, second = by_hand(weights, expert, h, c if counts[expert] < 20 else c * routed[:, expert] ** 2)
        for name, expected in (("gate", first), ("up", first), ("down", second)):
            got = found[f"mlp.experts[{expert}].{name}"].double().numpy()
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())
    assert counts[NEVER] == 0
    assert block.observed.routed == tuple(counts)
    assert sum(counts) == 2 * len(c) == 2 * (240 if config is CONFIG else 156)
    assert block.observed.few == {e: n for e, n in enumerate(counts) if n < 20}
    assert torch.equal(found["mlp.shared.gate"], found["mlp.shared.up"])
    torch.testing.assert_close(found["mlp.shared.gate"], block.observed.hessian("mlp.input", None))


def test_statistics_of_an_expert_nothing_is_routed_to() -> None:
    block, weights = make()
    h = torch.cat([seen["mlp.input"] for seen, _ in block.observed.inputs({"mlp.input"})]).double()
    gate, up = (
        h @ torch.from_numpy(weights[f"model.layers.1.mlp.experts.{NEVER}.{name}_proj.weight"]).double().T
        for name in ("gate", "up")
    )
    peaks = block.observed.statistics(f"mlp.experts[{NEVER}].gated").peaks
    torch.testing.assert_close(peaks.double(), (gate * gate.sigmoid() * up).abs().amax(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "passes", [(Smooth(), RotateDuquant(block=32, steps=4)), (Quarot(),)], ids=["smooth", "quarot"]
)
def test_the_function_stays(passes: tuple[parameters.Pass, ...]) -> None:
    basis = hadamard.orthogonal(64).float() if isinstance(passes[0], Quarot) else None
    block, _ = make(basis)
    before = block.observed.additions()
    uses = tuple(linear for linear in block.linears.values() if linear.scheme)
    router = block.linears["mlp.router"].weight.clone()
    for one in passes:
        one.rewrite(block, uses)
    for was, now in zip(before, block.observed.additions(like=before), strict=True):
        assert float((now - was).norm()) < 1e-5 * float(was.norm())
    assert not torch.equal(router, block.linears["mlp.router"].weight)  # it reads what was rewritten
    downs = [block.linears[f"mlp.experts[{e}].down"].transform for e in range(8)]
    assert downs[0] is not None
    assert all(transform is downs[0] for transform in downs)  # one kernel prepares the rows of all


@pytest.mark.parametrize(
    "passes",
    [
        (Rtn(),),
        pytest.param((Awq(tokens=80), Gptq()), marks=pytest.mark.slow),
        pytest.param((Smooth(alpha="search"), ClipSearch(grid=4), Gptaq()), marks=pytest.mark.slow),
    ],
    ids=["rtn", "awq", "gptaq"],
)
def test_every_linear_but_the_router_is_quantized(passes: tuple[parameters.Pass, ...]) -> None:
    block, _ = make()
    exact = block.observed.additions()
    uses = tuple(linear for linear in block.linears.values() if linear.scheme)
    for one in passes:
        one.rewrite(block, uses)
    left = [part for part, linear in block.linears.items() if linear.quantized is None]
    assert left == ["mlp.router"]
    mlp, found = exact[1], block.observed.additions(like=exact)[1]
    assert float((found - mlp).norm()) < 0.5 * float(mlp.norm())


def test_watchers_see_experts_that_nothing_is_routed_to() -> None:
    block, _ = make()
    seen: dict[str, int] = {}

    def watch(part: str) -> Callable[[Tensor], None]:
        return lambda x: seen.update({part: x.shape[0]})

    block.observed.additions({part: watch(part) for part in block.linears})
    assert set(seen) == set(block.linears)
    assert seen[f"mlp.experts[{NEVER}].down"] == 80  # all of the batch
