"""The plan: what will happen to every module, its true bits, and what that will take. No torch, no weights."""

from qspec.plan.modules import FLOAT_BITS, ModulePlan, bits_text, gated, gemms, stored_bits, tensor_bits
from qspec.plan.plan import BATCH_TOKENS, Plan, make_plan, plan_module

__all__ = [
    "BATCH_TOKENS",
    "FLOAT_BITS",
    "ModulePlan",
    "Plan",
    "bits_text",
    "gated",
    "gemms",
    "make_plan",
    "plan_module",
    "stored_bits",
    "tensor_bits",
]
