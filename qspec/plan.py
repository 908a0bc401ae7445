"""The plan: what will happen to every module, decided from the recipe and config.json alone. No torch, no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qspec.catalog import GATE, INTEGER, GemmKernel, LayerKernels, RowKernel, kernels_for
from qspec.diagnostics import Diagnostic
from qspec.errors import InputError
from qspec.fitting import fitted, require_groups, require_rotations
from qspec.formats import Scheme, TensorFormat
from qspec.language.layers import verify
from qspec.language.layout import Layout, RuleCount, matches
from qspec.language.spec import REGIMES, Calibration, PassUse, Rollouts, Rule, Spec
from qspec.models.family import DecoderShape, Family, ModuleEntry

FLOAT_BITS = 16  # a module that is kept; and every module before compilation
BLOCK_SCALED = ("sm_100", "sm_120")  # targets whose tensor cores take 4-bit floats with their scales
RUN_ON = "sm_90"  # the target of the GPUs that every kernel was tested on
BATCH_TOKENS = 4096  # calibration tokens in one forward pass
NORM_BITS = 32  # norm gains stay in float32: smoothing folds scales into them


@dataclass(frozen=True)
class ModulePlan:
    """One module's fate. rule: the statement that decided (None: no rule). passes: those that touch it, in order; of
    a module that is kept, those over the whole model.
    """

    entry: ModuleEntry
    rule: Rule | None
    scheme: Scheme | None
    passes: tuple[PassUse, ...]
    kernels: LayerKernels | None

    @property
    def stored_bits(self) -> int:
        """Codes, scales and zero points, or 16-bit floats; without bias and online transform."""
        if self.scheme is None:
            return self.entry.weights * FLOAT_BITS
        return self.scheme.weights.stored_bits(self.entry.out_features, self.entry.in_features)

    @property
    def bits(self) -> float:
        return self.stored_bits / self.entry.weights

    @property
    def rotations(self) -> tuple[int, ...]:
        """Block sizes of the rotations of its input that are computed online."""
        return self.kernels.rotations if self.kernels else ()

    def expected(self, done: Collection[PassUse]) -> tuple[tuple[int, ...], TensorFormat | None]:
        """Of a linear after those of its passes that are among `done`: block sizes of the rotations of its input, and
        the format of its codes, None while it has none."""
        uses = [use for use in self.passes if use in done]
        if self.scheme is None:
            return (), None
        quantized = any(use.params.quantizes for use in uses)
        return _rotations(uses, self.entry, self.scheme), self.scheme.weights if quantized else None

    @property
    def kernel(self) -> str:
        """Names of the kernels that will run it, the row kernel first; "bf16" where it is kept."""
        if self.kernels is None:
            return "bf16"
        row = [self.kernels.row.name] if self.kernels.row else []
        return " + ".join([*row, self.kernels.gemm.name])


@dataclass(frozen=True)
class Plan:
    """Frozen decisions for every module of a model of this shape. calibrate: the recipe's, as the model takes it."""

    spec: Spec
    calibrate: Calibration
    family: str
    shape: DecoderShape
    modules: tuple[ModulePlan, ...]
    rules: tuple[RuleCount, ...]
    warnings: tuple[Diagnostic, ...]

    def block(self, index: int) -> tuple[ModulePlan, ...]:
        """The linears of one block in forward order."""
        return tuple(m for m in self.modules if m.entry.role.block == index)

    def merged(self, index: int) -> tuple[tuple[ModulePlan, ...], ...]:
        """The linears of a block that are computed as one product, where these are several."""
        return tuple(group for group in products(self.block(index)) if len(group) > 1)

    def product(self, module: ModulePlan) -> str | None:
        """The first module of the product that a linear is part of; None where it is one of its own."""
        groups = () if module.entry.role.block is None else self.merged(module.entry.role.block)
        return next((group[0].entry.module for group in groups if module in group), None)

    def module(self, role: str) -> ModulePlan | None:
        """By any name that a recipe may call it: `head` is the embedding where they are one tensor."""
        return next((m for m in self.modules if any(str(name.role) == role for name in m.entry.names)), None)

    def kernels(self) -> tuple[RowKernel | GemmKernel, ...]:
        """Every distinct kernel that some layer will run, sorted by name."""
        found: dict[str, RowKernel | GemmKernel] = {}
        for module in self.modules:
            if module.kernels is not None:
                for kernel in (module.kernels.row, module.kernels.gemm):
                    if kernel is not None:
                        found[kernel.name] = kernel
        return tuple(found[name] for name in sorted(found))

    def pass_counts(self) -> tuple[int, ...]:
        """How many modules each pass touches."""
        counts = Counter(use for m in self.modules for use in dict.fromkeys(m.passes))
        return tuple(counts[use] for use in self.spec.passes)

    def rules_for(self, module: ModulePlan) -> tuple[Rule, ...]:
        """Every rule that matches a module, in the recipe's order; the last one decides."""
        layers = self.shape.layers
        return tuple(rule for rule in self.spec.rules if rule.selector.matches(module.entry, layers))

    @property
    def block_weights(self) -> int:
        """Weights of the linears in the blocks; embedding and head are not among them."""
        return sum(m.entry.weights for m in self._blocks())

    @property
    def bits_per_weight(self) -> float:
        """True bits of a block weight: codes, scales, zero points and online transforms, kept linears at 16."""
        return stored_bits(self._blocks()) / self.block_weights

    @property
    def bits_per_weight_model(self) -> float:
        """The same of an average weight of the whole model: embedding and head, which are kept at 16, count too."""
        return stored_bits(self.modules) / sum(m.entry.weights for m in self.modules)

    @property
    def bytes_before(self) -> int:
        """The whole model in 16 bits."""
        weights = sum(m.entry.weights + _bias(m) for m in self.modules)
        return (weights + self._norm_gains()) * FLOAT_BITS // 8

    @property
    def bytes_after(self) -> int:
        """The tensors of the artifact."""
        return self.bits_after // 8

    @property
    def bits_after(self) -> int:
        return tensor_bits(self.modules) + self._norm_gains() * NORM_BITS

    @property
    def bytes_running(self) -> int:
        """What a GPU holds while the model runs the largest forward pass of the recipe's regimes: an estimate.

        The artifact's tensors, and in 16 bits at the widest moment of a block the residual stream with its norm, gate,
        up and their product; less where one product gives that and cuBLAS has no part in it. The weights of gate and up
        in 16 bits, where a weight-only product writes them down for cuBLAS (docs/kernels.md), are gone before that
        moment, and take no more than the product, which is not there yet, from as many tokens on as twice the width.
        """
        tokens = max(REGIMES[regime][1] for regime in self.spec.emit.regimes)
        return self.bytes_after + tokens * (2 * self.shape.width + 3 * self.shape.ffn) * FLOAT_BITS // 8

    @property
    def calibration_tokens(self) -> int:
        return self.calibrate.rows * self.calibrate.length

    def compile_memory(self) -> int:
        """Bytes that compilation needs at its peak, beside the program itself: an estimate.

        One block in float32 three times over (original, rewritten, rounded), the widest Hessian with its factors in
        float64, the calibration stream (and the unquantized model's, at a block's input and output, where a pass
        compares with it), one batch of it inside a block (six tensors of the width and two of the MLP's at once), the
        embedding and the head. Before that, where rollouts or certainties want it, the whole model in float32, as a
        CPU computes; a GPU takes half of that. Between models of different sizes, the measured peak of GPTQ on a CPU
        grows as the estimate does within a factor of 1.25 (`tests/end_to_end/test_memory.py`). Memory that is freed and
        that the allocator keeps is not counted.
        """
        block = self.block_weights // self.shape.layers * 4 * 3
        hessian = max(m.entry.in_features for m in self._blocks()) ** 2 * 8 * 4
        copies = 3 if any(use.params.follows_exact for use in self.spec.passes) else 1
        stream = self.calibration_tokens * self.shape.width * 4 * copies
        tokens = min(self.calibration_tokens, max(BATCH_TOKENS, self.calibrate.length))
        batch = tokens * (6 * self.shape.width + 2 * self.shape.ffn) * 4
        quantizing = block + hessian + stream + batch + 2 * self.shape.vocab * self.shape.width * 4
        model = self.bytes_before * 32 // FLOAT_BITS if self.calibrate.runs_model else 0
        return max(quantizing, model)

    def compile_operations(self) -> int:
        """Floating-point operations of calibration and passes: an estimate.

        One forward pass of the block for each statistic that a pass collects, one to hand the stream on, Hessians;
        of the model, one for each step of a rollout and one for certainties.
        """
        calibrate, tokens = self.calibrate, self.calibration_tokens
        steps = calibrate.text.steps if isinstance(calibrate.text, Rollouts) else 0
        model = tokens // calibrate.draws * steps + tokens * calibrate.weigh.certainty
        forwards = 1 + sum(1 if not use.params.quantizes else 4 for use in self.spec.passes)
        hessians = sum(m.entry.in_features**2 for m in self._blocks() if m.scheme is not None)
        return 2 * tokens * (self.block_weights * forwards + hessians) + 2 * model * self.block_weights

    def notes(self) -> tuple[str, ...]:
        """What the declared targets and regimes mean for these layers."""
        labels = {m.scheme.label for m in self.modules if m.scheme}
        kernels = {(m.kernels.gemm.number, m.kernels.gemm.activation_bits) for m in self.modules if m.kernels}
        notes = []
        for target in self.spec.emit.targets:
            if (INTEGER, 4) in kernels and target in ("sm_80", "sm_89"):
                notes.append(f"{target}: W4A4 runs as int8 arithmetic; Triton has no native int4 mma")
            elif (INTEGER, 4) in kernels:
                notes.append(f"{target} has no int4 tensor cores: W4A4 is 4-bit storage with int8 arithmetic")
            for number in sorted(number for number, bits in kernels if number != INTEGER and bits == 4):
                if target not in BLOCK_SCALED:
                    notes.append(f"{target} has no 4-bit float tensor cores: {number} is multiplied as bfloat16")
            if ("fp8_e4m3", 8) in kernels and target == "sm_80":
                notes.append(f"{target} has no fp8 tensor cores: fp8_e4m3 is multiplied as float16")
            if target != RUN_ON:
                notes.append(f"{target}: kernels are compiled for it ahead of time; none was run on such a GPU yet")
        for regime in self.spec.emit.regimes:
            low, high = REGIMES[regime]
            gain = "weight bytes decide" if regime == "block_decode" else "arithmetic decides"
            notes.append(f"{regime} carries {low}-{high} tokens a forward pass: {gain}")
            if regime == "full_sequence" and "W4A16" in labels:
                notes.append("W4A16 saves memory but no time at full_sequence")
        return tuple(notes)

    def as_json(self) -> dict[str, Any]:
        """The stable form that `qspec plan --json` prints."""
        return {
            "recipe": self.spec.name,
            "family": self.family,
            "block_weights": self.block_weights,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_weight_model": self.bits_per_weight_model,
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "calibration": self._calibration(),
            "compile": {"memory_bytes": self.compile_memory(), "operations": self.compile_operations()},
            "rules": [{"text": r.rule.text, "matched": r.matched, "decides": r.decides} for r in self.rules],
            "passes": [
                {"text": use.text, "modules": count}
                for use, count in zip(self.spec.passes, self.pass_counts(), strict=True)
            ],
            "merged": [
                [str(m.entry.role) for m in group] for i in range(self.shape.layers) for group in self.merged(i)
            ],
            "modules": [
                {
                    "role": str(m.entry.role),
                    "module": m.entry.module,
                    "scheme": m.scheme.name if m.scheme else None,
                    "bits": m.bits,
                    "rotations": list(m.rotations),
                    "kernel": m.kernel,
                }
                for m in self.modules
            ],
            "kernels": [kernel.name for kernel in self.kernels()],
            "notes": list(self.notes()),
        }

    def _calibration(self) -> dict[str, Any]:
        wanted = self.calibrate
        return {
            "text": str(wanted.text),
            "samples": wanted.samples,
            "draws": wanted.draws,
            "rows": wanted.rows,
            "length": wanted.length,
            "tokens": self.calibration_tokens,
            "mask": None if wanted.mask is None else str(wanted.mask),
            "weigh": str(wanted.weigh),
        }

    def _blocks(self) -> Iterable[ModulePlan]:
        return (m for m in self.modules if m.entry.role.block is not None)

    def _norm_gains(self) -> int:
        return (2 * self.shape.layers + 1) * self.shape.width


