"""Caching against the paper's equations: full passes, and passes over a window, written out in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.dream import DREAM
from qspec.models.llada import LLADA
from qspec.models.sampler import DreamSettings, SamplerSettings, Settings, generate, sample, settings_for
from tests.models import dream_layout, layout
from tests.models.counted import uniform
from tests.models.dream_layout import TINY_DREAM
from tests.models.layout import TINY, Array
from tests.models.test_sampler import Letters, Scripted

GROUPED = TINY | {"n_kv_heads": 2}
MASK = TINY["mask_token_id"]
LLADA_WEIGHTS = layout.random_weights(GROUPED, seed=4)
DREAM_WEIGHTS = dream_layout.random_weights(TINY_DREAM, seed=4)
OURS = {
    ours: DREAM_WEIGHTS[theirs] for ours, theirs in dream_layout.renamed(TINY_DREAM).items() if theirs in DREAM_WEIGHTS
}


def llada() -> Decoder:
    return loaded(Decoder(LLADA, LLADA.shape(GROUPED), dtype=torch.float64), LLADA_WEIGHTS)


def dream() -> Decoder:
    return loaded(Decoder(DREAM, DREAM.shape(TINY_DREAM), dtype=torch.float64), DREAM_WEIGHTS)


def loaded(decoder: Decoder, weights: dict[str, Array]) -> Decoder:
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    return decoder.requires_grad_(False)


def windowed(config: dict[str, Any], weights: dict[str, Array], before: Array, after: Array, window: range) -> Array:
    """Logits float64 [t, vocab] of one row: a full pass over `before`, in which the tokens of the window are computed
    again from `after`, attending to the keys and values of all tokens outside the window as the full pass had them."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, kv_heads, width = config["n_heads"], config["n_kv_heads"], config["d_model"] // config["n_heads"]
    inside = np.isin(np.arange(len(before)), window)
    old, new = w["model.transformer.wte.weight"][before], w["model.transformer.wte.weight"][after]
    for n in range(config["n_layers"]):
        block = f"model.transformer.blocks.{n}"

        def linear(name: str, h: Array, block: str = block) -> Array:
            return h @ w[f"{block}.{name}.weight"].T + w.get(f"{block}.{name}.bias", 0)

        def turned(name: str, x: Array, count: int, block: str = block) -> list[Array]:
            h = layout._norm(x, w[f"{block}.attn_norm.weight"], config["rms_norm_eps"])
            parts = np.split(linear(name, h), count, axis=1)
            return parts if name == "v_proj" else [layout._rope(part, config["rope_theta"]) for part in parts]

        def after_attention(x: Array, k: list[Array], v: list[Array], block: str = block) -> Array:
            mixed = []
            for head, q in enumerate(turned("q_proj", x, heads)):
                shared = head // (heads // kv_heads)
                scores = np.exp(q @ k[shared].T / np.sqrt(width))
                mixed.append(scores / scores.sum(1, keepdims=True) @ v[shared])
            x = x + linear("attn_out", np.concatenate(mixed, axis=1))
            h = layout._norm(x, w[f"{block}.ff_norm.weight"], config["rms_norm_eps"])
            gate = linear("ff_proj", h)
            return x + linear("ff_out", gate / (1 + np.exp(-gate)) * linear("up_proj", h))

        kept = {name: turned(name, old, kv_heads) for name in ("k_proj", "v_proj")}
        fresh = {name: turned(name, new, kv_heads) for name in ("k_proj", "v_proj")}
        k, v = ([np.where(inside[:, None], *pair) for pair in zip(fresh[n], kept[n], strict=True)] for n in kept)
        old, new = after_attention(old, kept["k_proj"], kept["v_proj"]), after_attention(new, k, v)
    x = np.where(inside[:, None], new, old)
    x = layout._norm(x, w["model.transformer.ln_f.weight"], config["rms_norm_eps"])
    return x @ w["model.transformer.ff_out.weight"].T


def some_ids(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 47, count)


