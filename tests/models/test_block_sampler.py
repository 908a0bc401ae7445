"""The sampler of block-causal models against slow transcriptions of the published ones, without any cache.

`sdar` follows block_diffusion_generate of SDAR's generate.py (remasking strategies low_confidence_static and _dynamic,
sequential, and entropy_bounded, with the entropy of all tokens in place of the chosen one's term), `fast_dllm` the
generate of Fast-dLLM v2's modeling.py, `llada2` JointThreshold of SGLang's dllm/algorithm/joint_threshold.py, which is
LLaDA2.1's, `llada2_2` the generate of LLaDA2.2's modeling_llada2_moe.py as coder543/minnow (src/decode.rs) and
FLUX-OSS/FluxServe (decoders/levenshtein.py) have it, without its random numbers and with shares of `steps`; in all the
mask token is never chosen.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from qspec.errors import UsageError
from qspec.models.sampler import BlockSettings, SampleStep, left_padded, sample, settings_for
from qspec.models.samplers import block as block_sampler
from qspec.models.samplers import edits as block_edits
from qspec.models.samplers.block import Rows
from tests.models import block_layout, expert_layout
from tests.models.layout import Array
from tests.models.test_block_causal import tiny
from tests.models.test_experts import tiny as tiny_mixture

MASK = 47


def logits(config: dict[str, Any], weights: dict[str, Array], ids: Array) -> Array:
    layout = expert_layout if "num_experts" in config else block_layout
    return layout.forward(config, weights, ids)


def predicted(config: dict[str, Any], weights: dict[str, Array], ids: Array) -> Array:
    """Probabilities [t, vocab] without the mask token."""
    z = logits(config, weights, ids).astype(np.float32).astype(np.float64)
    z[:, MASK] = -np.inf
    p = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def transfers(s: BlockSettings, size: int) -> list[int]:
    """get_num_transfer_tokens of as many denoising steps as a block has; or the same number in every pass."""
    if s.length % s.steps == 0:
        return [s.length // s.steps] * size
    steps = s.steps * size // s.length
    assert steps * s.length == s.steps * size
    return [size // steps + (i < size % steps) for i in range(steps)]


def sdar(config: dict[str, Any], weights: dict[str, Array], prompt: list[int], s: BlockSettings) -> list[int]:
    size = config["block_size"]
    blocks = -(-(len(prompt) + s.length) // size)
    x = np.array(prompt + [MASK] * (blocks * size - len(prompt)))
    for block in range(len(prompt) // size, blocks):
        places = range(block * size, (block + 1) * size)
        for share in transfers(s, size):
            masks = [i for i in places if x[i] == MASK]
            if not masks:
                break
            p = predicted(config, weights, x[: places.stop])[places.start :]
            sure = {i: p[i - places.start].max() for i in masks}
            if s.remasking == "sequential":
                chosen = masks[:share]
            elif s.entropy_bound is not None:
                spread = {i: float(-sum(q * np.log(q) for q in p[i - places.start] if q > 0)) for i in masks}
                order = sorted(masks, key=lambda i: spread[i])
                sums = np.cumsum([spread[i] for i in order])
                chosen = order[: max(1, int(np.searchsorted(sums, s.entropy_bound)))]
            else:
                best = sorted(masks, key=lambda i: -sure[i])[:share]
                high = [i for i in masks if s.threshold is not None and sure[i] > s.threshold]
                chosen = high if len(high) >= share else best
            for i in chosen:
                x[i] = p[i - places.start].argmax()
        assert not any(x[i] == MASK for i in places)
    return [int(token) for token in x[len(prompt) : len(prompt) + s.length]]


def llada2(
    config: dict[str, Any], weights: dict[str, Array], prompt: list[int], s: BlockSettings
) -> tuple[list[int], int]:
    """The tokens, and how many of those that a pass found were replaced."""
    size, edits = config["block_size"], 0
    blocks = -(-(len(prompt) + s.length) // size)
    x = np.array(prompt + [MASK] * (blocks * size - len(prompt)))
    assert s.threshold is not None
    assert s.edit_threshold is not None
    for block in range(len(prompt) // size, blocks):
        places, after = range(block * size, (block + 1) * size), 0
        while True:
            p = predicted(config, weights, x[: places.stop])[places.start :]
            masks = [i for i in places if x[i] == MASK]
            sure = {i: p[i - places.start].max() for i in places}
            if masks:
                chosen = [i for i in masks if sure[i] > s.threshold] or [max(masks, key=lambda i: sure[i])]
            else:
                chosen, after = [], after + 1
                if after > (16 if s.edit_steps is None else s.edit_steps):
                    break
            new = {i: int(p[i - places.start].argmax()) for i in places}
            replaced = [
                i for i in places
                if i not in masks and i >= len(prompt) and sure[i] > s.edit_threshold and new[i] != x[i]
            ]  # fmt: skip
            if not chosen and not replaced:
                break
            edits += len(replaced)
            for i in (*chosen, *replaced):
                x[i] = new[i]
    return [int(token) for token in x[len(prompt) : len(prompt) + s.length]], edits


def llada2_2(
    config: dict[str, Any], weights: dict[str, Array], prompt: list[int], s: BlockSettings, told: Counter[str]
) -> list[int]:
    """The tokens. told: what happened, and how often."""
    size, edits = config["block_size"], (config["delete_token_id"], config["split_token_id"])
    most = 16 if s.edit_steps is None else s.edit_steps
    shares = transfers(s, size)[: -(-s.steps * size // s.length)]
    blocks = -(-(len(prompt) + s.length) // size)
    x = prompt + [MASK] * (blocks * size - len(prompt))
    assert s.edit_threshold is not None
    for start in range(len(prompt) // size * size, blocks * size, size):
        z, fixed = x[start : start + size], max(0, len(prompt) - start)
        of_first, seen, without = [token == MASK for token in z], set[tuple[int, ...]](), 0
        for step in count():
            masks = [i for i in range(size) if z[i] == MASK]
            first = [i for i in masks if of_first[i]]
            without = 0 if first else without + 1
            if not masks and without > most:
                break
            p = predicted(config, weights, np.array(x[:start] + z))[start:]
            best, sure = p.argmax(-1).tolist(), p.max(-1).tolist()
            need = (shares[step] if step < len(shares) else size) + len(masks) - len(first)
            high = [i for i in masks if s.threshold is not None and sure[i] > s.threshold]
            write = high if len(high) >= need else sorted(masks, key=lambda i: -sure[i])[:need]
            others = [i for i in range(fixed, size) if i not in masks and sure[i] > s.edit_threshold]
            replace = [i for i in others if best[i] != z[i]]
            last = without >= most if most else bool(first) and set(first) <= set(write)
            write = masks if last else write
            if last:
                for i in (i for i in (*write, *replace) if best[i] in edits):
                    best[i] = second(p[i], *edits)
                    told["plain"] += 1
            new = [best[i] if i in write or i in replace else z[i] for i in range(size)]
            for _ in range(5):
                changed = [i for i in range(size) if new[i] != z[i]]
                if last or not changed or tuple(new) not in seen:
                    break
                place = min(changed, key=lambda i: sure[i])
                new[place] = second(p[place], new[place])
                told["circles"] += 1
            seen.add(tuple(new))
            told.update({"deleted": new[fixed:].count(edits[0]), "inserted": new[fixed:].count(edits[1])})
            before, (z, of_first) = z, carried_out(new, z, of_first, fixed, edits)
            if before == z and MASK not in z:
                break
        x[start : start + size] = z
    return x[len(prompt) : len(prompt) + s.length]


def second(p: Array, *barred: int) -> int:
    """The likeliest token but for these."""
    return int(np.where(np.isin(np.arange(len(p)), barred), -1, p).argmax())


def carried_out(
    new: list[int], old: list[int], of_first: list[bool], fixed: int, edits: tuple[int, int]
) -> tuple[list[int], list[bool]]:
    """_apply_edit_operations_with_tracking, behind the prompt's tokens."""
    kept: list[tuple[int, bool]] = []
    for i, token in enumerate(new):
        if i < fixed or token not in edits:
            kept.append((token, of_first[i]))
        elif token == edits[1]:
            kept += [(MASK, False), (old[i], of_first[i])]
    kept = (kept + [(MASK, False)] * len(new))[: len(new)]
    return [token for token, _ in kept], [first for _, first in kept]