def products(modules: Iterable[ModulePlan]) -> tuple[tuple[ModulePlan, ...], ...]:
    """The linears of a block, together where they are one product: of one input, with one scheme and fate."""
    groups: dict[tuple[object, ...], list[ModulePlan]] = {}
    for m in modules:
        key = str(m.entry.role) if m.kernels is None else (m.entry.site, m.kernels, m.passes, m.entry.bias)
        groups.setdefault((key,), []).append(m)
    return tuple(tuple(group) for group in groups.values())


def gated(modules: Iterable[ModulePlan]) -> tuple[ModulePlan, ...]:
    """Linears, as `plan_module` has them, with silu(gate) up in the product of gate and up where they are one.

    Down reads what that gives; elsewhere its row kernel computes it of the two.
    """
    modules = tuple(modules)
    made = {
        m.entry.role.block
        for group in products(modules)
        for m in group
        if [one.entry.role.part for one in group] == ["mlp.gate", "mlp.up"] and m.entry.out_features % GATE == 0
    }

    def kernels(m: ModulePlan) -> LayerKernels | None:
        if m.kernels is None or m.entry.role.block not in made:
            return m.kernels
        match m.entry.role.part:
            case "mlp.gate" | "mlp.up":
                return m.kernels.gated()
            case "mlp.down":
                return m.kernels.plain()
        return m.kernels

    return tuple(replace(m, kernels=kernels(m)) for m in modules)