@pytest.mark.parametrize("window", [range(4, 8), range(9, 13), range(3), range(6, 7), range(13)])
def test_a_window_is_computed_against_what_a_full_pass_kept(window: range) -> None:
    model, before, after = llada(), some_ids(13, 1), some_ids(13, 2)
    whole = model.window(1, 13)
    states = model.hidden(torch.from_numpy(before)[None], None, whole)
    part = slice(window.start, window.stop)
    states[:, part] = model.hidden(torch.from_numpy(after)[None], None, replace(whole, tokens=part))
    expected = windowed(GROUPED, LLADA_WEIGHTS, before, after, window)
    found = model.finish(states)[0].numpy()
    assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()
    plain = layout.forward(GROUPED, LLADA_WEIGHTS, after)
    same = np.abs(found[part] - plain[part]).max() < 1e-3 * np.abs(plain).max()
    assert same == (len(window) == 13)  # a cache is an approximation, except where all is computed


def test_padding_changes_nothing_in_a_window() -> None:
    model, before, after = llada(), some_ids(9, 1), some_ids(9, 2)
    real = torch.tensor([[0, 0, 0, 0] + [1] * 9, [1] * 13])
    rows = [torch.tensor([[5, 5, 5, 5, *ids.tolist()], list(range(13))]) for ids in (before, after)]
    whole = model.window(2, 13)
    model.hidden(rows[0], real, whole)
    found = model.finish(model.hidden(rows[1], real, replace(whole, tokens=slice(7, 10))))
    expected = windowed(GROUPED, LLADA_WEIGHTS, before, after, range(3, 6))[3:6]
    assert np.abs(found[0].numpy() - expected).max() < 2e-6 * np.abs(expected).max()


def test_a_pass_over_all_tokens_is_the_uncached_one() -> None:
    model, real = llada(), torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    ids = torch.from_numpy(np.stack((some_ids(7, 3), some_ids(7, 4))))
    whole = model.window(2, 7)
    for kept in whole.kept:
        for tensor in kept:
            tensor.fill_(torch.nan)  # whatever was there before
    assert torch.allclose(model.hidden(ids, real, whole), model.hidden(ids, real), rtol=0, atol=1e-12)


