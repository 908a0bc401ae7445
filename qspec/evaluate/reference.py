"""What a recipe's passes are worth: its schemes rounded to nearest, without any other pass, measured on the same draws.

The weights are those of the unquantized model that is being evaluated, so that nothing is read again. It costs one more
NELBO of two models, and on a GPU the memory of a second quantized model. Tasks are left out: they are the hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qspec import numerics
from qspec.catalog import kernels_for
from qspec.data import DataSources
from qspec.errors import NumericsError
from qspec.evaluate.forward import Tokenizer
from qspec.evaluate.nelbo import measure_nelbo
from qspec.evaluate.results import KlBucket, Measurements, Metric, Reference, task_label
from qspec.kernels import attention
from qspec.kernels.packing import PackedLinear
from qspec.language.spec import Evaluation
from qspec.models.decoder import Decoder
from qspec.models.family import ROUTER_BIAS, ROUTER_SCALE
from qspec.models.operations import weight_and_bias
from qspec.passes.parameters import Rtn
from qspec.plan import ModulePlan, Plan
from qspec.plan.modules import gated
from qspec.progress import Progress
from qspec.quantize import assembled

NAME = "to nearest"


def with_reference(
    found: Measurements,
    plan: Plan,
    baseline: Decoder,
    tokenizer: Tokenizer,
    evaluation: Evaluation,
    sources: DataSources,
    progress: Progress,
) -> Measurements:
    """The measurements with those of the reference; as they are where the recipe is it already, or has no NELBO.

    baseline: the unquantized model.
    """
    nearest = to_nearest(plan)
    if nearest is None or not evaluation.nelbo:
        return found
    metrics: list[Metric] = []
    kl: list[KlBucket] = []
    try:
        model = rounded(nearest, baseline)
        for request in evaluation.nelbo:
            text = sources.heldout(request.text)
            part = partial(progress.part, f"nelbo on {task_label(request.text.name, text.source)}, {NAME}")
            result = measure_nelbo(baseline, model, tokenizer, text, request, found.seed, part)
            metrics.append(result.metric)
            kl.extend(result.kl)
    except (torch.OutOfMemoryError, NumericsError) as error:
        why = error.what if isinstance(error, NumericsError) else "the GPU has no memory for it beside both models"
        return replace(found, not_measured=(*found.not_measured, f"not measured: the schemes {NAME}: {why}"))
    reference = Reference(nearest.bits_per_weight, nearest.bits_per_weight_model, tuple(metrics), tuple(kl))
    return replace(found, reference=reference)


def to_nearest(plan: Plan) -> Plan | None:
    """The plan with the same schemes and no pass; None where it has no other pass than `rtn`."""
    if all(isinstance(use.params, Rtn) for use in plan.spec.passes):
        return None
    modules = (
        replace(m, passes=(), kernels=None if m.scheme is None else kernels_for(m.scheme, (), m.entry.source))
        for m in plan.modules
    )
    return replace(plan, modules=gated(modules))


def rounded(plan: Plan, plain: Decoder) -> Decoder:
    """The model of a plan without passes, from the weights of the unquantized one. Errors: NumericsError."""
    return attention.install(assembled(plan, plain, partial(_linear, plain)))


def _linear(plain: Decoder, module: ModulePlan) -> Mapping[str, Tensor]:
    linear = plain.module(module.entry.role)
    weight, bias = weight_and_bias(linear)
    if module.scheme is None or module.kernels is None:
        added = {"bias": bias} | {name: getattr(linear, name, None) for name in (ROUTER_BIAS, ROUTER_SCALE)}
        return {"weight": weight} | {name: tensor for name, tensor in added.items() if tensor is not None}
    codes = numerics.quantize_weight(weight.float(), module.scheme.weights, where=str(module.entry.role))
    return PackedLinear.from_quantized(codes, module.kernels, bias).tensors()
