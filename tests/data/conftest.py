"""Fixtures of the data room."""

import pytest

from tests.data.fgvc_folder import write_folder


@pytest.fixture
def make_fgvc(tmp_path):
    """make_fgvc(per_class=2, boxes=False) -> folder holding data/ in FGVC-Aircraft layout."""
    return lambda **settings: write_folder(tmp_path / "photos", **settings)