def fast_dllm(config: dict[str, Any], weights: dict[str, Array], prompt: list[int], s: BlockSettings) -> list[int]:
    size, part = config["bd_size"], s.part or config["bd_size"]
    x = list(prompt)
    if x and len(x) % size == 0:
        x.append(int(predicted(config, weights, np.array(x))[-1].argmax()))
    while len(x) < len(prompt) + s.length:
        x += [MASK] * (size - len(x) % size)
        first = len(x) - size
        for begin in range(first, len(x), part):
            places = range(begin, min(begin + part, len(x)))
            while any(x[i] == MASK for i in places):
                p = predicted(config, weights, np.array(x))
                masks = [i for i in places if x[i] == MASK]
                moved = {i: p[max(i - 1, 0)] for i in masks}  # the token before predicts
                best = max(masks, key=lambda i: moved[i].max())
                for i in masks:
                    if i == best or (s.threshold is not None and moved[i].max() > s.threshold):
                        x[i] = int(moved[i].argmax())
        x.append(int(predicted(config, weights, np.array(x))[-1].argmax()))
    return x[len(prompt) : len(prompt) + s.length]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(2, 46, length)]


@pytest.mark.parametrize("prompt", [0, 4, 9])
@pytest.mark.parametrize(
    "settings",
    [
        BlockSettings(8, 8),
        BlockSettings(8, 4),
        BlockSettings(6, 2),
        BlockSettings(9, 9, threshold=0.3),
        BlockSettings(8, 6),
        BlockSettings(8, 6, threshold=0.3),
        BlockSettings(9, 9, remasking="sequential"),
        BlockSettings(8, 6, remasking="sequential"),
        BlockSettings(9, 9, entropy_bound=3.0),
        BlockSettings(9, 9, entropy_bound=7.0),
    ],
    ids=["one a step", "two a step", "three a step", "threshold", "2, 1, 1", "2, 1, 1 and threshold", "sequential",
         "sequential 2, 1, 1", "entropies below 3", "entropies below 7"],
)  # fmt: skip
def test_blocks_of_four_are_those_of_sdars_own_sampler(prompt: int, settings: BlockSettings) -> None:
    config, weights, decoder = tiny("sdar", 4)
    ids = prompt_of(prompt)
    found = sample(decoder, torch.tensor([ids], dtype=torch.int64), None, settings)
    assert found[0, :prompt].tolist() == ids
    assert found[0, prompt:].tolist() == sdar(config, weights, ids, settings)


