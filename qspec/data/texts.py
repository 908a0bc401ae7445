"""Texts by name: which files of the hub they are, for calibration and held out. No torch.

WikiText-2 is the raw form, its rows joined by two line ends as GPTQ's code and most papers' do it, so perplexities
are comparable; C4 and the Pile are too large to be read whole: the first documents of one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from qspec.data.files import no_document, read_rows, text_field
from qspec.data.hub import Found, HubData
from qspec.data.items import TextData

Split = Literal["calibration", "heldout"]
LONGEST = 1 << 26  # bytes of a document: the Pile has whole books


@dataclass(frozen=True)
class Part:
    """What a split is. documents: which rows, from and to; None, all of them. joined: they are one document."""

    title: str
    data: HubData
    documents: tuple[int, int] | None = None
    joined: bool = False

    def read(self, found: Found) -> TextData:
        """Its documents, without blank ones. Errors: InputError as `read_rows`; without text."""
        rows = ((path, line, row) for path in found.files for line, row in read_rows(path, LONGEST))
        chosen = islice(rows, *(self.documents or (0, None)))
        texts = [text_field(row, "text", path, line) for path, line, row in chosen]
        documents = ("\n\n".join(texts),) if self.joined else tuple(texts)
        documents = tuple(text for text in documents if text.strip())
        if not documents:
            raise no_document(found.files[0])
        return TextData(self.title, found.files, documents, revision=found.revision)


def _wikitext(split: str) -> Part:
    data = HubData("Salesforce/wikitext", (f"wikitext-2-raw-v1/{split}*",))
    return Part(f"WikiText-2 raw, {split}", data, joined=True)


def _c4(file: str, count: int) -> Part:
    return Part(f"C4, {count:,} documents", HubData("allenai/c4", (f"en/{file}*",)), (0, count))


def _pile(start: int, end: int) -> Part:
    data = HubData("mit-han-lab/pile-val-backup", ("val.jsonl*",))
    return Part(f"Pile validation, {end - start:,} documents", data, (start, end))


TEXTS: Mapping[str, Mapping[Split, Part]] = {
    "wikitext2": {"calibration": _wikitext("train"), "heldout": _wikitext("test")},
    "c4": {"calibration": _c4("c4-train.00000", 4096), "heldout": _c4("c4-validation.00000", 512)},
    "pile": {"calibration": _pile(0, 2048), "heldout": _pile(2048, 2560)},
}
