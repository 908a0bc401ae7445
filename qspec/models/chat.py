"""Messages as text, by a tokenizer's chat template: where it is used, what it puts around a user's words. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qspec.errors import InputError

ChatSetting = Literal["auto", "on", "off"]
WORDS = "\ufffc"  # stands for the user's words where what is around them is looked for


def uses_chat(setting: ChatSetting, tokenizer: Any, where: str) -> bool:
    """Whether prompts become messages: `auto`, where the tokenizer has a chat template, as instruct models' have.

    Raises InputError for `on` without one.
    """
    has = bool(getattr(tokenizer, "chat_template", None))
    if setting == "on" and not has:
        raise InputError(
            "chat is on, and the tokenizer has no chat template",
            where=where,
            hint="put chat_template.jinja beside the model's tokenizer, or write chat off",
        )
    return has and setting != "off"


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: str, *, answered: bool) -> str:
    """Messages {role, content} as text. answered: up to where the model's answer begins.

    Raises InputError without a template, and where it refuses them.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(
            "these are messages, and the tokenizer has no chat template to make text of them",
            where=where,
            hint="put chat_template.jinja beside the model's tokenizer, or give a field that holds text",
        )
    try:
        options = {"tokenize": False, "add_generation_prompt": answered}
        return str(tokenizer.apply_chat_template(list(messages), **options))
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"the chat template does not take these messages: {str(error).partition(chr(10))[0]}"
        raise InputError(what, where=where, hint="give them in the order that the template asks for") from error


def user_message(tokenizer: Any, text: str, where: str) -> str:
    """A user's one message up to where the answer begins; errors as `chat_text`."""
    return chat_text(tokenizer, [{"role": "user", "content": text}], where, answered=True)


def around_user(tokenizer: Any, where: str) -> tuple[str, str]:
    """The text before and behind the words of `user_message`. Raises InputError where they stand not once in it."""
    parts = user_message(tokenizer, WORDS, where).split(WORDS)
    if len(parts) != 2:
        what = f"the chat template writes a user's message {len(parts) - 1} times"
        raise InputError(what, where=where, hint="write chat = off")
    return parts[0], parts[1]