@pytest.mark.parametrize("prompt", [4, 9])
@pytest.mark.parametrize(
    "settings",
    [
        BlockSettings(9, 9, threshold=0.3, edit_threshold=0.1),
        BlockSettings(9, 9, threshold=0.2, edit_threshold=0.1, edit_steps=1),
        BlockSettings(9, 9, threshold=0.2, edit_threshold=0.0, edit_steps=0),
    ],
    ids=["edited until nothing changes", "one pass that edits", "none"],
)
def test_edited_tokens_are_those_of_llada2s_own_sampler(prompt: int, settings: BlockSettings) -> None:
    config, weights, decoder = tiny("sdar", 4)
    ids = prompt_of(prompt)
    expected, edits = llada2(config, weights, ids, settings)
    assert sample(decoder, torch.tensor([ids]), None, settings)[0, prompt:].tolist() == expected
    assert edits > 0


@pytest.mark.parametrize(
    "settings",
    [
        BlockSettings(12, 12, threshold=0.3, edit_threshold=0.1),
        BlockSettings(12, 12, threshold=0.2, edit_threshold=0.1, edit_steps=0),
        pytest.param(BlockSettings(12, 6, threshold=0.3, edit_threshold=0.0, edit_steps=4), marks=pytest.mark.slow),
        pytest.param(BlockSettings(12, 12, edit_threshold=0.1, edit_steps=1), marks=pytest.mark.slow),
    ],
    ids=["published", "none without masks", "all edits, two a step", "one pass, no threshold"],
)
def test_deletions_and_insertions_are_those_of_llada2_2s_own_sampler(settings: BlockSettings) -> None:
    """Of two rows in one batch, whose blocks are finished after different passes."""
    config, weights, decoder = tiny_mixture("llada2.2", 4)
    told, prompts = Counter[str](), [prompt_of(length, seed=length) for length in (1, 5)]
    expected = [llada2_2(config, weights, ids, settings, told) for ids in prompts]
    ids, mask = left_padded(prompts, 0)
    assert sample(decoder, ids, mask, settings)[:, ids.shape[1] :].tolist() == expected
    if settings.edit_steps is None:
        assert all(told[what] for what in ("deleted", "inserted", "circles", "plain"))


