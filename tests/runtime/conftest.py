"""What a run would say again at its end."""

import pytest

from jsae.runtime import logs


@pytest.fixture
def notes():
    """The notes of the log, as a run's context collects them."""
    found = logs.Notes()
    logs.get_logger().addFilter(found)
    yield found
    logs.get_logger().removeFilter(found)
