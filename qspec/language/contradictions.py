"""Settings of `calibrate` that are fine by themselves and cannot be together."""

from __future__ import annotations

from collections.abc import Iterator

from qspec.language.spec import Calibration, MaskDistribution, Rollouts

Contradiction = tuple[str, str, str]  # the setting to change, what is wrong, the next step


def contradictions(calibrate: Calibration) -> Iterator[Contradiction]:
    """Everything that cannot be, whatever the model."""
    if isinstance(calibrate.text, Rollouts):
        yield from _of_rollouts(calibrate, calibrate.text)
    masks, visible = _masks(calibrate.mask), _shows(calibrate.mask)
    weigh = calibrate.weigh
    if not masks and calibrate.draws > 1:
        yield "draws", "without masks, every draw of a sample is the same", "remove it, or mask the text"
    if not masks and weigh.certainty:
        yield "weigh", "`certainty` weighs masked tokens, and none is masked", "remove it, or mask the text"
    if not (weigh.masked and masks) and not (weigh.unmasked and visible):
        yield "weigh", "every token weighs nothing", "give the tokens that there are a weight above 0"


def _of_rollouts(calibrate: Calibration, rollouts: Rollouts) -> Iterator[Contradiction]:
    room = calibrate.length - rollouts.prompt
    if room < 1:
        message = f"a prompt of {rollouts.prompt} tokens leaves nothing of a length of {calibrate.length} to generate"
        yield "text", message, f"choose a `prompt` below {calibrate.length}, or a larger `length`"
    elif rollouts.steps > room:
        message = f"{rollouts.steps} steps are more than the {room} tokens to generate"
        yield "text", message, f"every step fills at least one: choose `steps` up to {room}"
    if rollouts.buckets > rollouts.steps:
        message = f"{rollouts.steps} steps do not pass through {rollouts.buckets} buckets"
        yield "text", message, f"choose `buckets` up to {rollouts.steps}"
    if calibrate.draws > rollouts.buckets:
        message = f"{rollouts.buckets} buckets do not give {calibrate.draws} draws of one rollout"
        yield "draws", message, f"choose `draws` up to {rollouts.buckets}"


def _masks(mask: MaskDistribution | None) -> bool:
    """Whether some token can be masked; None is a rollout's."""
    return mask is None or mask.high > 0


def _shows(mask: MaskDistribution | None) -> bool:
    """Whether some token can be visible."""
    return mask is None or mask.kind == "prefix" or mask.low < 1
