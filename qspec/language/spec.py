"""The resolved recipe: what a `.qs` file means, as frozen values with the spans they came from.

A class says all about the settings of its block: keyword, type, bounds, default and words about each field
(`qspec.language.fields`); grammar/qspec.lark says how they are spelled. A class with a spelling of its own has the
`rule` of the grammar that reads it, the `form` that messages show, and `__str__`, which writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal

from qspec.diagnostics import Span
from qspec.formats import Scheme, TensorFormat
from qspec.language.fields import Form, Key, Known, Quoted, about, between
from qspec.language.presets import PRESETS
from qspec.language.selectors import Selector
from qspec.models.chat import ChatSetting
from qspec.models.family import DecoderShape, ModuleEntry
from qspec.seeds import LARGEST_SEED


class Fact(StrEnum):
    """What holds for a module between two passes; a pass requires, establishes and clears facts."""

    FLOAT_WEIGHTS = "float_weights"  # the weights are not codes yet
    PLAIN_INPUT = "plain_input"  # nothing is computed online on the module's input
    OPEN_RANGE = "open_range"  # no clip of the weights' ranges was searched for the weights as they are
    CODES = "codes"  # the weights are quantized


INITIAL_FACTS = frozenset({Fact.FLOAT_WEIGHTS, Fact.PLAIN_INPUT, Fact.OPEN_RANGE})


@dataclass(frozen=True)
class Pass:
    """Base of every pass in `qspec.passes`: its fields are its parameters, its class variables its contract.

    A subclass is a frozen dataclass that imports no torch: `check` makes it. `algorithm` names the module whose
    `rewrite(params, block, uses)` does the work; it is imported when a block is rewritten.
    """

    algorithm: ClassVar[str] = ""
    requires: ClassVar[frozenset[Fact]] = frozenset()
    establishes: ClassVar[frozenset[Fact]] = frozenset()
    clears: ClassVar[frozenset[Fact]] = frozenset()
    quantizes: ClassVar[bool] = False  # turns weights into codes
    rescales: ClassVar[bool] = False  # moves factors from an input into what produces it
    follows_exact: ClassVar[bool] = False  # compares with the unquantized model's activations

    @property
    def whole_model(self) -> bool:
        """Whether it rewrites every module, kept ones too, and what lies outside the blocks."""
        return False

    def check(self, shape: DecoderShape) -> None:
        """Raises InputError where a model of this shape cannot be rewritten."""

    def ends(self) -> frozenset[Fact]:
        """The facts that it clears with these parameters: some of `clears`, all by default."""
        return self.clears

    def rotations(self, entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
        """Block sizes of the rotations that it leaves online on the input of a linear, none by default.

        entry: sizes are 0 where no model is known yet; a pass whose rotations depend on them says (). Raises NoKernel
        where it has none for this size.
        """
        return ()

    def fitting(self, channels: int) -> str | None:
        """As a recipe writes it with rotations that fit every input whose channels are a multiple of these; None where
        there are none."""
        return None

    def rewrite(self, block: Any, uses: Any) -> None:
        """Rewrites the selected linears of one block; see `qspec.passes.block.Block`."""
        if not self.algorithm:
            raise TypeError(f"{type(self).__name__} defines no rewrite and names no algorithm")
        import_module(self.algorithm).rewrite(self, block, uses)

    def rewrite_outer_layers(self, outer: Any) -> None:
        """Rewrites what lies outside the blocks, before the first one: see `qspec.passes.outer_layers.OuterLayers`."""


LOSSES = ("kl", "nelbo")
TEXTS = ("c4", "pile", "wikitext2")
TASKS = tuple(PRESETS)


@dataclass(frozen=True)
class ModelRef:
    """A checkpoint: a folder, or a hub id and its revision."""

    form: ClassVar[str] = '"ID" revision "REVISION"'
    id: Annotated[str, Quoted()]
    revision: Annotated[str, Quoted()] = "main"

    def __str__(self) -> str:
        return f'"{self.id}" revision "{self.revision}"'


@dataclass(frozen=True)
class NamedText:
    """A text data set by name, such as wikitext2."""

    rule: ClassVar[str] = "named_text"
    form: ClassVar[str] = '"NAME"'
    name: Annotated[str, Quoted(), Known("text", "QS027", TEXTS)]

    def __str__(self) -> str:
        return f'"{self.name}"'


@dataclass(frozen=True)
class FileText:
    """A local text file, or the field of a JSON-lines file. Relative paths start at the recipe's folder."""

    rule: ClassVar[str] = "file_text"
    form: ClassVar[str] = 'text file("PATH")'
    path: Annotated[str, Quoted()]
    field: Annotated[str, Quoted()] | None = None

    @property
    def name(self) -> str:
        """As metrics and locks name it."""
        return self.path

    def __str__(self) -> str:
        return f'file("{self.path}", field = "{self.field}")' if self.field else f'file("{self.path}")'


