"""Every reference task is a job that can be built, and its card says what there is to know."""

from pathlib import Path

import pytest

from roundelay import config, tasks
from roundelay.errors import ConfigError
from roundelay.federation import Stopping

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_is_a_job_with_a_page(name: str) -> None:
    card, job = tasks.card(name), config.load(f"{tasks.PREFIX}{name}")
    assert job.name == name
    assert (ROOT / card.page).is_file()
    assert card.page == f"docs/tasks/{name}.md"
    assert f"task:{name}" in (ROOT / card.page).read_text()
    assert isinstance(job.stopping, Stopping)


def test_no_task_is_listed_twice_and_all_are_in_the_documentation() -> None:
    index = (ROOT / "docs" / "tasks.md").read_text()
    assert all(f"tasks/{name}.md" in index for name in tasks.names())


def test_a_task_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="task 'shakespear'"):
        config.load("task:shakespear")
