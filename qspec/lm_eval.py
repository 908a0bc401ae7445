"""lm-eval's command with the model `qspec` (`qspec.evaluate.lm`), which lm-eval has no other way to find.

    python -m qspec.lm_eval --model qspec --model_args path=build/llada_w4a4 --tasks gsm8k,piqa

Data sets that this machine has (docs/data.md) are read from there at their pinned commits; others are left to lm-eval.
Programs of its code tasks, which it runs with `--confirm_run_unsafe_code` alone, run in `qspec.evaluate.sandbox`.
"""

from __future__ import annotations

import os

from qspec.data.harness import answered
from qspec.evaluate.code import running_code


def main() -> None:
    """lm-eval's own entry point."""
    from lm_eval.__main__ import cli_evaluate

    import qspec.evaluate.lm  # noqa: F401 - registers the model

    with running_code(allowed=True), answered(lambda data: data.find(os.environ)):
        cli_evaluate()


if __name__ == "__main__":
    main()
