"""How the command logs: for people, or one JSON object a line (docs/operations.md lists the fields)."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum

from rich.console import Console
from rich.logging import RichHandler

FIELDS = ("run", "round", "attempt", "client", "task", "route", "status", "seconds", "error", "row")
"""What a record may say beside its message, where it is about such a thing: ``log.info(..., extra={"round": 3})``."""

log = logging.getLogger(__name__)


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """One object a record: ``time`` (UTC, RFC 3339, milliseconds), ``level``, ``logger``, ``message``; of ``FIELDS``
    those that the record has; ``traceback`` where it is about an exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        told: dict[str, object] = {
            "time": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: _plain(record.__dict__[name]) for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str, allow_nan=False)


def configure(form: LogFormat) -> None:
    """Have what is logged come out on the standard error stream: warnings, or, as JSON, what goes on too."""
    if form is LogFormat.JSON:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        logging.getLogger("roundelay").setLevel(logging.INFO)
    else:
        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def is_json() -> bool:
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def quiet_unless(verbose: bool) -> None:
    """Leave out what goes on, unless it is asked for. What is JSON is for programs, which can choose themselves."""
    if not is_json():
        logging.getLogger("roundelay").setLevel(logging.INFO if verbose else logging.WARNING)


def telling(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return what tells how it goes: ``say``, or the log where that is JSON. Not for secrets, as a join line is one."""
    return log.info if is_json() else say


def _plain(value: object) -> object:
    """Return a value as JSON can say it: it knows no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
