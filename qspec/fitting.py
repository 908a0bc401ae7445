"""Whether a recipe's sizes fit a model's: calibration rows its length, groups and rotations its inputs. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import gcd

from qspec.catalog import PACK_BLOCKS
from qspec.diagnostics import listed
from qspec.errors import InputError
from qspec.formats import Scheme, TensorFormat
from qspec.language.spec import Calibration, PassUse, Rollouts
from qspec.models.family import ModuleEntry

SMALLEST_GROUP = 8  # that is worth proposing: a smaller one costs two bits a weight for its scales


def fitted(wanted: Calibration, longest: int, *, standin: bool, where: str) -> Calibration:
    """The calibration as a model of `longest` tokens takes it.

    Raises InputError for rows that are longer; a stand-in, for which the recipe was not written, gets shorter ones.
    """
    if wanted.length <= longest:
        return wanted
    if not standin:
        raise InputError(
            f"calibration length {wanted.length} exceeds the model's {longest} tokens",
            where=where,
            hint=f"write `length {longest}` or less in the calibrate block",
        )
    if not isinstance(wanted.text, Rollouts):
        return replace(wanted, length=longest)
    prompt = min(wanted.text.prompt, longest // 2)
    steps = min(wanted.text.steps, longest - prompt)
    text = replace(wanted.text, prompt=prompt, steps=steps, buckets=min(wanted.text.buckets, steps))
    return replace(wanted, text=text, length=longest)


def require_groups(pairs: Iterable[tuple[ModuleEntry, Scheme]], where: str) -> None:
    """Raises InputError where scales are shared by groups of input channels that do not divide a layer's.

    pairs: every linear with each scheme that it is to have. The message names every kind of layer that fails, with its
    input channels, and the sizes that fit all layers of that scheme.
    """
    schemes: dict[str, tuple[Scheme, dict[str, int]]] = {}
    for entry, scheme in pairs:
        schemes.setdefault(scheme.name, (scheme, {}))[1][_kind(entry)] = entry.in_features
    for scheme, inputs in schemes.values():
        _require_packing(scheme, inputs, where)
        for operand, fmt in (("weights", scheme.weights), ("activations", scheme.activations)):
            if fmt is not None and fmt.granularity.kind == "group":
                _require_group(scheme, operand, fmt, inputs, where)


def require_rotations(use: PassUse, pairs: Iterable[tuple[ModuleEntry, Scheme]]) -> None:
    """Raises InputError where a pass rotates blocks of input channels at run time that do not divide a layer's.

    pairs: every linear that it selects, with its scheme. The message names every kind of layer that fails, with its
    input channels, and parameters of the pass that fit all of them.
    """
    rotated = [(entry, use.params.rotations(entry, scheme)) for entry, scheme in pairs]
    inputs = {_kind(entry): entry.in_features for entry, blocks in rotated if blocks}
    wrong = {
        _kind(entry): entry.in_features
        for entry, blocks in rotated
        if any(entry.in_features % block for block in blocks)
    }
    if wrong:
        blocks = ", then ".join(dict.fromkeys(str(block) for _, sizes in rotated for block in sizes))
        instead = use.params.fitting(gcd(*inputs.values()))
        others = f"leave {listed(list(wrong), 'and')} out of it"
        raise InputError(
            f"`{use.name}` rotates blocks of {blocks}, which do not fit {_with_sizes(wrong)}",
            where=use.text,
            hint=f"write `{instead}`, which fits all its layers, or {others}" if instead else others,
        )


def _require_group(scheme: Scheme, operand: str, fmt: TensorFormat, inputs: dict[str, int], where: str) -> None:
    size = fmt.granularity.size
    wrong = {kind: channels for kind, channels in inputs.items() if channels % size}
    if not wrong:
        return
    common = gcd(*inputs.values())
    sizes = [n for n in range(SMALLEST_GROUP, common + 1) if common % n == 0 and (n & (n - 1) == 0 or n == common)]
    others = f"give {listed(list(wrong), 'and')} another scheme, or keep"
    if fmt.number.block:  # the size belongs to the format
        hint = f"{fmt.number} has groups of {size}: {others}"
    elif sizes:
        hint = f"write `per group {sizes[-1]}` (all its layers take {', '.join(map(str, sizes))}), or {others}"
    else:
        hint = f"write `per {'channel' if operand == 'weights' else 'token'}`, or {others}"
    raise InputError(
        f"{operand} per group {size} do not fit {_with_sizes(wrong)}", where=f"{where}: scheme {scheme.name}", hint=hint
    )


def _require_packing(scheme: Scheme, inputs: dict[str, int], where: str) -> None:
    wrong = {kind: channels for kind, channels in inputs.items() if channels % PACK_BLOCKS[-1]}
    if wrong:
        what = f"no kernel takes {_with_sizes(wrong)}: not a multiple of {PACK_BLOCKS[-1]}"
        hint = f"keep them: `layers {', '.join(wrong)} keep`"
        raise InputError(what, where=f"{where}: scheme {scheme.name}", hint=hint)


def _kind(entry: ModuleEntry) -> str:
    """As a recipe selects all layers of its kind."""
    return entry.role.part if entry.role.block is None else f"blocks[*].{entry.role.part}"


def _with_sizes(inputs: dict[str, int]) -> str:
    return ", ".join(f"`{kind}` ({channels} input channels)" for kind, channels in inputs.items())
