"""`qspec chat ARTIFACT`: a conversation with an instruct model, by its tokenizer's chat template."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from qspec.cli.generate import add_sampling, at_once, generated, settings_of, shown, tell_refused
from qspec.cli.output import flush, tell, write
from qspec.errors import InputError

NEW = "/new"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="a compiled model, checkpoint folder, hub id or stand-in")
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    from qspec.runtime import ChatTemplate, checkpoint_folder, load
    from qspec.texts import Prompt

    settings = settings_of(args)
    template = ChatTemplate(checkpoint_folder(args.artifact))
    first = template.prompt("hello")  # refuses a tokenizer that has none
    model, tokenizer = load(args.artifact, args.device, texts=at_once(settings, [first]))
    said: list[dict[str, str]] = []
    for line in _lines():
        if line == NEW:
            said.clear()
            continue
        asked = [*said, {"role": "user", "content": line}]
        try:
            prompt = Prompt(template(asked, args.artifact, answered=True), templated=True)
            answer = generated(model, tokenizer, prompt.ids(tokenizer, model.shape.vocab), settings)
        except InputError as error:
            tell(f"qspec: {error}\n{NEW} begins anew")
            continue
        write(shown(answer) + "\n")
        flush()
        if not said:
            tell_refused(model)
        said = [*asked, {"role": "assistant", "content": answer}]
    return 0


def _lines() -> Iterator[str]:
    """What is typed, or read from a pipe, without blank lines, until the end of the input."""
    if sys.stdin.isatty():
        tell(f"{NEW} begins a new conversation, Ctrl-D ends")
    while True:
        if sys.stdin.isatty():
            write("> ")
            flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
