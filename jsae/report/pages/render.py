"""Page data to HTML: one Jinja2 environment, autoescape on, undefined names are errors.

Class names come from the user's files and may hold quotes or markup; whatever is not `Markup` made in
`formatting` or by a figure is escaped.
"""

import functools
import importlib.resources
from collections.abc import Mapping

import jinja2

from jsae import metrics
from jsae.ablation.input_space import controls, patches
from jsae.analysis import features
from jsae.report import formatting

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
    functions = ("shown", "shown_p", "interval", "with_interval", "estimate", "percent", "is_known")
    environment.globals |= {name: getattr(formatting, name) for name in functions}
    environment.globals |= {
        "why_unknown": why_unknown,
        "min_active": features.MIN_ACTIVE_IMAGES,
        "max_q": features.MAX_Q,
        "min_auroc": features.MIN_AUROC,
        "n_purity": metrics.N_PURITY,
        "energy_tolerance": controls.ENERGY_TOLERANCE,
        "coverage_tolerance": controls.COVERAGE_TOLERANCE,
        "min_fall": patches.MIN_FALL,
    }
    return environment


def why_unknown(n_active: int) -> str:
    """Why an effect of a feature that fires on `n_active` test images may be unknown."""
    if n_active < features.MIN_ACTIVE_IMAGES:
        least = f"at least {features.MIN_ACTIVE_IMAGES} test images"
        return f"stated for features that fire on {least}; this one fires on {n_active}"
    return "not defined here: one class only, or too few images have a matching control"


@functools.cache
def template_text(name: str) -> str:
    """The text of a template or static file of this package."""
    return (importlib.resources.files("jsae.report") / "templates" / name).read_text("utf-8")


def render(name: str, page: Mapping) -> bytes:
    """The HTML of template `name` with the keys of `page`, UTF-8."""
    return _environment().get_template(name).render(page).encode()