def llada_by_hand(prompt: list[int], row: int, settings: SamplerSettings) -> list[int]:
    """One prompt alone, the `row`-th of a batch: each step's logits by the passes of its block so far, written out."""
    canvas = prompt + [MASK] * settings.length
    for start in range(len(prompt), len(canvas), settings.block):
        window = range(start, start + settings.block if settings.cache == "dual" else len(canvas))
        first = list(canvas)
        for step, count in enumerate(settings.commits()):
            open_places = [i for i in range(start, start + settings.block) if canvas[i] == MASK]
            if settings.threshold is not None and not open_places:
                break
            passes = [(first, canvas)]
            if settings.cfg:
                passes.append(tuple([MASK] * len(prompt) + ids[len(prompt) :] for ids in (first, canvas)))
            again = window if step else range(0)
            found = [windowed(GROUPED, LLADA_WEIGHTS, *map(np.array, pair), again) for pair in passes]
            logits = found[0] if not settings.cfg else found[1] + (settings.cfg + 1) * (found[0] - found[1])
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            number = (start - len(prompt)) // settings.block * len(settings.commits()) + step
            tokens = {i: int(logits[i].argmax()) for i in open_places}
            if settings.temperature:
                for i in open_places:
                    key = (settings.seed, 0, number, row, i - len(prompt))
                    u = np.array([uniform(*key, token) for token in range(logits.shape[1])])
                    tokens[i] = int((logits[i] - settings.temperature * np.log(-np.log(u))).argmax())
            sure = {i: p[i, tokens[i]] for i in open_places}
            taken = sorted(open_places, key=lambda i: -sure[i])[:count]
            if settings.threshold is not None:
                taken += [i for i in open_places if sure[i] >= settings.threshold]
            for i in taken:
                canvas[i] = tokens[i]
    return canvas


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(12, 9, 4, cache="prefix"),
        SamplerSettings(12, 9, 4, cache="dual"),
        SamplerSettings(8, 4, 4, cfg=1.5, cache="prefix"),
        SamplerSettings(8, 4, 4, cfg=1.5, cache="dual"),
        SamplerSettings(12, 12, 6, threshold=0.25, cache="dual"),
        SamplerSettings(8, 4, 4, temperature=0.8, seed=5, cache="prefix"),
        SamplerSettings(8, 4, 4, temperature=0.8, seed=5, cache="dual"),
    ],
    ids=lambda s: f"{s.cache}, cfg {s.cfg}, T {s.temperature}, threshold {s.threshold}",
)
def test_lladas_text_is_that_of_the_passes_written_out(settings: SamplerSettings) -> None:
    prompts = [[7, 30, 12, 5, 9, 22], [3], [44, 2, 2, 17]]
    ids = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (6 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = sample(llada(), ids, mask, settings)
    for row, prompt in enumerate(prompts):
        assert out[row, 6:].tolist() == llada_by_hand(prompt, row, settings)[len(prompt) :]


def dream_by_hand(prompt: list[int], settings: DreamSettings) -> list[int]:
    canvas = prompt + [MASK] * settings.length
    first = list(canvas)
    for step, share in enumerate(settings.shares()):
        window = (
            range(len(prompt) - 1, len(canvas)) if step else range(0)
        )  # the prompt's last token predicts the text's first
        logits = windowed(dream_layout.as_llada(TINY_DREAM), OURS, np.array(first), np.array(canvas), window)
        scaled = logits / settings.temperature if settings.temperature else logits
        p = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
        masked = [i for i in range(len(prompt), len(canvas)) if canvas[i] == MASK]
        tokens = {i: int(p[i - 1].argmax()) for i in masked}
        if settings.temperature:
            for i in masked:
                u = uniform(settings.seed, 0, step, 0, i - len(prompt))
                tokens[i] = int(np.nonzero(p[i - 1].cumsum() > u)[0][0])
        sure = {i: p[i - 1, tokens[i]] for i in masked}
        if settings.alg == "entropy":
            sure = {i: (p[i - 1] * np.log(p[i - 1])).sum() for i in masked}
        for i in sorted(masked, key=lambda i: -sure[i])[: int(len(masked) * share)]:
            canvas[i] = tokens[i]
    return canvas


@pytest.mark.parametrize(
    "settings",
    [
        DreamSettings(12, 6, cache="prefix"),
        DreamSettings(9, 3, cache="prefix", alg="maskgit_plus", temperature=0.7, seed=4),
    ],
    ids=lambda s: s.alg,
)
def test_dreams_text_is_that_of_the_passes_written_out(settings: DreamSettings) -> None:
    prompt = [7, 30, 12, 5]
    out = sample(dream(), torch.tensor([[0, 0, *prompt]]), torch.tensor([[0, 0, 1, 1, 1, 1]]), settings)
    assert out[0, 2:].tolist() == dream_by_hand(prompt, settings)


@pytest.mark.parametrize(
    ("model", "settings", "tokens"),
    [
        (llada, SamplerSettings(8, 6, 4), [11] * 6),
        (llada, SamplerSettings(8, 6, 4, cache="prefix"), [11, 8, 8, 11, 4, 4]),
        (llada, SamplerSettings(8, 6, 4, cache="dual"), [11, 4, 4, 11, 4, 4]),
        (dream, SamplerSettings(8, 6, 4, cache="dual"), [11, 5, 5, 11, 5, 5]),  # and the one that predicts the first
        (dream, DreamSettings(8, 3, cache="prefix"), [11, 9, 9]),
    ],
)
def test_only_the_window_is_computed(
    model: Any, settings: Settings, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    attend = DecoderBlock.attend

    def counted(self: DecoderBlock, h: Any, *others: Any) -> Any:
        seen.append(h.x.shape[1])
        return attend(self, h, *others)

    monkeypatch.setattr(DecoderBlock, "attend", counted)
    sample(model(), torch.tensor([[7, 30, 12]]), None, settings)
    assert seen[::2] == seen[1::2] == tokens  # two blocks


def test_nothing_is_cached_unless_it_is_asked_for() -> None:
    assert settings_for(LLADA.shape(TINY), 8).cache is None
    assert settings_for(DREAM.shape(TINY_DREAM), 8).cache is None
    texts = {generate(llada(), Letters(), "&'(", length=24, steps=8, cache=cache) for cache in (None, "prefix")}
    assert len(texts) == 2


def test_caches_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown cache 'both'"):
        SamplerSettings(8, 8, 8, cache="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing follows the text"):
        DreamSettings(8, 8, cache="dual")
    with pytest.raises(UsageError, match="a Scripted keeps no keys and values"):
        sample(Scripted(lambda ids: ids), torch.tensor([[1]]), None, SamplerSettings(4, 4, 4, cache="dual"))
