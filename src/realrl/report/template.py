"""A page from a template and the style sheet of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page of this folder's template and style sheet; every text in `values` is escaped."""
    return _environment().get_template(template).render(values, style=Markup(_read("style.css")))


@cache
def _environment() -> jinja2.Environment:
    """One a process: it keeps the templates that it has compiled."""
    return jinja2.Environment(loader=jinja2.FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=jinja2.StrictUndefined)


def _read(name: str) -> str:
    return resources.files("realrl.report").joinpath(name).read_text(encoding="utf-8")
