"""What tests of faults, load and strangers measured, printed when all have run; and the seed of the long ones.

A test that takes the fixture ``figures`` says ``figures("replays refused", 1000)`` or ``figures("p99", 12.5, "ms")``.
Where it runs does not matter: figures travel with the test's report, so pytest-xdist brings them to the terminal too.
"""

import os
from collections.abc import Callable, Iterator

import pytest

Figures = Callable[..., None]
Figure = tuple[str, str, str]
"""The test's name, what was measured, and what came out with its unit."""

SEED = "ROUNDELAY_CHAOS_SEED"
_OURS = "figure: "  # before the name of a user property, which other plugins record too


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """What notes a figure of this test: its name, its value, and the unit if it has one."""

    def note(name: str, value: float | str, unit: str = "") -> None:
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        request.node.user_properties.append((_OURS + name, f"{text} {unit}".strip()))

    return note


@pytest.fixture
def chaos_seed(figures: Figures) -> int:
    """The seed of this run: ``ROUNDELAY_CHAOS_SEED``, or 0. It is printed among the figures."""
    seed = int(os.environ.get(SEED, "0"))
    figures("seed", str(seed))
    return seed


def noted(reports: Iterator[object]) -> list[Figure]:
    """Return the figures of these reports, by test; the report of a test's teardown has them all."""
    found = [
        (report.nodeid.rpartition("/")[2], name.removeprefix(_OURS), str(value))
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name.startswith(_OURS)
    ]
    return sorted(found, key=lambda figure: figure[0])  # those of one test in the order in which it noted them


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = noted(report for reports in terminalreporter.stats.values() for report in reports)
    if not found:
        return
    terminalreporter.section("figures")
    last = ""
    for test, name, value in found:
        if test != last:
            terminalreporter.write_line(test)
        terminalreporter.write_line(f"    {name}: {value}")
        last = test
