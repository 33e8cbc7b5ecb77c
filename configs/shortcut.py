"""A drawn study whose sky gives the class away in training: a shortcut that is planted.

    nice python -m launch.shortcut --config=configs/shortcut.py --workdir=runs/shortcut

Expected: the tied network fails where the sky is the wrong one, a reference without the tie does not; the
table says how much comes back when features off the foreground are suppressed. With the full tie nothing in
training tells twins apart but the sky, so that little can come back; `configs/shortcut.py:mostly` leaves one
image in ten untied. `configs/shortcut.py:small` is a form small enough for a test.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(form: str = "full") -> ConfigDict:
    """The demo's config with a tied sky; `form` is "full", "mostly" or "small"."""
    config = demo.get_config("full" if form == "mostly" else form)
    config.data.tied = "sky_mostly" if form == "mostly" else "sky"
    return config
