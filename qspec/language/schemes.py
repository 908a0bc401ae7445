"""`scheme` blocks -> formats.Scheme, with what is impossible or has no kernel."""

from __future__ import annotations

from typing import Any

from qspec.catalog import NoKernel, kernels_for
from qspec.diagnostics import Edit, Span, closest, listed, quote
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, NumberFormat, Scheme, TensorFormat
from qspec.language import syntax as s
from qspec.language.convert import shown
from qspec.language.merge import Merged
from qspec.language.params import Params

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

    def _read(self, name: str, block: s.Block) -> Scheme | None:
        operands = {item.node.key.name: item.node for item in block.items if isinstance(item.node, s.Operand)}
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

    def _has_kernels(self, scheme: Scheme, operands: dict[str, s.Operand]) -> bool:
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

    def _operand(self, key: str, node: s.Operand) -> TensorFormat | None:
        """None for `activations none`, and after a report."""
        if node.format is None or node.grain is None:
            if key == "weights":
                self.merged.report("QS012", "`weights none` quantizes nothing", node.span,
                                   "use `layers SELECTOR keep` for layers that stay as they are")  # fmt: skip
            return None
        number = self._number_format(node.format)
        grain = self._granularity(key, node.grain)
        clip = self._clip(key, node.clip)
        if number is None or grain is None or clip is None:
            return None
        return TensorFormat(number, grain, self._symmetric(number, node), clip)

    def _number_format(self, node: s.FormatNode) -> NumberFormat | None:
        plain = self.params.plain(node.name)
        if plain is None:
            return None
        if not isinstance(plain, s.Word):
            self._wrong(
                "QS016",
                f"the number format: {shown(plain)} is not a word",
                node.name,
                "write a word such as int4",
            )
            return None
        if node.bits is not None:
            return self._sized(plain.name, node)
        if plain.name in NUMBER_FORMATS:
            return NUMBER_FORMATS[plain.name]
        guess = closest(plain.name, NUMBER_FORMATS, digits=False)
        hint = f"did you mean `{guess}`?" if guess else f"number formats: {', '.join(NUMBER_FORMATS)}"
        edits = (Edit(node.span, guess),) if guess else ()
        self.merged.report("QS022", f"there is no number format {quote(plain.name)}", node.span, hint, edits,
                           self.params.notes(node.name))  # fmt: skip
        return None

    def _sized(self, kind: str, node: s.FormatNode) -> NumberFormat | None:
        """`int(4)`, `int($bits)`."""
        bits = self.params.plain(node.bits)
        if bits is None or node.bits is None:
            return None
        if kind not in _SIZED:
            hint = "write int(BITS), or the format's name without brackets"
            self._wrong("QS022", f"{quote(kind)} takes no number of bits", node.name, hint)
            return None
        if not isinstance(bits, s.Number) or f"{kind}{bits.value}" not in NUMBER_FORMATS:
            low, high = _SIZED[kind]
            sizes = f"{low} to {high}" if low < high else str(low)
            self._wrong("QS022", f"{kind} has no {shown(bits)} bits", node.bits, f"write {sizes}")
            return None
        return NUMBER_FORMATS[f"{kind}{bits.value}"]

    def _granularity(self, key: str, node: s.Grain) -> Granularity | None:
        size = 0
        if node.size is not None:
            plain = self.params.plain(node.size)
            if plain is None:
                return None
            if not isinstance(plain, s.Number) or not isinstance(plain.value, int):
                self._wrong(
                    "QS016",
                    f"the group size: {shown(plain)} is not a whole number",
                    node.size,
                    "write one, such as 128",
                )
                return None
            size = plain.value
            if not 1 <= size <= MAX_GROUP:
                self._wrong(
                    "QS017",
                    f"a group of {size} is out of range",
                    node.size,
                    f"write a size from 1 to {MAX_GROUP}",
                )
                return None
        if node.kind not in _GRAINS[key]:
            allowed = _GRAINS[key]
            why = {
                "token": "a token is a row of the activations; weights have none",
                "channel": "a scale for each input channel cannot be taken out of the sum",
                "block": "blocks are tiles of a weight matrix",
            }[node.kind]
            hint = f"write per {listed(allowed).replace('`', '')}"
            self.merged.report("QS040", f"`{key}` cannot be quantized per {node.kind}: {why}", node.span, hint)
            return None
        return Granularity(node.kind, node.columns if node.kind == "block" else size, node.rows)

    def _symmetric(self, number: NumberFormat, node: s.Operand) -> bool:
        written = node.symmetry
        if written is None:
            return number.kind != "uint"
        symmetric = written.name == "symmetric"
        if number.kind == "uint" and symmetric:
            self._flip(written, "asymmetric", f"`{number}` has no negative codes, so it cannot be symmetric")
        if number.kind == "float" and not symmetric:
            self._flip(written, "symmetric", f"`{number}` has a sign and no zero point, so it cannot be asymmetric")
        return symmetric

    def _flip(self, word: s.Word, other: str, message: str) -> None:
        self.merged.report("QS042", message, word.span, f"write `{other}`", (Edit(word.span, other),))

    def _clip(self, key: str, node: s.Value | None) -> Clip | None:
        plain = self.params.plain(node)
        if node is None:
            return Clip()
        if plain is None:
            return None
        if isinstance(plain, s.Number):
            if not 0 < plain.value <= 1:
                hint = "write a number above 0 and at most 1, such as 0.9"
                self._wrong("QS041", f"a clip of {shown(plain)} is not a share of the range", node, hint)
                return None
            return Clip("ratio", float(plain.value))
        if isinstance(plain, s.Word) and plain.name in ("mse", "none"):
            if plain.name == "mse" and key == "activations":
                message = "activations are quantized as they come, so their clip cannot be searched by `mse`"
                self._wrong("QS041", message, node, "write a fixed ratio, such as `clip 0.9`")
                return None
            return Clip("mse" if plain.name == "mse" else "none")
        self._wrong("QS041", f"{shown(plain)} is not a clip", node, "write a number, `mse` or `none`")
        return None

    def _wrong(self, code: str, message: str, node: Any, hint: str) -> None:
        self.merged.report(code, message, node.span, hint, (), self.params.notes(node))


def _without_key(node: s.Operand) -> Span:
    start = node.format.span.start if node.format else node.span.start
    return Span(start, node.span.end, node.span.path)