def stored_bits(modules: Iterable[ModulePlan]) -> int:
    """Bits of these modules: codes, scales, zero points, kept weights, and the online transforms of their inputs.

    Rotations are float16 and permutations int32, one of each for every input that is transformed: the bits of the
    linears of different inputs add up.
    """
    modules = tuple(modules)
    inputs = {(m.entry.site, m.rotations): m.entry.in_features for m in modules if m.rotations}
    transforms = sum(
        sum(block**2 * 16 for block in rotations) + (channels * 32 if len(rotations) > 1 else 0)
        for (_, rotations), channels in inputs.items()
    )
    return sum(m.stored_bits for m in modules) + transforms


def bits_text(blocks: float, model: float, digits: int = 2) -> str:
    """Bits per weight as people read them: a figure of the blocks never stands without the whole model's."""
    return f"{blocks:.{digits}f} in the blocks, {model:.{digits}f} in the whole model"


def tensor_bits(modules: Iterable[ModulePlan]) -> int:
    """The same with their biases: everything that an artifact stores for them."""
    modules = tuple(modules)
    return stored_bits(modules) + sum(_bias(m) * (FLOAT_BITS if m.scheme is None else 32) for m in modules)


def _bias(module: ModulePlan) -> int:
    return module.entry.out_features if module.entry.bias else 0


