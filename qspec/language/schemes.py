"""`scheme` blocks -> formats.Scheme, with what is impossible or has no kernel."""

from __future__ import annotations

from typing import Any

from qspec.catalog import NoKernel, kernels_for
from qspec.diagnostics import Edit, Span, closest, listed, quote
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, NumberFormat, Scheme, TensorFormat
from qspec.language.fields import shown
from qspec.language.merge import Merged
from qspec.language.params import Params
from qspec.language.syntax import Block, Leaf, Tree

_SIZED = {"int": (2, 8), "uint": (3, 4)}
_GRAINS = {  # operand -> granularities that have a meaning for it
    "weights": ("tensor", "channel", "group", "block"),
    "activations": ("tensor", "token", "group"),
}
MAX_GROUP = 65536


class SchemeReader:
    """Reads every scheme once; a scheme with mistakes is None."""

    def __init__(self, merged: Merged, params: Params) -> None:
        self.merged = merged
        self.params = params
        self._schemes: dict[str, Scheme | None] = {}

    def all(self) -> dict[str, Scheme]:
        """The schemes without mistakes, by name."""
        return {name: scheme for name in self.merged.schemes if (scheme := self.get(name))}

    def get(self, name: str) -> Scheme | None:
        """The scheme, or None where it has mistakes (reported once)."""
        if name not in self._schemes:
            self._schemes[name] = self._read(name, self.merged.schemes[name])
        return self._schemes[name]

    def _read(self, name: str, block: Block) -> Scheme | None:
        operands = {tree.key.text: tree for tree in block.settings}
        if "weights" not in operands:
            if not self.merged.partial:
                hint = "add a line such as `weights int4 per channel symmetric`"
                self.merged.report("QS012", f"scheme {quote(name)} does not say its `weights`", block.head, hint)
            return None
        before = len(self.merged.problems)
        formats = {key: self._operand(key, node) for key, node in operands.items()}
        weights = formats["weights"]
        if len(self.merged.problems) > before or weights is None:
            return None
        scheme = Scheme(name, weights, formats.get("activations"))
        return scheme if self._has_kernels(scheme, operands) else None

    def _has_kernels(self, scheme: Scheme, operands: dict[str, Tree]) -> bool:
        try:
            kernels_for(scheme)
        except NoKernel as missing:
            key = "activations" if "activations" in missing.what and "activations" in operands else "weights"
            span = _without_key(operands[key])
            self.merged.report(
                "QS043",
                f"scheme {quote(scheme.name)} cannot run: {missing.what}",
                span,
                missing.hint or "",
            )
            return False
        return True

    def _operand(self, key: str, node: Tree) -> TensorFormat | None:
        """None for `activations none`, and after a report."""
        if node.has("NONE"):
            if key == "weights":
                self.merged.report("QS012", "`weights none` quantizes nothing", node.span,
                                   "use `layers SELECTOR keep` for layers that stay as they are")  # fmt: skip
            return None
        number = self._number_format(node.trees("format")[0])
        grain = self._granularity(key, node.trees("grain")[0])
        clips = node.trees("clip")
        clip = self._clip(key, clips[0].key) if clips else Clip()
        if number is None or grain is None or clip is None:
            return None
        return TensorFormat(number, grain, self._symmetric(number, node), clip)

    def _number_format(self, node: Tree) -> NumberFormat | None:
        name, *bits = node.values
        plain = self.params.plain(name)
        if plain is None:
            return None
        if plain.kind != "NAME":
            self._wrong(
                "QS016",
                f"the number format: {shown(plain)} is not a word",
                name,
                "write a word such as int4",
            )
            return None
        if bits:
            return self._sized(plain.text, name, bits[0])
        if plain.text in NUMBER_FORMATS:
            return NUMBER_FORMATS[plain.text]
        guess = closest(plain.text, NUMBER_FORMATS, digits=False)
        hint = f"did you mean `{guess}`?" if guess else f"number formats: {', '.join(NUMBER_FORMATS)}"
        edits = (Edit(node.span, guess),) if guess else ()
        self.merged.report("QS022", f"there is no number format {quote(plain.text)}", node.span, hint, edits,
                           self.params.notes(name))  # fmt: skip
        return None

    def _sized(self, kind: str, name: Leaf, written: Leaf) -> NumberFormat | None:
        """`int(4)`, `int($bits)`."""
        bits = self.params.plain(written)
        if bits is None:
            return None
        if kind not in _SIZED:
            hint = "write int(BITS), or the format's name without brackets"
            self._wrong("QS022", f"{quote(kind)} takes no number of bits", name, hint)
            return None
        if bits.kind != "NUMBER" or f"{kind}{bits.value}" not in NUMBER_FORMATS:
            low, high = _SIZED[kind]
            sizes = f"{low} to {high}" if low < high else str(low)
            self._wrong("QS022", f"{kind} has no {shown(bits)} bits", written, f"write {sizes}")
            return None
        return NUMBER_FORMATS[f"{kind}{bits.value}"]

    def _granularity(self, key: str, node: Tree) -> Granularity | None:
        kind: Any = node.key.text
        size = rows = 0
        if kind == "group":
            (written,) = node.values
            plain = self.params.plain(written)
            if plain is None:
                return None
            if not isinstance(plain.value, int):
                self._wrong(
                    "QS016",
                    f"the group size: {shown(plain)} is not a whole number",
                    written,
                    "write one, such as 128",
                )
                return None
            size = plain.value
            if not 1 <= size <= MAX_GROUP:
                self._wrong(
                    "QS017",
                    f"a group of {size} is out of range",
                    written,
                    f"write a size from 1 to {MAX_GROUP}",
                )
                return None
        if kind not in _GRAINS[key]:
            allowed = _GRAINS[key]
            why = {
                "token": "a token is a row of the activations; weights have none",
                "channel": "a scale for each input channel cannot be taken out of the sum",
                "block": "blocks are tiles of a weight matrix",
            }[kind]
            hint = f"write per {listed(allowed).replace('`', '')}"
            self.merged.report("QS040", f"`{key}` cannot be quantized per {kind}: {why}", node.span, hint)
            return None
        if kind == "block":
            rows, size = (int(number) for number in node.values[0].text[:16].split("x"))
        return Granularity(kind, size, rows)

    def _symmetric(self, number: NumberFormat, node: Tree) -> bool:
        written = next((p for p in node.parts if isinstance(p, Leaf) and p.kind in ("SYMMETRIC", "ASYMMETRIC")), None)
        if written is None:
            return number.kind != "uint"
        symmetric = written.kind == "SYMMETRIC"
        if number.kind == "uint" and symmetric:
            self._flip(written, "asymmetric", f"`{number}` has no negative codes, so it cannot be symmetric")
        if number.kind == "float" and not symmetric:
            self._flip(written, "symmetric", f"`{number}` has a sign and no zero point, so it cannot be asymmetric")
        return symmetric

    def _flip(self, word: Leaf, other: str, message: str) -> None:
        self.merged.report("QS042", message, word.span, f"write `{other}`", (Edit(word.span, other),))

    def _clip(self, key: str, node: Leaf) -> Clip | None:
        plain = self.params.plain(node)
        if plain is None:
            return None
        if plain.kind == "NUMBER":
            if not 0 < float(plain.text) <= 1:
                hint = "write a number above 0 and at most 1, such as 0.9"
                self._wrong("QS041", f"a clip of {shown(plain)} is not a share of the range", node, hint)
                return None
            return Clip("ratio", float(plain.text))
        if plain.kind != "STRING" and plain.text in ("mse", "none"):
            if plain.text == "mse" and key == "activations":
                message = "activations are quantized as they come, so their clip cannot be searched by `mse`"
                self._wrong("QS041", message, node, "write a fixed ratio, such as `clip 0.9`")
                return None
            return Clip("mse" if plain.text == "mse" else "none")
        self._wrong("QS041", f"{shown(plain)} is not a clip", node, "write a number, `mse` or `none`")
        return None

    def _wrong(self, code: str, message: str, node: Any, hint: str) -> None:
        self.merged.report(code, message, node.span, hint, (), self.params.notes(node))


def _without_key(node: Tree) -> Span:
    return Span(node.parts[1].span.start, node.span.end, node.span.path)
