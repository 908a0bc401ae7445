"""The artifact's model card, README.md: what was compiled from what, and how to load it."""

from __future__ import annotations

import re
from pathlib import Path

from qspec.files import read_input
from qspec.language.spec import Spec
from qspec.models.registry import FAMILIES
from qspec.origin import NEVER_RUN, STANDIN_OUTLIERS, Origin
from qspec.plan import Plan, bits_text

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_HEAD = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_LICENSE = re.compile(r"^license: *([\w.-]{1,64}) *$", re.MULTILINE)
_CARD_BYTES = 1 << 20

_CARD = """\
---
library_name: qspec
{front}tags:
- quantized
- diffusion-language-model
---

# {name}

A quantized diffusion language model, compiled with qspec {version} from the recipe `recipe.qs` in this folder.
{standin}
| | |
|---|---|
| model | {model}, revision {revision} |
| family | {family} |
| bits per weight | {bits}; scales, zero points and kept layers counted |
| size | {after:.1f} MiB, {before:.1f} MiB before |

`report/`, where there is one, compares it with the unquantized model; `report/card.md` is this card with its results.
The original model's licence covers these weights too.

## Loading

```python
import qspec

model, tokenizer = qspec.load("path/to/this/folder")
```
{loading}"""
_ALONE = """
It checks the sha256 of every file first (`qspec.json`) and refuses a folder in which one was changed, added or removed.
"""
_TRANSFORMERS = """
With transformers 5:

```python
import qspec.hf  # needed: transformers alone cannot read this format
from transformers import AutoModelForMaskedLM  # or AutoModel, AutoModelForCausalLM

model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
```

Both check the sha256 of every file first (`qspec.json`) and refuse a folder in which one was changed, added or removed.
"""


def model_card(spec: Spec, plan: Plan, origin: Origin, version: str) -> str:
    """Markdown; names from recipe and command line stand in code spans that they cannot leave. version: of qspec."""
    return _CARD.format(
        name=_code(spec.name),
        version=version,
        standin=_standin(spec, origin),
        front=_front(origin),
        model=_code(origin.id),
        revision=_code(origin.revision),
        family=_code(plan.family),
        bits=bits_text(plan.bits_per_weight, plan.bits_per_weight_model),
        after=plan.bytes_after / 2**20,
        before=plan.bytes_before / 2**20,
        loading=_TRANSFORMERS if FAMILIES[plan.family].hosted else _ALONE,
    )


def _front(origin: Origin) -> str:
    """What a hub reads at the head of a card: the licence as the original's card has it, and what was quantized."""
    facts = {"license": _license(origin.folder / "README.md")}
    if _HUB_ID.fullmatch(origin.id):
        facts |= {"base_model": origin.id, "base_model_relation": "quantized"}
    return "".join(f"{key}: {value}\n" for key, value in facts.items() if value)


def _license(card: Path) -> str:
    """The value of `license` between the first two lines of dashes; "" where there is none."""
    try:
        text = read_input(card, _CARD_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ""
    head = _HEAD.match(text)
    found = _LICENSE.search(head[1]) if head else None
    return found[1] if found else ""


def _standin(spec: Spec, origin: Origin) -> str:
    if not origin.standin:
        return ""
    return (
        f"\n> **Compiled from the small stand-in model {_code(origin.id)}, not from {_code(spec.model.id)}.** "
        f"Nothing here says how well the recipe does on that model. {STANDIN_OUTLIERS} {NEVER_RUN}\n"
    )


def _code(text: str) -> str:
    """A Markdown code span on one line of a table: no backtick, bar, line break or invisible character stays."""
    plain = "".join(c if c.isprintable() and c not in "`|" else "?" for c in text)
    return f"`{plain[:200] or '?'}`"
