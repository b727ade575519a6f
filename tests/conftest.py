"""What every run of the tests loads."""

from collections.abc import Iterator

import pytest

pytest_plugins = ["figures"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a run's own thread and in its workers."""
    from roundelay import trainer  # which imports torch: not in every process that reads this

    with trainer.one_thread():
        yield
