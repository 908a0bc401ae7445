"""Merged statements -> Spec: names looked up, values typed and checked, defaults filled in.

Every statement is resolved whatever happened to the others, so that one run reports all mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qspec.diagnostics import Edit, Note, Span, closest, errors, quote
from qspec.formats import Scheme
from qspec.language import patterns
from qspec.language.budgets import read_budgets
from qspec.language.contradictions import contradictions
from qspec.language.fields import Known, settings
from qspec.language.merge import Merged
from qspec.language.params import Params
from qspec.language.presets import PRESETS
from qspec.language.reader import Reader
from qspec.language.schemes import SchemeReader
from qspec.language.selectors import ModuleTerm, Selector
from qspec.language.spec import (
    LOSSES,
    Calibration,
    Emit,
    Evaluation,
    Gate,
    MaskDistribution,
    ModelRef,
    NelboRequest,
    Offer,
    Pass,
    PassUse,
    Rule,
    Search,
    Spec,
    TaskRequest,
    TextSource,
)
from qspec.language.syntax import Block, Leaf, Tree

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
        self.reader = Reader(merged, self.params)
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
            name=self.merged.name.text,
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

    def _families(self, node: Tree | None) -> tuple[str, ...]:
        known = Known("family", "QS020", self.families, "families")
        return self.reader.names(node.trees("names")[0], known) if node else ()

    def _model(self, node: Tree | None) -> ModelRef:
        return (self.reader.composed(ModelRef, node, "model") if node else None) or ModelRef("")

    def _calibration(self) -> Calibration:
        nodes = self.merged.settings.get("calibrate", {})
        text, mask = nodes.get("text"), nodes.get("mask")
        before = len(self.merged.problems)
        calibrate = self.reader.block(Calibration, nodes, "calibrate")
        if text is not None and text.trees("rollouts"):
            if mask is not None:
                self._check_overruled(mask, text)
            calibrate = replace(calibrate, mask=None)
        elif mask is not None and calibrate.mask is not None:
            self._check_order(mask, calibrate.mask)
        if len(self.merged.problems) == before:
            for key, message, hint in contradictions(calibrate):
                self.report("QS060", message, (nodes.get(key) or nodes["text"]).span, hint)
        return calibrate

    def _check_overruled(self, mask: Tree, text: Tree) -> None:
        """A mask beside rollouts is a mistake, unless a recipe's rollouts take the place of its base's masked text."""
        files = list(self.merged.sources)  # a recipe stands before its base
        if files.index(mask.span.path) <= files.index(text.span.path):
            message = "`mask` beside `rollouts`: a rollout's states bring their own masks"
            self.report("QS060", message, mask.span, "remove it", notes=(Note(text.span, "the rollouts"),))

    def _check_order(self, node: Tree, mask: MaskDistribution) -> None:
        low, high = mask.low, mask.high
        if low > high:
            first, second = node.trees()[0].values
            message = f"`mask` goes from {low:g} down to {high:g}"
            hint = f"write {mask.kind}({high:g}, {low:g})"
            self.report("QS018", message, first.span.cover(second.span), hint)

    # --- search ---

    def _search(self) -> Search | None:
        if "search" not in self.merged.blocks:
            return None
        nodes = self.merged.settings.get("search", {})
        given: dict[str, Any] = {}
        if "budget" in nodes:
            given["budgets"] = read_budgets(nodes["budget"], self.merged, self.params)
        if "loss" in nodes:
            given |= self._loss(nodes["loss"])
        offers = tuple(offer for node in self.merged.offers if (offer := self._offer(node)))
        if not self.merged.offers and not self.merged.partial:
            head = self.merged.blocks["search"].head
            self.report("QS012", "`search` offers nothing", head, "add a line such as `offer w4, w8 on blocks[*].*`")
        return self.reader.block(Search, nodes, "search", **{"loss": "kl", "offers": offers} | given)

    def _offer(self, node: Tree) -> Offer | None:
        selector = self._selector(node.trees()[0])
        spans: dict[str, Span] = {}
        choices: list[Scheme | None] = []
        for word in node.values:
            name = word.text
            if name in spans:
                self.merged.twice(f"choice {quote(name)}", word.span, spans[name])
            elif name != "keep" and name not in self.merged.schemes:
                self.merged.unknown("QS021", "scheme", word, [*self.merged.schemes, "keep"])
                selector = None
            elif name == "keep" or name in self.schemes.all():
                choices.append(None if name == "keep" else self.schemes.get(name))
            spans.setdefault(name, word.span)
        return Offer(selector, tuple(choices), node.span) if selector else None

    def _loss(self, node: Tree) -> dict[str, Any]:
        (word,) = node.values
        if node.has("TASK"):
            return {"loss": "task", "task": self._task_name(word)}
        if word.text not in LOSSES:
            self.merged.unknown("QS029", "loss", word, LOSSES, "losses")
            return {}
        return {"loss": word.text, "text": self.reader.composed(TextSource, node.trees()[0], "text")}

    def _evaluation(self) -> Evaluation:
        read = (self.reader.composed(NelboRequest, node, "nelbo") for node in self.merged.nelbo.values())
        tasks = tuple(self._task(block) for block in self.merged.tasks.values())
        gates = tuple(gate for about, node in self.merged.gates.items() if (gate := self._gate(about, node)))
        return Evaluation(tuple(request for request in read if request is not None), tasks, gates)

    def _gate(self, about: str, node: Tree) -> Gate | None:
        """about: what it is about, as it is written; a task's name without its quotes."""
        measure, (number, unit) = node.parts[1], node.parts[-2:]
        assert isinstance(measure, Leaf)
        assert isinstance(number, Leaf)
        assert isinstance(unit, Leaf)
        is_text = measure.kind == "NELBO"
        measured = [*(f"nelbo on {text}" for text in self.merged.nelbo), *self.merged.tasks]
        if about not in measured and not (about == "nelbo" and self.merged.nelbo):
            self._unmeasured(about, measure if len(node.parts) == 6 else node, is_text, measured)
            return None
        if is_text and unit.text != "%":
            message = "a NELBO is not a share, so a loss of it has no points"
            self.report("QS062", message, unit.span, "write `%`", edits=(Edit(unit.span, "%"),))
            return None
        most = self.reader.value(settings(Gate)["most"].hint, number, "`require`")
        text = self.reader.composed(TextSource, node.trees()[0], "text") if node.trees() else None
        return None if most is None else Gate(str(measure.value), most, "%" if unit.text == "%" else "points", text)

    def _unmeasured(self, about: str, part: Leaf | Tree, is_text: bool, measured: list[str]) -> None:
        near = closest(about, measured)
        guess = near and (near if " on " in near else TaskRequest(near).spelled)
        task = f"task {TaskRequest(about).spelled}"
        add = f"{about} samples 64" if " on " in about else 'nelbo on "wikitext2"' if is_text else task
        edits = (Edit(part.span, guess),) if guess and isinstance(part, Leaf) else ()
        hint = f"did you mean `{guess}`?" if guess else f"add a line such as `{add}`"
        written = part.text if isinstance(part, Leaf) else about
        message = f"`require {written}`: nothing of that name is measured"
        self.report("QS062", message, part.span, hint, edits)

    def _task(self, block: Block) -> TaskRequest:
        assert block.name is not None
        name = self._task_name(block.name)
        preset = PRESETS.get(name)
        nodes = {tree.key.text: tree for tree in block.settings}
        sizes = ("shots", "length", "steps", "block") if preset else ()
        own = {key: getattr(preset, key) for key in sizes if key not in nodes}
        before = len(self.merged.problems)
        task = replace(self.reader.block(TaskRequest, nodes, f"task {name}", name=name), **own)
        if len(self.merged.problems) == before:
            self._check_sampler(task, nodes, block.head)
        return task

    def _task_name(self, word: Leaf) -> str:
        """A name without quotes is that of a preset, one in quotes any of lm-eval's."""
        if word.kind != "STRING" and word.text not in PRESETS:
            self.merged.unknown("QS028", "task", word, PRESETS)
        return str(word.value)

    def _check_sampler(self, task: TaskRequest, nodes: Mapping[str, Tree], head: Span) -> None:
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
        for back_end in nodes["kernels"].values if "kernels" in nodes else []:
            if back_end.text not in BACK_ENDS:
                self.merged.unknown("QS026", "kernel back end", back_end, BACK_ENDS)
        return self.reader.block(Emit, nodes, "emit")

    # --- layers and apply ---

    def _selector(self, tree: Tree) -> Selector | None:
        selector, good = Selector.of(tree), True
        for term in selector.terms:
            wrong = patterns.problem(term.pattern) if isinstance(term, ModuleTerm) else None
            if wrong and isinstance(term, ModuleTerm):
                good = False
                message = f"the regular expression {quote(term.pattern)} is not accepted: {wrong}"
                hint = r"use names, `.`, `\.`, classes, `|` and a few `.*`; roles are safer"
                self.report("QS033", message, term.pattern_span, hint)
        return selector if good else None

    def _rule(self, node: Tree) -> Rule | None:
        selector, scheme = self._selector(node.trees()[0]), None
        for name in node.values:
            if name.text not in self.merged.schemes:
                if not (self.merged.partial and closest(name.text, self.merged.schemes) is None):
                    self.merged.unknown("QS021", "scheme", name, self.merged.schemes)
                return None
            scheme = self.schemes.get(name.text)
            if scheme is None:
                return None
        return Rule(selector, scheme, str(node), node.span) if selector else None

    def _use(self, node: Tree) -> PassUse | None:
        name, (arguments, tree) = node.values[0], node.trees()
        selector, cls = self._selector(tree), self.passes.get(name.text)
        if cls is None:
            self.merged.unknown("QS023", "pass", name, self.passes, "passes")
            return None
        before = len(errors(self.merged.problems))
        given = self.reader.arguments(cls, arguments._replace(span=node.span), name.text)
        if len(errors(self.merged.problems)) > before or selector is None:
            return None
        return PassUse(name.text, cls(**given), selector, str(self.params.substituted(node)), node.span)

    def _check_used(self) -> None:
        if self.merged.partial:
            return
        if not self.merged.layers:
            self.report("QS035", "the recipe quantizes nothing: it has no `layers` rule", self._end(),
                        "add a rule such as `layers blocks[*].* use NAME`")  # fmt: skip
        used = {name.text for node in self.merged.layers for name in node.values}
        used |= {name.text for node in self.merged.offers for name in node.values} - {"keep"}
        if not self.merged.layers or not used <= set(self.merged.schemes):
            return  # what is missing there may be what is unused here
        for name, block in self.merged.schemes.items():
            if name not in used and block.name is not None:
                hint = f"add `layers SELECTOR use {name}`, or remove the scheme"
                if block.span.path == self.merged.path:
                    self.merged.warn("QS044", f"scheme {quote(name)} is not used by any rule", block.name.span, hint)
