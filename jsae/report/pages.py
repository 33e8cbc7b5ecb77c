"""Page data to HTML: one Jinja2 environment, autoescape on, undefined names are errors.

Class names come from the user's files and may hold quotes or markup; whatever is not `Markup` made in
`formatting` or by a figure is escaped.
"""

import functools
import importlib.resources

import jinja2

from jsae.report.features_page import cell_text
from jsae.report.formatting import interval, percent, shown, shown_p, with_interval

STATIC = ("style.css", "report.js")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "shown": shown,
        "shown_p": shown_p,
        "interval": interval,
        "with_interval": with_interval,
        "percent": percent,
        "cell_text": cell_text,
    }
    return environment


@functools.cache
def template_text(name: str) -> str:
    """The text of a template or static file of this package."""
    return (importlib.resources.files("jsae.report") / "templates" / name).read_text("utf-8")


def render(name: str, page: dict) -> bytes:
    """The HTML of template `name` with the keys of `page`, UTF-8."""
    return _environment().get_template(name).render(page).encode()