TextSource = NamedText | FileText


@dataclass(frozen=True)
class Rollouts:
    """States that the unquantized model passes through while it generates, instead of masked text.

    After `prompt` tokens of the text `prompts`, the rest of `length` is generated in `steps` steps; the shares still
    masked, (0, 1], are cut into `buckets` equal parts, and the states recorded are spread evenly over these. chat:
    whether the prompts are a user's messages in the tokenizer's chat template, whose tokens count as the prompt's.
    """

    rule: ClassVar[str] = "rollouts"
    form: ClassVar[str] = 'text rollouts(prompts = "NAME")'
    prompts: Annotated[TextSource, about("the text that prompts are windows of")] = NamedText("wikitext2")
    prompt: Annotated[int, between(1, 65536, "tokens of a prompt")] = 64
    steps: Annotated[int, between(1, 8192, "passes of the sampler for the rest of `length`")] = 64
    buckets: Annotated[
        int, between(1, 1024, "equal parts of the shares still masked, over which states are spread evenly")
    ] = 8
    chat: Annotated[ChatSetting, about("prompts as a user's messages in the tokenizer's chat template")] = "auto"

    def __str__(self) -> str:
        sizes = f"prompt = {self.prompt}, steps = {self.steps}, buckets = {self.buckets}, chat = {self.chat}"
        return f"rollouts(prompts = {self.prompts}, {sizes})"


@dataclass(frozen=True)
class MaskDistribution:
    """Share of tokens masked, drawn per row.

    "uniform": t ~ U(low, high). "grid": evenly spaced between low and high over all rows, and over the draws of one
    sample. "fixed": low, and high is the same. "prefix": as "uniform", but for a prefix of random length, which stays
    visible. "none": clean text, low = high = 0.
    """

    rule: ClassVar[str] = "distribution"
    form: ClassVar[str] = "uniform(LOW, HIGH), grid(LOW, HIGH), prefix(LOW, HIGH), fixed(SHARE) or none"
    kind: Literal["uniform", "grid", "fixed", "prefix", "none"] = "uniform"
    low: Annotated[float, between(0, 1)] = 0.0
    high: Annotated[float, between(0, 1)] = 1.0

    def __post_init__(self) -> None:
        if self.kind == "none":
            object.__setattr__(self, "low", 0.0)
        if self.kind in ("fixed", "none"):
            object.__setattr__(self, "high", self.low)

    def __str__(self) -> str:
        match self.kind:
            case "none":
                return "none"
            case "fixed":
                return f"fixed({self.low!r})"
        return f"{self.kind}({self.low!r}, {self.high!r})"


