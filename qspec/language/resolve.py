"""Merged statements -> Spec: names looked up, values typed and checked, defaults filled in.

Every statement is resolved whatever happened to the others, so that one run reports all mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from qspec.diagnostics import Edit, Note, Span, closest, errors, quote
from qspec.formats import Scheme
from qspec.language import convert, patterns
from qspec.language import syntax as s
from qspec.language.budgets import read_budgets
from qspec.language.contradictions import contradictions
from qspec.language.formatter import statement
from qspec.language.merge import Merged
from qspec.language.params import Params
from qspec.language.schemes import SchemeReader
from qspec.language.selectors import Selector
from qspec.language.spec import (
    LOSSES,
    REGIMES,
    TARGETS,
    TASKS,
    TEXTS,
    Calibration,
    Emit,
    Evaluation,
    FileText,
    MaskDistribution,
    ModelRef,
    NamedText,
    NelboRequest,
    Offer,
    Pass,
    PassUse,
    Rollouts,
    Rule,
    Search,
    Spec,
    TaskRequest,
    TextSource,
    Weighting,
)

T = TypeVar("T")
BACK_ENDS = ("triton",)


class Resolver:
    """Resolves one recipe; `spec()` is None where there were errors."""

    def __init__(
        self,
        merged: Merged,
        passes: Mapping[str, type[Pass]],
        settings: Mapping[str, str],
        families: Mapping[str, Any],
    ) -> None:
        self.merged = merged
        self.report = merged.report
        self.passes = passes
        self.families = families
        self.params = Params(merged, settings)
        self.schemes = SchemeReader(merged, self.params)

    def spec(self) -> Spec | None:
        """Everything, in the order of the file."""
        families, model = self._recipe()
        calibrate = self._calibration()
        schemes = self.schemes.all()
        rules = tuple(r for node in self.merged.layers if (r := self._rule(node)))
        uses = tuple(u for node in self.merged.applies if (u := self._use(node)))
        search, evaluate, emit = self._search(), self._evaluation(), self._emit()
        self._check_used()
        self.params.check_used()
        if errors(self.merged.problems):
            return None
        assert self.merged.name is not None
        return Spec(
            name=self.merged.name.name,
            families=families,
            model=model,
            calibrate=calibrate,
            schemes=schemes,
            rules=rules,
            passes=uses,
            evaluate=evaluate,
            emit=emit,
            search=search,
            source=self.merged.path,
        )

    # --- values ---

    def _field(self, cls: type, name: str, node: Any, what: str) -> Any:
        """The value of `node` for a field, or None after a report."""
        plain = self.params.plain(node)
        if plain is None:
            return None
        try:
            return convert.convert(cls, name, plain)
        except convert.Refusal as refusal:
            code = "QS016" if refusal.kind == "type" else "QS017"
            self._refuse(code, what, node, plain, refusal)
            return None

    def _refuse(self, code: str, what: str, node: s.Node, plain: convert.Plain, refusal: convert.Refusal) -> None:
        edits = (Edit(node.span, refusal.guess),) if refusal.guess else ()
        message = f"{what}: {convert.shown(plain)} {refusal.why}"
        self.report(code, message, node.span, refusal.hint, edits, self.params.notes(node))

    def _settings(self, cls: type[T], nodes: Mapping[str, s.Node], block: str, **given: Any) -> T:
        """An instance of `cls` from simple settings; a bad one keeps its default, after a report."""
        values = dict(given)
        for key, node in nodes.items():
            if isinstance(node, s.Setting) and key in convert.names(cls):
                value = self._field(cls, key, node.value, f"`{key}` of `{block}`")
                if value is not None:
                    values[key] = value
        return cls(**values)

    def _string(self, node: Any, what: str) -> str | None:
        plain = self.params.plain(node)
        if plain is None:
            return None
        if not isinstance(plain, s.Text):
            message = f"{what}: {convert.shown(plain)} is not a string"
            self.report("QS016", message, node.span, "write it in quotes", notes=self.params.notes(node))
            return None
        if not plain.value.strip():
            self.report("QS017", f"{what} is an empty string", node.span, "write what it is to be")
            return None
        return plain.value

    def _end(self) -> Span:
        """Where something is missing: the head of `recipe`, else the file's start."""
        block = self.merged.blocks.get("recipe")
        return block.head if block else Span(0, 0, self.merged.path)

    # --- recipe, calibrate, evaluate, emit ---

    def _recipe(self) -> tuple[tuple[str, ...], ModelRef]:
        nodes = self.merged.settings.get("recipe", {})
        if "recipe" not in self.merged.blocks:
            self._missing("the recipe has no block `recipe`", 'add `recipe NAME { family llada  model "..." }`')
        else:
            for key, example in (("family", "family llada"), ("model", 'model "GSAI-ML/LLaDA-8B-Instruct"')):
                if key not in nodes:
                    self._missing(f"`recipe` does not say its `{key}`", f"add a line such as `{example}`")
        return self._families(nodes.get("family")), self._model(nodes.get("model"))

    def _missing(self, message: str, hint: str) -> None:
        if not self.merged.partial:
            self.report("QS012", message, self._end(), hint)

    def _families(self, node: Any) -> tuple[str, ...]:
        if not isinstance(node, s.Names):
            return ()
        return self._names(node, "family", self.families, "QS020", "families")

    def _model(self, node: Any) -> ModelRef:
        if not isinstance(node, s.Model):
            return ModelRef("")
        name = self._string(node.id, "`model`") or ""
        revision = self._string(node.revision, "`revision`") if node.revision else None
        return ModelRef(name, revision) if revision else ModelRef(name)

    def _text(self, node: s.Words) -> TextSource:
        match node:
            case s.FileSource():
                path = self._string(node.path, "the path of `file`") or ""
                name = self._string(node.field_, "`field` of `file`") if node.field_ else None
                return FileText(path, name)
        name = self._string(node, "`text`")
        plain = self.params.plain(node)
        if name is not None and isinstance(plain, s.Text) and name not in TEXTS:
            self.merged.unknown("QS027", "text", replace(plain, span=node.span), TEXTS)
        return NamedText(name or "")

    def _calibration(self) -> Calibration:
        nodes = self.merged.settings.get("calibrate", {})
        given: dict[str, Any] = {}
        text, mask, weigh = nodes.get("text"), nodes.get("mask"), nodes.get("weigh")
        before = len(self.merged.problems)
        if isinstance(mask, s.Mask):
            given["mask"] = self._mask(mask)
        match text:
            case s.TextSetting(source=s.Rollouts() as rollouts):
                if isinstance(mask, s.Mask):
                    self._check_overruled(mask, text)
                given |= {"text": self._rollouts(rollouts), "mask": None}
            case s.TextSetting(source=s.Text() | s.Reference() | s.FileSource() as source):
                given["text"] = self._text(source)
        if isinstance(weigh, s.Weigh):
            given["weigh"] = self._weighting(weigh)
        calibrate = self._settings(Calibration, nodes, "calibrate", **given)
        if len(self.merged.problems) == before:
            for key, message, hint in contradictions(calibrate):
                self.report("QS060", message, (nodes.get(key) or nodes["text"]).span, hint)
        return calibrate

    def _rollouts(self, node: s.Rollouts) -> Rollouts:
        prompts = {"prompts": self._text(node.prompts)} if node.prompts else {}
        return Rollouts(**self._arguments("rollouts", node, Rollouts) | prompts)

    def _check_overruled(self, mask: s.Mask, text: s.TextSetting) -> None:
        """A mask beside rollouts is a mistake, unless a recipe's rollouts take the place of its base's masked text."""
        files = list(self.merged.sources)  # a recipe stands before its base
        if files.index(mask.span.path) <= files.index(text.span.path):
            message = "`mask` beside `rollouts`: a rollout's states bring their own masks"
            self.report("QS060", message, mask.span, "remove it", notes=(Note(text.span, "the rollouts"),))

    def _weighting(self, node: s.Weigh) -> Weighting:
        spans: dict[str, Span] = {}
        given: dict[str, Any] = {}
        for share in node.shares:
            name = share.key.name
            if name in spans:
                self.merged.twice(quote(name), share.span, spans[name])
                continue
            spans[name] = share.span
            value = True if share.number is None else self._field(Weighting, name, share.number, f"`{name}` of `weigh`")
            if value is not None:
                given[name] = value
        return Weighting(**given)

    def _mask(self, node: s.Mask) -> MaskDistribution:
        if node.kind == "none":
            return MaskDistribution("none", 0.0, 0.0)
        keys = ("low",) if node.kind == "fixed" else ("low", "high")
        values = [self._field(MaskDistribution, k, n, "`mask`") for k, n in zip(keys, node.numbers, strict=True)]
        if None in values:
            return MaskDistribution()
        low, high = values[0], values[-1]
        if low > high:
            message = f"`mask` goes from {low:g} down to {high:g}"
            span = node.numbers[0].span.cover(node.numbers[1].span)
            self.report("QS018", message, span, f"write {node.kind}({high:g}, {low:g})")
        return MaskDistribution(node.kind, low, high)

    # --- search ---

    def _search(self) -> Search | None:
        if "search" not in self.merged.blocks:
            return None
        nodes = self.merged.settings.get("search", {})
        given: dict[str, Any] = {}
        budget, loss = nodes.get("budget"), nodes.get("loss")
        if isinstance(budget, s.BudgetSetting):
            given["budgets"] = read_budgets(budget, self.merged, self.params)
        if isinstance(loss, s.LossSetting):
            given |= self._loss(loss)
        offers = tuple(offer for node in self.merged.offers if (offer := self._offer(node)))
        if not self.merged.offers and not self.merged.partial:
            head = self.merged.blocks["search"].head
            self.report("QS012", "`search` offers nothing", head, "add a line such as `offer w4, w8 on blocks[*].*`")
        return self._settings(Search, nodes, "search", offers=offers, **given)

    def _offer(self, node: s.Offer) -> Offer | None:
        selector = self._selector(node.selector)
        spans: dict[str, Span] = {}
        choices: list[Scheme | None] = []
        for word in node.choices:
            if word.name in spans:
                self.merged.twice(f"choice {quote(word.name)}", word.span, spans[word.name])
            elif word.name != "keep" and word.name not in self.merged.schemes:
                self.merged.unknown("QS021", "scheme", word, [*self.merged.schemes, "keep"])
                selector = None
            elif word.name == "keep" or word.name in self.schemes.all():
                choices.append(None if word.name == "keep" else self.schemes.get(word.name))
            spans.setdefault(word.name, word.span)
        return Offer(selector, tuple(choices), node.span) if selector else None

    def _loss(self, node: s.LossSetting) -> dict[str, Any]:
        if node.task is not None:
            if node.task.name not in TASKS:
                self.merged.unknown("QS028", "task", node.task, TASKS)
            return {"loss": "task", "task": node.task.name}
        assert node.measure is not None
        assert node.source is not None
        if node.measure.name not in LOSSES:
            self.merged.unknown("QS029", "loss", node.measure, LOSSES, "losses")
            return {}
        return {"loss": node.measure.name, "text": self._text(node.source)}

    def _evaluation(self) -> Evaluation:
        nelbo = []
        for node in self.merged.nelbo.values():
            samples = (
                self._field(NelboRequest, "samples", node.samples, "`samples` of `nelbo`") if node.samples else None
            )
            text = self._text(node.source)
            nelbo.append(NelboRequest(text, samples) if samples is not None else NelboRequest(text))
        return Evaluation(tuple(nelbo), tuple(self._task(block) for block in self.merged.tasks.values()))

    def _task(self, block: s.Block) -> TaskRequest:
        assert block.name is not None
        if block.name.name not in TASKS:
            self.merged.unknown("QS028", "task", block.name, TASKS)
        nodes = {item.node.key.name: item.node for item in block.items if isinstance(item.node, s.Setting)}
        before = len(self.merged.problems)
        task = self._settings(TaskRequest, nodes, f"task {block.name.name}", name=block.name.name)
        if len(self.merged.problems) == before:
            self._check_sampler(task, nodes, block.head)
        return task

    def _check_sampler(self, task: TaskRequest, nodes: Mapping[str, s.Setting], head: Span) -> None:
        """LLaDA's sampler fills length / block blocks one after another, with the same number of steps
        each."""
        if task.length % task.block:
            message = f"blocks of {task.block} tokens do not divide a length of {task.length}"
            span = nodes["block"].span if "block" in nodes else head
            self.report("QS018", message, span, "choose a `block` that divides `length`")
        elif task.steps % (task.length // task.block):
            count = task.length // task.block
            message = f"{task.steps} steps cannot be shared evenly by {count} blocks"
            span = nodes["steps"].span if "steps" in nodes else head
            self.report("QS018", message, span, f"choose `steps` as a multiple of {count} (`length` / `block`)")

    def _emit(self) -> Emit:
        nodes = self.merged.settings.get("emit", {})
        given: dict[str, Any] = {}
        kernels, regime = nodes.get("kernels"), nodes.get("regime")
        if isinstance(kernels, s.Names):
            if kernels.subject is not None and kernels.subject.name not in BACK_ENDS:
                self.merged.unknown("QS026", "kernel back end", kernels.subject, BACK_ENDS)
            given["targets"] = self._names(kernels, "target", TARGETS)
        if isinstance(regime, s.Names):
            given["regimes"] = self._names(regime, "regime", REGIMES)
        return Emit(**given)

    def _names(
        self, node: s.Names, kind: str, known: Any, code: str = "QS026", plural: str | None = None
    ) -> tuple[str, ...]:
        """A list of names, each known (where `known` names any) and given once."""
        found: dict[str, Span] = {}
        for word in node.names:
            if known and word.name not in known:
                self.merged.unknown(code, kind, word, known, plural)
            elif word.name in found:
                self.merged.twice(f"{kind} {quote(word.name)}", word.span, found[word.name])
            found.setdefault(word.name, word.span)
        return tuple(found)

    # --- layers and apply ---

    def _selector(self, node: s.SelectorNode) -> Selector | None:
        good = True
        for term in node.terms:
            wrong = patterns.problem(term.pattern.value) if isinstance(term, s.ModuleTerm) else None
            if wrong and isinstance(term, s.ModuleTerm):
                good = False
                message = f"the regular expression {quote(term.pattern.value)} is not accepted: {wrong}"
                hint = r"use names, `.`, `\.`, classes, `|` and a few `.*`; roles are safer"
                self.report("QS033", message, term.pattern.span, hint)
        return Selector.of(node) if good else None

    def _rule(self, node: s.Layers) -> Rule | None:
        selector = self._selector(node.selector)
        scheme = None
        if node.scheme is not None:
            if node.scheme.name not in self.merged.schemes:
                if not (self.merged.partial and closest(node.scheme.name, self.merged.schemes) is None):
                    self.merged.unknown("QS021", "scheme", node.scheme, self.merged.schemes)
                return None
            scheme = self.schemes.get(node.scheme.name)
            if scheme is None:
                return None
        return Rule(selector, scheme, statement(node), node.span) if selector else None

    def _use(self, node: s.Apply) -> PassUse | None:
        selector = self._selector(node.selector)
        cls = self.passes.get(node.name.name)
        if cls is None:
            self.merged.unknown("QS023", "pass", node.name, self.passes, "passes")
            return None
        before = len(errors(self.merged.problems))
        arguments = self._arguments(node.name.name, node, cls)
        if len(errors(self.merged.problems)) > before or selector is None:
            return None
        text = statement(replace(node, arguments=tuple(self.params.substitute(a) for a in node.arguments)))
        return PassUse(node.name.name, cls(**arguments), selector, text, node.span)

    def _arguments(self, owner: str, node: s.Apply | s.Rollouts, cls: type) -> dict[str, Any]:
        """`name = value` pairs as fields of `cls`."""
        values: dict[str, Any] = {}
        spans: dict[str, Span] = {}
        known = convert.names(cls)
        for argument in node.arguments:
            name = argument.name.name
            if name not in known:
                self.merged.unknown("QS024", f"parameter of `{owner}` called", argument.name, known, "parameters")
                continue
            if name in spans:
                self.merged.twice(f"parameter {quote(name)}", argument.name.span, spans[name])
                continue
            spans[name] = argument.name.span
            plain = self.params.plain(argument.value)
            if plain is None:
                continue
            try:
                values[name] = convert.convert(cls, name, plain)
            except convert.Refusal as refusal:
                self._refuse("QS025", f"`{name}` of `{owner}`", argument.value, plain, refusal)
        for name in convert.required(cls):
            if name not in spans:
                message = f"`{owner}` needs its parameter {quote(name)}"
                self.report("QS024", message, node.span, f"write {owner}({name} = ...)")
        return values

    def _check_used(self) -> None:
        if self.merged.partial:
            return
        if not self.merged.layers:
            self.report("QS035", "the recipe quantizes nothing: it has no `layers` rule", self._end(),
                        "add a rule such as `layers blocks[*].* use NAME`")  # fmt: skip
        used = {node.scheme.name for node in self.merged.layers if node.scheme}
        used |= {word.name for node in self.merged.offers for word in node.choices if word.name != "keep"}
        if not self.merged.layers or not used <= set(self.merged.schemes):
            return  # what is missing there may be what is unused here
        for name, block in self.merged.schemes.items():
            if name not in used and block.name is not None:
                hint = f"add `layers SELECTOR use {name}`, or remove the scheme"
                if block.span.path == self.merged.path:
                    self.merged.warn("QS044", f"scheme {quote(name)} is not used by any rule", block.name.span, hint)
