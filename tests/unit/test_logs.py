"""What is logged as JSON: one object a line, of named fields, whatever is said."""

import json
import logging
import math
from collections.abc import Callable, Iterator

import pytest
from fronts import Device, place, within

from roundelay.cli import logs


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What gives what came out on the error stream; logging is put back afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("roundelay")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    try:
        yield lambda: capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


def lines(text: str) -> list[dict[str, object]]:
    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_one_object_a_line_whatever_is_said(written: Callable[[], str]) -> None:
    logs.configure(logs.LogFormat.JSON)
    log = logging.getLogger("roundelay.here")
    log.info("two\nlines, %s", "\x1b[31m\u2028", extra={"client": "a", "round": 3, "secret": "not a field"})
    log.info("numbers", extra={"row": {"loss": math.nan, "all": [1, math.inf], "name": "x"}})
    log.debug("not this")
    logging.getLogger("another").info("nor this")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it failed")
    first, second, third = lines(written())
    assert {name: first[name] for name in ("level", "logger", "message", "client", "round")} == {
        "level": "info", "logger": "roundelay.here", "message": "two\nlines, \x1b[31m\u2028", "client": "a", "round": 3,
    }  # fmt: skip
    assert "secret" not in first
    assert second["row"] == {"loss": None, "all": [1, None], "name": "x"}
    assert third["level"] == "error"
    assert "ValueError: why" in str(third["traceback"])


def test_the_time_is_of_the_record_in_utc() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", (), None)
    record.created = 1_700_000_000.0625
    assert json.loads(logs.JsonLines().format(record))["time"] == "2023-11-14T22:13:20.062Z"


def test_text_stays_as_it_was_and_is_quiet_unless_asked(written: Callable[[], str]) -> None:
    root = logging.getLogger()
    root.handlers[:] = []
    logs.configure(logs.LogFormat.TEXT)
    assert not logs.is_json()
    logs.quiet_unless(False)
    logging.getLogger("roundelay.here").info("not shown")
    logging.getLogger("roundelay.here").warning("shown")
    assert "shown" in (text := written())
    assert "not shown" not in text
    said: list[str] = []
    logs.telling(said.append)("to people")
    assert said == ["to people"]


def test_a_server_says_who_asked_what(written: Callable[[], str]) -> None:
    async def go() -> None:
        async with Device.of(here) as device, Device(here.url, "x") as stranger:
            await device.poll()
            await stranger.poll()

    logs.configure(logs.LogFormat.JSON)
    with place() as here:
        here.open_round()
        within(go())
    served = [line for line in lines(written()) if line.get("route") == "work"]
    assert [(one["status"], one.get("client"), one.get("error")) for one in served] == [
        ("200", "a", None), ("401", None, "signature"),
    ]  # fmt: skip
    assert all(0 <= one["seconds"] < 30 for one in served)  # type: ignore[operator]