def test_edits_that_go_on_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the third pass over each block, which leaves neither a mask nor a token that edits."""
    monkeypatch.setattr(block_edits, "PASSES", 3)
    config, _, decoder = tiny_mixture("llada2.2", 4)
    steps: list[SampleStep] = []
    found = sample(decoder, torch.tensor([prompt_of(4)]), None, BlockSettings(16, 16, edit_threshold=0.0), steps.append)
    assert not set(found[0].tolist()) & {MASK, config["delete_token_id"], config["split_token_id"]}
    assert 4 < len(steps) <= 4 * 4


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"part": 2}, {"entropy_bound": 1.0}], ids=str)
def test_deletions_and_insertions_take_the_likeliest_tokens(options: dict[str, Any]) -> None:
    _, _, decoder = tiny_mixture("llada2.2", 4)
    with pytest.raises(UsageError, match="the edits of a llada2 model take the likeliest tokens"):
        sample(decoder, torch.tensor([[5, 6]]), None, BlockSettings(8, 8, edit_threshold=0.1, **options))


def test_mixtures_of_experts_are_sampled_alike() -> None:
    """SDAR-MoE by SDAR's rule, LLaDA2 by LLaDA2.1's."""
    ids, settings = prompt_of(9), BlockSettings(9, 9, threshold=0.2, edit_threshold=0.1)
    config, weights, decoder = tiny_mixture("llada2", 4)
    found = sample(decoder, torch.tensor([ids]), None, settings)[0, 9:].tolist()
    assert found == llada2(config, weights, ids, settings)[0]
    settings = BlockSettings(9, 9, threshold=0.3)
    config, weights, decoder = tiny_mixture("sdar_moe", 4)
    assert sample(decoder, torch.tensor([ids]), None, settings)[0, 9:].tolist() == sdar(config, weights, ids, settings)


@pytest.mark.parametrize("prompt", [32, 40])
@pytest.mark.parametrize(
    "settings",
    [BlockSettings(33, 33), BlockSettings(40, 40, part=8, threshold=0.3)],
    ids=["whole blocks", "parts and threshold"],
)
def test_blocks_of_32_are_those_of_fast_dllms_own_sampler(prompt: int, settings: BlockSettings) -> None:
    config, weights, decoder = tiny("fast_dllm", 32)
    ids = prompt_of(prompt)
    found = sample(decoder, torch.tensor([ids]), None, settings)[0, prompt:].tolist()
    assert found == fast_dllm(config, weights, ids, settings)


@pytest.mark.parametrize(("kind", "block"), [("sdar", 4), ("fast_dllm", 4), ("sdar", 32)])
def test_a_batch_gives_each_row_what_it_gets_alone(kind: str, block: int) -> None:
    _, _, decoder = tiny(kind, block)
    prompts = [prompt_of(length, seed=length) for length in (1, 4, 7, 13)]
    settings = BlockSettings(10, 5, threshold=0.4)
    ids, mask = left_padded(prompts, 0)
    together = sample(decoder, ids, mask, settings)[:, ids.shape[1] :]
    for row, prompt in zip(together, prompts, strict=True):
        assert row.tolist() == sample(decoder, torch.tensor([prompt]), None, settings)[0, len(prompt) :].tolist()


def test_rows_lie_so_that_their_prompts_end_in_one_block() -> None:
    """Blocks of 4, prompts of 2 and 9 tokens: the latter ends in block 2, to which the former is moved; 3 to write."""
    rows = Rows([torch.tensor([1, 2]), torch.arange(1, 10)], 3, 4, MASK)
    assert (rows.first, rows.ids.shape) == (8, (2, 16))
    assert rows.ids.tolist() == [[MASK] * 8 + [1, 2] + [MASK] * 6, [*range(1, 10)] + [MASK] * 7]
    assert rows.real.tolist() == [[False] * 8 + [True] * 8, [True] * 16]
    assert rows.places(3).tolist() == [[10, 11, 12], [9, 10, 11]]


def test_steps_tell_what_they_committed() -> None:
    _, _, decoder = tiny("fast_dllm", 4)
    steps: list[SampleStep] = []
    settings = BlockSettings(8, 8)
    text = sample(decoder, torch.tensor([prompt_of(4)]), None, settings, steps.append)[0, 4:]
    seen = torch.full((8,), -1)
    for step in steps:
        assert (seen[step.committed[0]] == -1).all()
        seen[step.committed[0]] = step.tokens[0][step.committed[0]]
        assert 0 <= step.index < 8
    assert seen.tolist() == text.tolist()
    assert [step.index for step in steps] == sorted(step.index for step in steps)


def test_a_text_that_ends_is_not_gone_on_with() -> None:
    """The end-of-text token is made likeliest everywhere: one block, and the rest is filled."""
    _, _, decoder = tiny("sdar", 4)
    head = decoder.head
    assert head is not None
    finish, passes = decoder.finish, []

    def ending(x: torch.Tensor) -> torch.Tensor:
        passes.append(tuple(x.shape))
        logits = finish(x)
        logits[..., 1] = 1e4
        return logits

    decoder.finish = ending  # type: ignore[method-assign]
    text = sample(decoder, torch.tensor([prompt_of(5)]), None, BlockSettings(11, 11, stop=True))[0, 5:]
    assert text.tolist() == [1] * 11
    assert passes == [(1, 4, 24)] * 3  # the three masks of the block in which the prompt ends


def test_temperature_draws_by_the_seed() -> None:
    _, _, decoder = tiny("sdar", 4)
    ids = torch.tensor([prompt_of(4)])
    texts = [
        sample(decoder, ids, None, BlockSettings(12, 12, temperature=1.5, seed=seed))[0].tolist()
        for seed in (0, 0, 1, 2)
    ]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 3
    two, mask = left_padded([prompt_of(4), prompt_of(11)], 0)
    settings = BlockSettings(12, 12, temperature=1.5, threshold=0.3)
    assert sample(decoder, two, mask, settings)[0, 11:].tolist() == sample(decoder, ids, None, settings)[0, 4:].tolist()
    greedy = sample(decoder, ids, None, BlockSettings(12, 3))[0].tolist()  # whole blocks: their order says nothing
    assert sample(decoder, ids, None, BlockSettings(12, 3, temperature=1.0, top_k=1))[0].tolist() == greedy


@pytest.mark.parametrize(
    "options",
    [{"top_k": 4}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.7}, {"top_k": 3, "top_p": 0.1, "temperature": 2.0}],
)
def test_top_k_comes_before_top_p(options: dict[str, Any]) -> None:
    """sample_with_temperature_topk_topp of SDAR's generate.py: top-p keeps tokens through the first beyond it."""
    settings = BlockSettings(**{"length": 4, "steps": 4, "temperature": 0.7} | options)
    logits = np.random.default_rng(0).normal(size=(6, 30)) * 2
    found = block_sampler._probabilities(torch.from_numpy(logits), settings).numpy()
    for row, own in zip(logits / settings.temperature, found, strict=True):
        order = np.argsort(-row)[: settings.top_k or 30]
        p = np.exp(row[order] - row.max())
        p /= p.sum()
        kept = [i for i in range(len(order)) if p[:i].sum() <= settings.top_p]
        expected = np.zeros(30)
        expected[order[kept]] = p[kept] / p[kept].sum()
        assert own == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": 3}, "length 8 is not a multiple of steps 3"),
        ({"steps": 9}, "steps 9 is more than length 8"),
        ({"steps": 1}, "length / steps is 8, more than the 4 tokens"),
        ({"part": 5}, "part is 5, more than the 4 tokens"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"remasking": "random"}, "unknown remasking 'random'"),
        ({"remasking": "sequential", "threshold": 0.9}, "remasking is sequential, and parallel commits need"),
        ({"threshold": 0.9, "entropy_bound": 0.1}, "threshold and entropy_bound are two rules"),
        ({"entropy_bound": -0.1}, "entropy_bound is -0.1"),
        ({"edit_threshold": 1.1}, "edit_threshold is 1.1; it must lie in 0..1"),
        ({"edit_steps": 4}, "edit_steps is set, and nothing is edited"),
        ({"edit_steps": -1, "edit_threshold": 0.5}, "edit_steps is -1"),
        ({"alg": "entropy"}, "alg is not a setting of the block sampler"),
        ({"cache": "dual"}, "cache is not a setting of the block sampler"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], what: str) -> None:
    _, _, decoder = tiny("sdar", 4)
    with pytest.raises(UsageError, match=what.replace("/", ".")):
        sample(decoder, torch.tensor([[5]]), None, settings_for(decoder.shape, 8, **options))
