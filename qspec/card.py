"""The artifact's model card, README.md: what was compiled from what, and how to load it."""

from __future__ import annotations

from qspec.language.spec import Spec
from qspec.origin import NEVER_RUN, STANDIN_OUTLIERS, Origin
from qspec.plan import Plan, bits_text

_CARD = """\
---
library_name: qspec
tags:
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

`report/`, where there is one, compares it with the unquantized model. The original model's licence
covers these weights too.

## Loading

```python
import qspec

model, tokenizer = qspec.load("path/to/this/folder")
```

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
        model=_code(origin.id),
        revision=_code(origin.revision),
        family=_code(plan.family),
        bits=bits_text(plan.bits_per_weight, plan.bits_per_weight_model),
        after=plan.bytes_after / 2**20,
        before=plan.bytes_before / 2**20,
    )


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