@dataclass(frozen=True)
class Weighting:
    """How much a token counts in statistics and Hessians, by whether the model sees it or a mask.

    certainty: a masked token counts `masked` times the unquantized model's confidence there.
    """

    form: ClassVar[str] = "masked NUMBER, unmasked NUMBER, or weigh certainty"
    masked: Annotated[float, between(0, 1000)] = 1.0
    unmasked: Annotated[float, between(0, 1000)] = 1.0
    certainty: bool = False

    def __str__(self) -> str:
        certainty = "certainty, " if self.certainty else ""
        return f"{certainty}masked {self.masked!r}, unmasked {self.unmasked!r}"


@dataclass(frozen=True)
class Calibration:
    """Each sample of the text gives `draws` rows. mask: None with rollouts, which bring their own."""

    text: Annotated[
        TextSource | Rollouts, about('what samples are windows of: `"NAME"`, `file(…)` or `rollouts(…)`')
    ] = NamedText("wikitext2")
    samples: Annotated[int, between(1, 65536, "windows of the text")] = 128
    length: Annotated[int, between(8, 131072, "tokens a sample")] = 2048
    mask: Annotated[MaskDistribution | None, about("share of tokens that the model sees as masks")] = MaskDistribution()
    draws: Annotated[int, between(1, 1024, "masked versions of each sample; rows are samples × draws")] = 1
    weigh: Annotated[Weighting, about("how much a token counts in statistics and Hessians")] = Weighting()
    seed: Annotated[int, between(0, LARGEST_SEED, "of masks and of every random choice")] = 0

    @property
    def source(self) -> TextSource:
        """The text that samples or prompts are windows of."""
        return self.text.prompts if isinstance(self.text, Rollouts) else self.text

    @property
    def rows(self) -> int:
        return self.samples * self.draws

    @property
    def runs_model(self) -> bool:
        """Whether the rows cannot be made without running the whole unquantized model."""
        return isinstance(self.text, Rollouts) or self.weigh.certainty


@dataclass(frozen=True)
class Rule:
    """`layers SELECTOR use SCHEME` or `layers SELECTOR keep` (scheme None)."""

    selector: Selector
    scheme: Scheme | None
    text: str  # the statement in canonical form
    span: Span = field(compare=False)

    def __hash__(self) -> int:
        return hash(self.text)  # says it all, and is hashed once


@dataclass(frozen=True)
class PassUse:
    """`apply NAME(params) on SELECTOR`."""

    name: str
    params: Pass
    selector: Selector
    text: str
    span: Span = field(compare=False)

    def __hash__(self) -> int:
        return hash(self.text)


@dataclass(frozen=True)
class Offer:
    """`offer w4, w8, keep on SELECTOR`: the choices of every linear selected; None keeps it. One choice pins it."""

    selector: Selector
    choices: tuple[Scheme | None, ...]
    span: Span = field(compare=False)

    def __str__(self) -> str:
        return f"{', '.join(scheme.name if scheme else 'keep' for scheme in self.choices)} on {self.selector.text}"


BudgetKind = Literal["bits", "active", "bytes", "memory", "time"]
BUDGET_UNITS: Mapping[str, tuple[BudgetKind, int]] = {  # unit -> (of which budget, how many of its smallest unit)
    "bits": ("bits", 1),
    "KiB": ("bytes", 2**10),
    "MiB": ("bytes", 2**20),
    "GiB": ("bytes", 2**30),
    "us": ("time", 1),
    "ms": ("time", 1000),
}


@dataclass(frozen=True)
class Budget:
    """What a found layout may not exceed. amount: a decimal number as written, in `unit`.

    "bits": true bits of an average block weight. "active": bits or bytes of what a token touches in the blocks: of
    experts, its own. "bytes": of the artifact's tensors. "memory": bytes of a GPU that runs it. "time": predicted time
    of the linears in one forward pass of `regime`.
    """

    kind: BudgetKind
    amount: str
    unit: str
    regime: str | None = None

    def __str__(self) -> str:
        after = f" {self.kind}" if self.kind in ("memory", "active") else f" for {self.regime}" if self.regime else ""
        return f"{self.amount} {self.unit}{after}"


