"""What is said to a client whose request is refused: a status, a ``Problem``, and when to come again."""

import logging
from collections.abc import Mapping

from aiohttp import web
from pydantic import ValidationError

from roundelay.deployment.journal.records import Denial, RequestDenied
from roundelay.deployment.protocol import ERRORS, Problem
from roundelay.deployment.trust.signing import Reason, Refused
from roundelay.errors import JournalError, JournalMismatch, RoundelayError

log = logging.getLogger(__name__)

STATUS = {name: int(meaning[:3]) for name, meaning in ERRORS.items()}
RETRY_AFTER_S = {"busy": 1, "disk": 10, "draining": 5}
_DENIED = {
    Denial.BAD_DIGEST: "message",
    Denial.WRONG_SIZE: "too_large",
    Denial.NO_UPLOAD: "upload",
    Denial.WRONG_OFFSET: "upload",
    Denial.INCOMPLETE: "upload",
    Denial.WRONG_DIGEST: "digest",
    Denial.BUSY: "busy",
}
_MAX_TEXT = 2_000
_MAX_FAULTS = 5
_MOST_FAULTS = 100


class Rejected(RoundelayError):
    """A request cannot be served; ``error`` is one of ``protocol.ERRORS``."""

    def __init__(self, error: str, message: str, received: int | None = None) -> None:
        super().__init__(message)
        self.error, self.received = error, received


class Refusal(web.Response):
    """The answer to a request that is refused, with what it says to programs."""

    def __init__(self, error: str, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(body=body, status=status, headers=headers, content_type="application/json")
        self.error = error


def answer_to(error: Exception, request: web.Request) -> web.Response:
    """Return what is answered where a handler raised. What no client can cause is logged, and told to nobody."""
    if isinstance(error, Rejected):
        return refusal(error.error, str(error), error.received)
    if isinstance(error, Refused):
        return refusal("another_run" if error.reason is Reason.OTHER_RUN else "signature", str(error))
    if isinstance(error, RequestDenied):
        return refusal(_DENIED[error.denial], str(error))
    if isinstance(error, ValidationError):
        return refusal("message", _faults(error))
    if isinstance(error, web.HTTPException):
        if error.status == web.HTTPNotFound.status_code:
            return refusal("not_found", "there is no such route; does this device run the server's version?")
        return refusal("message", f"{error.reason}: {request.method} is not for this route", status=error.status)
    if isinstance(error, web.RequestPayloadError | ConnectionError):
        return refusal("message", "the body ended before its time")  # nobody is left to read it
    if is_of_the_disk(error):
        log.error("a request could not be served: %s", error)
        return refusal("disk", "the server's disk failed or is full; nothing was acknowledged, come again later")
    log.error("%s %s failed: a bug of the server", request.method, request.path, exc_info=error)
    return Refusal("internal", b'{"error": "internal"}', 500, {})


def is_of_the_disk(error: Exception) -> bool:
    """Whether something could not be read or written here, so that it may be asked for again."""
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError)
    return isinstance(error, JournalError) and not isinstance(error, JournalMismatch)


def refusal(error: str, message: str, received: int | None = None, status: int | None = None) -> web.Response:
    problem = Problem(error=error, message=message[:_MAX_TEXT], received=received)
    retry = {"Retry-After": str(RETRY_AFTER_S[error])} if error in RETRY_AFTER_S else {}
    return Refusal(error, problem.model_dump_json().encode(), status or STATUS[error], retry)


def _faults(error: ValidationError) -> str:
    """Say what is wrong where. What came is not quoted: it may be a secret, or a megabyte."""
    if error.error_count() > _MOST_FAULTS:  # each takes its time to tell
        return f"not a message as this route takes it: {error.error_count()} faults"
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    said = [f"{'.'.join(map(str, fault['loc'])) or 'the message'}: {fault['msg']}" for fault in faults[:_MAX_FAULTS]]
    more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    return f"not a message as this route takes it: {'; '.join(said)}{more}; does this device run the server's version?"
