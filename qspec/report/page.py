"""Templates to pages and Markdown. Every value is escaped: a recipe, a prompt or a model's name may be hostile."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from qspec.report.svg import clean

Filters = Mapping[str, Callable[..., Any]]

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


def render_html(template: str, filters: Filters, context: Mapping[str, Any], **more: Any) -> str:
    """One self-contained page, in light and dark, from a template that extends page.html.jinja."""
    style = Markup(asset("palette.css") + asset("page.css"))
    return clean(_environment(filters, autoescape=True).get_template(template).render(context, style=style, **more))


def render_markdown(template: str, filters: Filters, context: Mapping[str, Any], **more: Any) -> str:
    """Markdown for a pull request."""
    environment = _environment(filters, autoescape=False)
    environment.finalize = _escaped_markdown
    return clean(environment.get_template(template).render(context, **more))


def asset(name: str) -> str:
    """The text of a template or style sheet."""
    return (files("qspec.report") / "templates" / name).read_text(encoding="utf-8")


def _environment(filters: Filters, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters.update(filters)
    return environment


def _escaped_markdown(value: Any) -> Any:
    """What Jinja prints into Markdown: one line, without meaning to Markdown or HTML."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return (
        _MARKDOWN.sub(r"\\\1", " ".join(value.split()))
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
        .replace("\\&", "&amp;")
    )
