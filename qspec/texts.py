"""Texts for a file of prompts, batch by batch; an interrupted run resumes behind its last whole batch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from qspec.data.files import messages_field, read_rows, text_field
from qspec.errors import InputError
from qspec.files import machine_errors
from qspec.models.chat import ChatSetting
from qspec.models.sampler import Denoiser, Settings, Tokenizer, agreement, decoded, new_tokens, one_token_a_step
from qspec.models.samplers.run import Tally
from qspec.models.tokens import encode
from qspec.runtime import ChatTemplate


@dataclass(frozen=True)
class Prompt:
    """A text to continue. templated: made of messages by a chat template, which has its own special tokens."""

    text: str
    templated: bool = False

    def ids(self, tokenizer: Tokenizer, vocab: int) -> list[int]:
        """Its tokens. Errors: InputError for text that is none, or holds ids beyond `vocab`."""
        return encode(tokenizer, self.text, vocab, special=not self.templated)


def read_prompts(path: Path, template: ChatTemplate, chat: ChatSetting) -> list[Prompt]:
    """Of a JSON-lines file whose rows have a "prompt" of text, by `chat` a user's message, or "messages".

    Errors: InputError naming file and line, and for a file without rows.
    """
    found = []
    wrapped = template.used(chat)
    for line, row in read_rows(path):
        if "messages" in row:
            messages, where = messages_field(row, "messages", path, line), f"{path}:{line}"
            found.append(Prompt(template(messages, where, answered=True), templated=True))
        else:
            text = text_field(row, "prompt", path, line)
            found.append(Prompt(template.prompt(text), templated=True) if wrapped else Prompt(text))
    if not found:
        raise InputError("the file has no prompts", where=str(path), hint='a line is {"prompt": "..."}')
    return found


@dataclass(frozen=True)
class TextFile:
    """A JSON-lines file of {prompt, text, sampling}, one row a prompt, written batch by batch.

    agreement: rows have "agreement" too, the share of tokens that one token a step gives, and "tokens_a_step", of the
    batch.
    """

    path: Path
    prompts: Sequence[Prompt]
    settings: Settings
    batch: int
    agreement: bool = False

    def fill(self, model: Denoiser, tokenizer: Tokenizer, on_texts: Callable[[int], None]) -> Tally:
        """Adds what is missing, and counts its steps; on_texts: told how many texts came.

        Errors: as `kept`, InputError for a prompt that does not fit the model, before the first text; MachineError for
        a full disk.
        """
        done, size = self.kept()
        rows = [prompt.ids(tokenizer, model.shape.vocab) for prompt in self.prompts]
        for number, row in enumerate(rows, 1):
            if len(row) + self.settings.length > model.shape.max_length:
                what = (
                    f"prompt {number} has {len(row)} tokens: with length {self.settings.length} they exceed the model's"
                )
                raise InputError(f"{what} {model.shape.max_length}", hint="shorten the prompt or the length")
        made = Tally()
        with machine_errors(self.path), self.path.open("ab") as stream:
            stream.truncate(size)
            on_texts(done)
            for start in range(done, len(rows), self.batch):
                part = slice(start, start + self.batch)
                tally = Tally()
                tokens = new_tokens(model, rows[part], self.settings, tally)
                texts = decoded(model, tokenizer, tokens)
                said: list[dict[str, float]] = [{} for _ in texts]
                if self.agreement:
                    exact = new_tokens(model, rows[part], one_token_a_step(self.settings))
                    shares = agreement(tokens, exact, *model.shape.ends)
                    said = [{"agreement": share, "tokens_a_step": tally.tokens_a_step} for share in shares]
                lines = zip(self.prompts[part], texts, said, strict=True)
                stream.write(b"".join(self._line(*line) for line in lines))
                stream.flush()
                os.fsync(stream.fileno())
                made.join(tally)
                on_texts(len(texts))
        return made

    def mean_agreement(self) -> float:
        """Of all rows of the file, with `agreement`."""
        with machine_errors(self.path):
            return fmean(json.loads(line)["agreement"] for line in self.path.read_bytes().splitlines())

    def kept(self) -> tuple[int, int]:
        """Texts of whole batches that the file has, and their bytes; what an interruption cut off does not count.

        Errors: InputError where it holds texts of other prompts, or sampled otherwise.
        """
        if not self.path.exists():
            return 0, 0
        with machine_errors(self.path):
            lines = self.path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        for number, line in enumerate(whole):
            expected = self.prompts[number] if number < len(self.prompts) else None
            if expected is None or not self._continues(line, expected):
                raise InputError(
                    "the file holds texts of other prompts, or sampled otherwise",
                    where=f"{self.path}:{number + 1}",
                    hint="give another --out, or remove the file",
                )
        complete = len(whole) == len(self.prompts)
        done = len(whole) if complete else len(whole) // self.batch * self.batch
        return done, sum(map(len, whole[:done]))

    def _continues(self, line: bytes, prompt: Prompt) -> bool:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(row, dict) or ("agreement" in row) != self.agreement:
            return False
        return (row.get("prompt"), row.get("sampling")) == (prompt.text, self._sampling())

    def _line(self, prompt: Prompt, text: str, said: Mapping[str, float]) -> bytes:
        row = {"prompt": prompt.text, "text": text, "sampling": self._sampling(), **said}
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def _sampling(self) -> dict[str, Any]:
        return asdict(self.settings)
