"""`qspec completion SHELL`: a script that completes commands, options and their values; made from the parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qspec.cli import COMMANDS, command_module
from qspec.cli.output import say

FILES = re.compile(r"RECIPE|FILE|CHECKPOINT|ARTIFACT|PATH|DIR|OLD|NEW")  # in a metavar: files may be meant


@dataclass(frozen=True)
class _Argument:
    """names: an option's, none of an argument in its place. choices: its values; files: whether they are files."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    files: bool
    takes_value: bool
    many: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=tuple(_SCRIPTS), help=", ".join(_SCRIPTS))


def run(args: argparse.Namespace) -> int:
    say(_SCRIPTS[args.shell]({name: list(_arguments(name)) for name in COMMANDS}), end="")
    return 0


def _arguments(command: str) -> Iterator[_Argument]:
    parser = argparse.ArgumentParser(prog=command)
    command_module(command).add_arguments(parser)
    for action in parser._actions:  # argparse has no public way to ask
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        choices = tuple(map(str, action.choices or ()))
        takes = action.nargs != 0
        text = (action.help or "") % {"default": action.default, "prog": command} if action.help else ""
        files = takes and not choices and FILES.search(metavar) is not None
        many = action.nargs in ("*", "+")
        yield _Argument(tuple(action.option_strings), text, choices, files, takes, many)


_Commands = dict[str, list[_Argument]]


def _bash(commands: _Commands) -> str:
    places, values = [], []
    for name, arguments in commands.items():
        options = " ".join(word for one in arguments for word in one.names)
        words = " ".join(choice for one in arguments if not one.names for choice in one.choices)
        places.append(f"    {name}) options={_quoted(options)} words={_quoted(words)} ;;")
        for one in arguments:
            if one.names and one.takes_value:
                before = " | ".join(_quoted(f"{name} {option}") for option in one.names)
                values.append(f"    {before}) options= words={_quoted(' '.join(one.choices))} ;;")
    return "\n".join(
        [
            "# bash completion of qspec: qspec completion bash > ~/.local/share/bash-completion/completions/qspec",
            "_qspec() {",
            "  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} options= words=",
            '  case "${COMP_WORDS[1]}" in',
            *places,
            "  esac",
            '  case "${COMP_WORDS[1]} $before" in',
            *values,
            "  esac",
            "  [[ $current == -* ]] && words=$options",
            f"  ((COMP_CWORD == 1)) && words={_quoted(' '.join(commands))}",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -o default -F _qspec qspec  # files where no word fits",
            "",
        ]
    )


def _zsh(commands: _Commands) -> str:
    lines = [
        "#compdef qspec",
        "# zsh completion of qspec: qspec completion zsh > a folder of $fpath, as _qspec",
        "_qspec() {",
    ]
    lines += ["  local -a commands", "  commands=("]
    lines += [f"    {_quoted(f'{name}:{text}')}" for name, text in COMMANDS.items()]
    lines += ["  )", "  if ((CURRENT == 2)); then", "    _describe command commands", "    return", "  fi"]
    lines += ["  shift words", "  ((CURRENT--))", "  case $words[1] in"]
    for name, arguments in commands.items():
        lines.append(f"    {name}) _arguments \\")
        lines += [f"      {spec} \\" for one in arguments for spec in _zsh_specs(one)]
        lines.append("      ;;")
    return "\n".join([*lines, "  esac", "}", "compdef _qspec qspec", ""])


def _zsh_specs(one: _Argument) -> Iterator[str]:
    text = re.sub(r"([\[\]:\\])", r"\\\1", one.help)
    action = f"({' '.join(one.choices)})" if one.choices else "_files" if one.files else " "
    if not one.names:
        yield _quoted(f"{'*' if one.many else ''}:argument:{action}")
    for name in one.names:
        value = f":value:{action}" if one.takes_value else ""
        yield _quoted(f"{name}[{text}]{value}")


def _fish(commands: _Commands) -> str:
    lines = ["# fish completion of qspec: qspec completion fish > ~/.config/fish/completions/qspec.fish"]
    for name, text in COMMANDS.items():
        lines.append(f"complete -c qspec -f -n __fish_use_subcommand -a {name} -d {_fish_quoted(text)}")
    for name, arguments in commands.items():
        head = f"complete -c qspec -n '__fish_seen_subcommand_from {name}'"
        for one in arguments:
            values = f" -a {_fish_quoted(' '.join(one.choices))}" if one.choices else ""
            if not one.names:
                lines += [f"{head} -f{values}"] if one.choices else []
                continue
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in one.names)
            needs = " -r" if one.takes_value else ""
            lines.append(f"{head} {names}{needs}{' -f' if one.choices else ''}{values} -d {_fish_quoted(one.help)}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    """For bash and zsh: nothing inside is special."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
