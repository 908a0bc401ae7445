"""Recipes that resolve, as parts: they can be written in many ways that mean the same, and changed in one place."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from qspec import passes, resources
from qspec.diagnostics import Source
from qspec.difference.changes import Difference
from qspec.difference.compare import compare
from qspec.difference.versions import Version
from qspec.language import load_source
from qspec.models.registry import FAMILIES
from qspec.planned import Config

LLADA = Config.of(resources.standin("llada"))
LAYERS = LLADA.shape.layers
SCHEMES = {
    "w4a4": ("int4 per channel symmetric clip mse", "int4 per token symmetric clip 0.9"),
    "w8a8": ("int8 per channel symmetric", "int8 per token symmetric"),
    "w4": ("int4 per group 32 asymmetric", "none"),
}
PARTS = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
INDICES = ("*", "0", "-1", "1..3", "-3..-1", "0, 2", f"{LAYERS - 1}")
PASSES = (
    ("smooth(alpha = 0.5)", "rotate_duquant(block = 32, steps = 2)", "gptq(damp = 0.01)"),
    ("awq(clip = false)", "clip(grid = 10)", "rtn()"),
    ("quarot(residual = false, heads = none)", "gptaq()"),
    ("rtn()",),
)
SETTINGS = {
    "calibrate": ("samples 8", "length 64", "mask uniform(0.25, 0.75)", "draws 2", "weigh masked 2.0", "seed 3"),
    "evaluate": ('nelbo on "wikitext2" samples 4', "task gsm8k { shots 1  limit 8 }", "task mmlu"),
    "emit": ("kernels triton for sm_90", "regime block_decode, full_sequence"),
    "search": ("offer w4a4, w8a8 on blocks[*].*", "offer w8a8 on blocks[0].mlp.*", "budget 5 bits", "samples 2"),
}


@dataclass(frozen=True)
class Recipe:
    """rules: (terms, use). settings: block -> its settings."""

    rules: tuple[tuple[tuple[str, ...], str], ...]
    passes: tuple[str, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]

    def text(self, draw: random.Random | None = None) -> str:
        """Written as a person would; with `draw` in another order and layout, with comments, and with terms apart."""
        blocks = [("recipe r", ("family llada", 'model "m/m"')), *self.settings]
        blocks += [(f"scheme {name}", (f"weights {w}", f"activations {a}")) for name, (w, a) in SCHEMES.items()]
        rules = [f"layers {', '.join(terms)} {use}" for terms, use in self.rules]
        if draw:
            ordered = draw.sample(blocks, len(blocks))
            blocks = [(head, _mixed(draw, head, body)) for head, body in ordered]
            rules = [line for terms, use in self.rules for line in _apart(draw, terms, use)]
        applies = [f"apply {one} on blocks[*].*" for one in self.passes]
        parts = ["\n".join([f"{head} {{", *(f"  {line}" for line in body), "}"]) for head, body in blocks]
        if draw:
            places = sorted(draw.sample(range(len(parts) + 1), 1))
            parts = [*parts[: places[0]], *applies, *parts[places[0] :], *rules, "# the end"]
            return "qspec 1\n" + "\n\n".join(_loose(draw, part) for part in parts) + "\n"
        return "\n\n".join(["qspec 1", *parts, *rules, *applies]) + "\n"


def _mixed(draw: random.Random, head: str, body: tuple[str, ...]) -> tuple[str, ...]:
    """Settings have no order, but for a search's offers."""
    if head == "search":
        offers = [line for line in body if line.startswith("offer")]
        rest = [line for line in body if not line.startswith("offer")]
        return (*draw.sample(rest, len(rest)), *offers)
    return tuple(draw.sample(body, len(body)))


def _apart(draw: random.Random, terms: tuple[str, ...], use: str) -> list[str]:
    """One rule for each term, in any order: they say the same."""
    terms = tuple(draw.sample(terms, len(terms)))
    return [f"layers {', '.join(terms)} {use}"] if draw.random() < 0.5 else [f"layers {t} {use}" for t in terms]


def _loose(draw: random.Random, text: str) -> str:
    comment = "  # why" if draw.random() < 0.5 and not text.startswith("#") else ""
    return text.replace(" ", " " * draw.randint(1, 3)).replace("\n", "\n" * draw.randint(1, 2)) + comment


TERMS = st.builds("blocks[{}].{}".format, st.sampled_from(INDICES), st.sampled_from((*PARTS, "*", "mlp.*")))
RULES = st.tuples(
    st.lists(TERMS, min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from([*(f"use {name}" for name in SCHEMES), "keep"]),
)
RECIPES = st.builds(
    Recipe,
    st.lists(RULES, max_size=4).map(lambda rules: ((("blocks[*].*",), "use w8a8"), *rules)),
    st.sampled_from(PASSES),
    st.fixed_dictionaries({kind: st.sets(st.sampled_from(lines)) for kind, lines in SETTINGS.items()}).map(
        lambda blocks: tuple(
            (kind, tuple(line for line in SETTINGS[kind] if line in lines)) for kind, lines in blocks.items() if lines
        )
    ),
)


def version(text: str, name: str = "r.qs") -> Version:
    return Version(name, load_source(Source(name, text), passes.available(), {}, FAMILIES), None)


def compared(old: Version, new: Version, planned: bool = True) -> Difference:
    """On tiny-llada, or without a model."""
    return compare(old, new, (LLADA, LLADA) if planned else None)