def make_plan(spec: Spec, family: Family, shape: DecoderShape, *, standin: bool = False) -> Plan:
    """Decides every module. standin: whether the model stands in for the recipe's, so that calibration gives way to it.

    Raises RecipeError, with the lines concerned, where the recipe does not fit this model; InputError for sizes that
    do not.
    """
    if family.name not in spec.families:
        known = " or ".join(spec.families)
        raise InputError(
            f"the recipe is for the family {known}, the checkpoint is {family.name}",
            where=spec.source,
            hint=f"add {family.name} to `family` in the recipe, or give a checkpoint of {known}",
        )
    layout = verify(spec, family.modules(shape), shape.layers)
    calibrate = fitted(spec.calibrate, shape.max_length, standin=standin, where=spec.source)
    require_groups(_pairs(spec, layout, shape.layers), spec.source)
    for use in spec.passes:
        use.params.check(shape)
    uses: list[list[PassUse]] = [[] for _ in layout.modules]
    places = matches([use.selector for use in spec.passes], layout.modules, shape.layers)
    for use, touched in zip(spec.passes, places, strict=True):
        for m in touched:
            uses[m].append(use)
        decided = ((layout.modules[m], layout.decided[m]) for m in touched)
        require_rotations(use, ((entry, rule.scheme) for entry, rule in decided if rule and rule.scheme))
    modules = gated(map(partial(_planned, spec), layout.modules, layout.decided, uses))
    return Plan(spec, calibrate, family.name, shape, modules, layout.counts, layout.warnings)


def _pairs(spec: Spec, layout: Layout, layers: int) -> list[tuple[ModuleEntry, Scheme]]:
    """Every linear of the blocks with the scheme that it gets, and with those that a search offers it."""
    offers = spec.search.offers if spec.search else ()
    found = [(entry, rule.scheme) for entry, rule in zip(layout.modules, layout.decided, strict=True) if rule]
    for offer, touched in zip(offers, matches([o.selector for o in offers], layout.modules, layers), strict=True):
        found += [(layout.modules[m], choice) for m in touched for choice in offer.choices]
    return [(entry, scheme) for entry, scheme in found if scheme is not None and entry.role.block is not None]


def plan_module(spec: Spec, entry: ModuleEntry, rule: Rule | None, layers: int) -> ModulePlan:
    """The fate of one module under the rule that decides it. Raises InputError where no kernel computes it."""
    return _planned(spec, entry, rule, [use for use in spec.passes if use.selector.matches(entry, layers)])


def _planned(spec: Spec, entry: ModuleEntry, rule: Rule | None, uses: Sequence[PassUse]) -> ModulePlan:
    """The same, with the passes whose selectors select it."""
    scheme = rule.scheme if rule else None
    if scheme is None:
        return ModulePlan(entry, rule, None, tuple(use for use in spec.passes if use.params.whole_model), None)
    if entry.role.block is None:
        raise InputError(
            f"{entry.role} can only be kept: no kernel computes it in {scheme.label}",
            where=rule.text if rule else spec.source,
            hint=f"add `layers {entry.role} keep`",
        )
    kernels = kernels_for(scheme, _rotations(uses, entry, scheme), entry.source)
    kernels.check(entry.in_features, str(entry.role))
    return ModulePlan(entry, rule, scheme, tuple(uses), kernels)


def _rotations(uses: Iterable[PassUse], entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
    """Block sizes of the rotations that these passes leave online on a linear's input: the last one's that has any."""
    online = [sizes for use in uses if (sizes := use.params.rotations(entry, scheme))]
    return online[-1] if online else ()
