"""A drawn study whose sky gives the class away in training: a shortcut that is planted.

    nice python -m launch.shortcut --config=configs/shortcut.py --workdir=runs/shortcut

Expected: the tied network is far worse where the sky is the wrong one than a reference without the tie;
the table says how much of that comes back when features off the foreground are suppressed.
`configs/shortcut.py:small` is a form small enough for a test.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(form: str = "full") -> ConfigDict:
    """The demo's config of that form with a tied sky."""
    config = demo.get_config(form)
    config.data.tied = "sky"
    return config