@dataclass(frozen=True)
class Search:
    """What `qspec search` looks for; a compile passes it by.

    loss: "kl" is KL(unquantized || layout) and "nelbo" -log p of the true token, both at masked positions of `text`;
    "task" -log p of the answers of `task`. text None: the text that calibrates. samples, length, draws: rows that the
    loss is measured on. probe: how a choice's loss is predicted. fused: linears of one input (q, k, v; gate, up) share
    a scheme. refine: whole layouts that are measured. gap: relative gap at which the solver may stop.
    """

    offers: Annotated[
        tuple[Offer, ...],
        Key("offer"),
        Form("SCHEME, SCHEME on SELECTOR"),
        about("the choices of these layers; `keep` is a choice too; a later offer wins, one choice pins"),
    ] = ()
    budgets: Annotated[
        tuple[Budget, ...],
        Key("budget"),
        Form("NUMBER bits, NUMBER GiB, NUMBER GiB memory, NUMBER bits active, NUMBER ms for REGIME"),
        about("what may not be exceeded; several, separated by commas"),
    ] = ()
    loss: Annotated[
        Literal["kl", "nelbo", "task"],
        Form('kl on "TEXT", loss nelbo on "TEXT", or loss task NAME'),
        about("what may not get worse: `kl on TEXT`, `nelbo on TEXT` or `task NAME`"),
    ] = "kl"
    text: Annotated[TextSource | None, Key("")] = None
    task: Annotated[str | None, Key("")] = None
    samples: Annotated[int, between(1, 65536, "windows of text that the loss is measured on")] = 16
    length: Annotated[int, between(8, 131072, "tokens in each")] = 512
    draws: Annotated[int, between(1, 1024, "masks of each")] = 4
    probe: Annotated[Literal["forward", "noise", "fisher"], about("how a choice's loss is predicted")] = "forward"
    fused: Annotated[bool, about("whether layers of one input (q, k, v; gate, up) share a scheme")] = True
    refine: Annotated[int, between(0, 65536, "whole layouts that are measured after the solver")] = 32
    gap: Annotated[float, between(0, 1, "relative gap to the optimum at which the solver may stop")] = 0.0
    seed: Annotated[int, between(0, LARGEST_SEED, "of masks and of every random choice")] = 0


@dataclass(frozen=True)
class NelboRequest:
    """The masked negative ELBO of a text."""

    form: ClassVar[str] = 'on "TEXT" samples NUMBER'
    text: TextSource = NamedText("wikitext2")
    samples: Annotated[int, between(1, 65536)] = 64

    def __str__(self) -> str:
        return f"on {self.text} samples {self.samples}"


@dataclass(frozen=True)
class TaskRequest:
    """One task of lm-eval. Those of `qspec.language.presets` have defaults of their own; shots None means as many as
    lm-eval's own, limit None every item."""

    form: ClassVar[str] = 'NAME { SETTINGS } or "NAME IN LM-EVAL" { SETTINGS }'
    name: Annotated[str, Key("")]
    shots: Annotated[
        Annotated[int, between(0, 64)] | None,
        about("solved examples before each item, as many as the task has by default"),
    ] = None
    length: Annotated[int, between(1, 8192, "tokens to generate")] = 256
    steps: Annotated[int, between(1, 8192, "passes of the sampler, a multiple of `length` / `block`")] = 256
    block: Annotated[int, between(1, 8192, "tokens of a block, which divides `length`")] = 32
    limit: Annotated[Annotated[int, between(1)] | None, about("items, every one by default")] = None
    chat: Annotated[
        ChatSetting, about("prompts as a user's messages in the tokenizer's chat template; by `auto` where it has one")
    ] = "auto"

    @property
    def spelled(self) -> str:
        """The name as a recipe has it: in quotes where it is lm-eval's own."""
        return self.name if self.name in PRESETS else f'"{self.name}"'


