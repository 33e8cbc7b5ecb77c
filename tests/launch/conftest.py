"""What the tests of the shell scripts share."""

import pytest

from tests.launch import script_stubs


@pytest.fixture
def repo(tmp_path):
    """A checkout with spaces in its path, a stub environment, and stubs of the programs of a cluster."""
    return script_stubs.make_checkout(tmp_path)
