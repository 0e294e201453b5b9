"""A page from a template and the style sheet of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page of this folder's template and style sheet; every text in `values` is escaped."""
    read: Callable[[str], str] = lambda name: resources.files("realrl.report").joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(loader=jinja2.FunctionLoader(read), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(values, style=Markup(read("style.css")))
