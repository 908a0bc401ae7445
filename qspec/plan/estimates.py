"""What running and compiling a plan will take, before either: memory and operations."""

from __future__ import annotations

from qspec.language.spec import REGIMES, Rollouts
from qspec.plan.generating import activation_bytes
from qspec.plan.modules import FLOAT_BITS, active, weights_of
from qspec.plan.plan import BATCH_TOKENS, HESSIAN_BYTES, Plan


def running_memory(plan: Plan) -> int:
    """What a GPU holds while the model runs the largest forward pass of the recipe's regimes: an estimate.

    The artifact's tensors and the pass' activations.
    """
    tokens = max(REGIMES[regime][1] for regime in plan.spec.emit.regimes)
    return plan.bytes_after + activation_bytes(plan.shape, tokens)


def compile_memory(plan: Plan) -> int:
    """Bytes that compilation needs at its peak, beside the program itself: an estimate.

    One block in float32 three times over (original, rewritten, rounded), the widest Hessian with its factors in
    float64, those of a layer's experts that are summed up at once, the calibration stream (and the unquantized model's,
    at a block's input and output, where a pass compares with it), one batch of it inside a block (six tensors of the
    width and two of the MLP's at once), the embedding and the head. Before that, where rollouts or certainties want it,
    the whole model in float32, as a CPU computes; a GPU takes half of that. Between models of different sizes, and with
    each of these terms the largest in turn, the measured peak on a CPU grows as the estimate does within a factor of
    1.25 (`tests/end_to_end/test_memory.py`). Memory that is freed and that the allocator keeps is not counted.
    """
    block = max(weights_of(modules) for modules, _ in plan.alike_blocks) * 4 * 3
    hessian = max(m.entry.in_features for modules, _ in plan.alike_blocks for m in modules) ** 2 * 8 * 4
    mixture = plan.shape.experts
    if mixture is not None:
        hessian += min(HESSIAN_BYTES, mixture.count * max(plan.shape.width, mixture.ffn) ** 2 * 4)
    copies = 3 if any(use.params.follows_exact for use in plan.spec.passes) else 1
    stream = plan.calibration_tokens * plan.shape.width * 4 * copies
    tokens = min(plan.calibration_tokens, max(BATCH_TOKENS, plan.calibrate.length))
    batch = tokens * (6 * plan.shape.width + 2 * plan.shape.active_ffn) * 4
    quantizing = block + hessian + stream + batch + 2 * plan.shape.vocab * plan.shape.width * 4
    model = plan.bytes_before * 32 // FLOAT_BITS if plan.calibrate.runs_model else 0
    return max(quantizing, model)


def compile_operations(plan: Plan) -> int:
    """Floating-point operations of calibration and passes: an estimate.

    One forward pass of the block for each statistic that a pass collects, one to hand the stream on, Hessians;
    of the model, one for each step of a rollout and one for certainties.
    """
    calibrate, tokens = plan.calibrate, plan.calibration_tokens
    steps = calibrate.text.steps if isinstance(calibrate.text, Rollouts) else 0
    model = tokens // calibrate.draws * steps + tokens * calibrate.weigh.certainty
    forwards = 1 + sum(1 if not use.params.quantizes else 4 for use in plan.spec.passes)
    hessians = sum(
        active((m for m in block if m.scheme is not None), lambda m: m.entry.in_features**2) * len(places)
        for block, places in plan.alike_blocks
    )
    return 2 * tokens * (plan.active_weights * forwards + hessians) + 2 * model * plan.active_weights
