"""The command line: arguments in, calls, rendering out. Each command's module is imported only when it
runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TextIO

import qspec
from qspec.cli.output import Parser, discard, flush, open_streams, say, tell, warn
from qspec.diagnostics import RecipeError, closest, render_text, summary
from qspec.errors import QspecError, UsageError

COMMANDS: Mapping[str, str] = {
    "compile": "compile a recipe: quantize, generate kernels, evaluate, report",
    "check": "find a recipe's mistakes, without a model",
    "fmt": "format recipes",
    "fix": "upgrade recipes of an older version of the language",
    "plan": "print every decision: rules, bits, bytes, kernels",
    "why": "tell which line of a recipe decided what about a layer",
    "show": "print a recipe with its bases and defaults filled in",
    "diff": "tell what changed between two recipes, artifacts or reports, by meaning",
    "git-setup": "have `git diff` tell what changed in a recipe",
    "git-diff": "what git runs for a recipe where `git-setup` said so",
    "search": "find a scheme for every layer within a budget, and write the recipe",
    "new": "write a first recipe for a family and a scheme",
    "list": "list passes, formats, families, tasks, recipes or models",
    "explain": "explain a diagnostic, statement, pass, format, task or setting",
    "complete": "list the words that may stand at a place of a recipe, for editors",
    "completion": "print a script that completes commands and options in bash, zsh or fish",
    "lsp": "serve recipes to an editor (Language Server Protocol)",
    "inspect": "find a checkpoint's activation outliers, by layer, input and mask ratio",
    "data": "list the data that a recipe needs: what is here, how to get the rest",
    "lock": "write down what a recipe depends on: hashes, versions, seeds",
    "generate": "denoise text with a compiled model",
    "chat": "talk with a compiled instruct model",
    "eval": "measure a compiled model again",
    "report": "render a compiled model's report again",
    "sweep": "compare both models' texts over steps, blocks, remasking and thresholds",
    "kernels": "list, print and compile the generated kernels",
    "bench": "time the GEMMs on a GPU, against cuBLAS, its limits and other packages",
    "tune": "measure the fastest tile sizes of the GEMMs on this GPU",
}
_MODULES = {"list": "listing"}  # a module named `list` would hide the builtin from this one
_INTERRUPTED = 130
_BROKEN_PIPE = 141  # what a shell reports for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 done, 1 errors in a recipe, 2 usage, 3 input or machine, 4 a
    gate failed, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        open_streams()
        code = _dispatched(arguments)
        flush()
        return code
    except RecipeError as error:
        _print_recipe_error(error)
        return error.exit_code
    except QspecError as error:
        tell(f"qspec: {error}")
        return error.exit_code
    except BrokenPipeError:
        discard(sys.stdout)
        return _BROKEN_PIPE
    except OSError as error:
        from qspec.files import system_error

        failure = system_error(error)
        tell(f"qspec: {failure}")
        return failure.exit_code
    except KeyboardInterrupt:
        tell("qspec: interrupted")
        return _INTERRUPTED


def _dispatched(arguments: list[str]) -> int:
    """The command's exit code, of a usage message too."""
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # argparse: --help, or a usage message
        return stop.code if isinstance(stop.code, int) else UsageError.exit_code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0 if arguments else UsageError.exit_code
    command, *rest = arguments
    if command in ("-V", "--version"):
        say(f"qspec {qspec.__version__}")
        return 0
    if command not in COMMANDS:
        raise _unknown(command)
    module = command_module(command)
    parser = Parser(prog=f"qspec {command}", description=_sentence(COMMANDS[command]))
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(rest))
    return code


def command_module(command: str) -> Any:
    """The module of a command: its `add_arguments(parser)` and `run(args)`."""
    return import_module(f"qspec.cli.{_MODULES.get(command, command.replace('-', '_'))}")


def _unknown(command: str) -> UsageError:
    guess = closest(command, COMMANDS)
    if command.startswith("-"):
        return UsageError(f"there is no option {command!r} before the command", hint="qspec --help lists the commands")
    hint = f"did you mean `qspec {guess}`?" if guess else "qspec --help lists the commands"
    return UsageError(f"there is no command {command!r}", hint=hint)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: qspec COMMAND ...",
            "",
            "A declarative quantization compiler for diffusion LLMs.",
            "",
            *lines,
            "",
            "qspec COMMAND --help tells a command's options; qspec --version the version.",
            "Exit codes: 0 done, 1 errors in a recipe, 2 usage, 3 input or machine, 4 a gate failed, 130 interrupted.",
        ]
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _print_recipe_error(error: RecipeError) -> None:
    warn(render_text(error.diagnostics, error.sources, color=wants_color(sys.stderr)))
    tell(f"\n\n{summary(error.diagnostics)}")


def wants_color(stream: TextIO) -> bool:
    """Whether to colour what goes to the stream: a terminal, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