@dataclass(frozen=True)
class Gate:
    """A loss that a report may show at most: relative to the unquantized model in percent, or of a share in points.

    measure: "nelbo" or the name of a task. text: of a NELBO; None, of all that are measured.
    """

    form: ClassVar[str] = "nelbo loss <= NUMBER %, or require TASK loss <= NUMBER points"
    measure: str
    most: Annotated[float, between(0, 100)]
    unit: Literal["%", "points"]
    text: TextSource | None = None

    @property
    def name(self) -> str:
        """What it is about."""
        if self.measure == "nelbo":
            return f"nelbo on {self.text}" if self.text else "nelbo"
        return TaskRequest(self.measure).spelled

    def __str__(self) -> str:
        return f"{self.name} loss <= {self.most:g} {self.unit}"


@dataclass(frozen=True)
class Evaluation:
    nelbo: Annotated[tuple[NelboRequest, ...], Form(NelboRequest.form), about("masked negative ELBO of a text")] = ()
    tasks: Annotated[tuple[TaskRequest, ...], Key("task"), Form(TaskRequest.form), about("a benchmark")] = ()
    gates: Annotated[
        tuple[Gate, ...],
        Key("require"),
        Form(Gate.form),
        about("the most that may be lost: the report passes or fails, and the exit code is 4"),
    ] = ()

    def limited(self, most: int) -> Evaluation:
        """The same with at most so many items of every task and samples of every text."""
        return Evaluation(
            tuple(replace(one, samples=min(one.samples, most)) for one in self.nelbo),
            tuple(replace(one, limit=min(one.limit or most, most)) for one in self.tasks),
            self.gates,
        )


TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
REGIMES: Mapping[str, tuple[int, int]] = {  # name -> tokens a forward pass carries, from and to
    "block_decode": (4, 64),
    "full_sequence": (300, 8000),
}


@dataclass(frozen=True)
class Emit:
    targets: Annotated[
        tuple[str, ...],
        Key("kernels"),
        Form("triton for TARGET, TARGET"),
        Known("target", "QS026", TARGETS),
        about("compute capabilities, after `triton for`"),
    ] = ("sm_90",)
    regimes: Annotated[
        tuple[str, ...],
        Key("regime"),
        Form("NAME, NAME"),
        Known("regime", "QS026", REGIMES),
        about("tokens that a forward pass carries"),
    ] = ("full_sequence",)


@dataclass(frozen=True)
class Head:
    """The block `recipe`."""

    families: Annotated[
        tuple[str, ...],
        Key("family"),
        Form("NAME, or family NAME, NAME"),
        about("the model's family; several where the recipe is for each of them"),
    ]
    model: Annotated[ModelRef, about("a hub id or a folder")]


@dataclass(frozen=True)
class Operands:
    """The block `scheme`."""

    weights: Annotated[TensorFormat, about("how weights are stored")]
    activations: Annotated[TensorFormat | None, about("how inputs are; 16 bits by default")] = None


BLOCK_CLASSES: Mapping[str, type] = {  # kind of a block -> the class whose fields are its settings
    "recipe": Head,
    "calibrate": Calibration,
    "scheme": Operands,
    "search": Search,
    "evaluate": Evaluation,
    "task": TaskRequest,
    "emit": Emit,
}


@dataclass(frozen=True)
class Spec:
    """A whole recipe, resolved: parameters set, bases flattened, defaults filled in."""

    name: str
    families: tuple[str, ...]  # that it is for; the checkpoint decides which of them applies
    model: ModelRef
    calibrate: Calibration
    schemes: Mapping[str, Scheme]
    rules: tuple[Rule, ...]
    passes: tuple[PassUse, ...]
    evaluate: Evaluation
    emit: Emit
    search: Search | None = None
    source: str = field(compare=False, default="")  # path of the recipe
    text: str = field(compare=False, default="")  # its flattened, canonical text
