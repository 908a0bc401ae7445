"""A first recipe for a family and a scheme: what `qspec new` writes. No torch."""

from __future__ import annotations

import re

from qspec.errors import UsageError
from qspec.formats import NUMBER_FORMATS
from qspec.language.formatter import format_source
from qspec.models.family import DecoderShape
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES, family_of

LABEL = re.compile(r"w([2-8])a(4|8|16)", re.ASCII)
FLOATS = tuple(name for name, number in NUMBER_FORMATS.items() if number.kind == "float")
BLOCKS = (128, 64, 32, 16)
_RECIPE = """\
qspec 1

# {about}
recipe {name} {{
  family {family}
  model  "{model}"
}}

calibrate {{
  text    "wikitext2"
  samples 128
  length  2048
  mask    uniform(0.0, 1.0)  # share of tokens masked, drawn per sample
}}

scheme {scheme} {{
  weights     {weights}
  activations {activations}
}}

layers blocks[*].*     use {scheme}
layers head, embedding keep

{passes}

evaluate {{
  nelbo on "wikitext2" samples 64
  task  gsm8k
}}

emit {{
  kernels triton for sm_90
  regime  block_decode, full_sequence  # the numbers of tokens that a forward pass will carry
}}
"""


def default_model(family: str) -> str:
    """The hub id of a family's instruct model, if it has one."""
    names = [name for name, config in known_models().items() if family_of(config).name == family]
    return next((name for name in names if "Instruct" in name), names[0])


def scaffold(name: str, family: str, scheme: str, model: str | None = None) -> str:
    """A recipe in canonical format, without errors or warnings, that compiles as it stands.

    scheme: `w4a4`, `w8a8`, `w3a16`, ... or the name of a float format. Raises UsageError for another.
    """
    weights, activations, passes, why = _parts(scheme, _block(family))
    text = _RECIPE.format(
        name=name,
        about=f"{scheme.upper() if LABEL.fullmatch(scheme) else scheme} for {FAMILIES[family].name}: {why}.",
        family=family,
        model=model or default_model(family),
        scheme=scheme,
        weights=weights,
        activations=activations,
        passes="\n".join(_apply(one, family) for one in passes),
    )
    return format_source(text, f"{name}.qs")


def _shape(family: str) -> DecoderShape:
    return FAMILIES[family].shape(known_models()[default_model(family)])


def _block(family: str) -> int:
    """Channels of a group and of a rotation, which divide every linear's inputs."""
    shape = _shape(family)
    blocks = (FAMILIES[family].linears(shape, block, experts=(0,)) for block in range(shape.layers))
    widths = {entry.in_features for linears in blocks for entry in linears}
    return next(size for size in BLOCKS if all(width % size == 0 for width in widths))


def _apply(use: str, family: str) -> str:
    """The statements of a pass over all linears that it can take."""
    if not use.startswith("smooth") or not _shape(family).values_normed:
        return f"apply {use} on blocks[*].*"
    places = ("attention.{q,k,v}", "mlp.*")  # no scale survives the norm of values, which o reads
    return "\n".join(f"apply {use} on blocks[*].{place}" for place in places)


def _parts(scheme: str, block: int) -> tuple[str, str, tuple[str, ...], str]:
    """Weights, activations, passes, and why those."""
    gptq, rtn = "gptq(damp = 0.01, order = activation)", "rtn()"
    if scheme in FLOATS:
        number = NUMBER_FORMATS[scheme]
        if number.block:
            operand = f"{scheme} per group {number.block}"
            return operand, operand, (gptq,), f"scales for {number.block} channels each need no rotation"
        return f"{scheme} per channel", f"{scheme} per token", (rtn,), "8 bits of a float format, rounded to nearest"
    label = LABEL.fullmatch(scheme)
    if label is None:
        known = f"wNaM with N from 2 to 8 and M 4, 8 or 16, or {', '.join(FLOATS)}"
        raise UsageError(f"there is no scheme {scheme!r} to begin with", hint=f"schemes are {known}")
    bits, inputs = label[1], label[2]
    if inputs == "16":
        why = f"weights in groups of {block}, 16-bit activations"
        return f"int{bits} per group {block} symmetric", "none", (gptq,), why
    weights, activations = f"int{bits} per channel symmetric", f"int{inputs} per token symmetric"
    if inputs == "4":
        passes = ("smooth(alpha = 0.6)", f"rotate_duquant(block = {block}, steps = 256)", gptq)
        return weights, activations, passes, "block rotations against massive outliers"
    return weights, activations, ("smooth(alpha = 0.5)", rtn if bits == "8" else gptq), "smoothing is enough at 8 bits"
