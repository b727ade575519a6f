"""What can go wrong between a device and its server, and which of it is worth another try."""

import errno

from roundelay.deployment.protocol import Problem, printable
from roundelay.deployment.trust.address import Address
from roundelay.errors import RoundelayError

LONGEST_S, DIALLED_S = 30.0, 1.0
"""Between two tries: to reach a server, and where the server is the one that dials."""


class Unreachable(RoundelayError, RuntimeError):
    """No answer came, or none that a server of ours would give. Worth another try; the message says what to look at."""


class Again(RoundelayError, RuntimeError):
    """The server cannot answer now, and asks to be left alone for ``after_s``."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class Refusal(RoundelayError, RuntimeError):
    """The server has understood, and will not: the same request gets the same answer."""

    def __init__(self, status: int, problem: Problem, address: Address) -> None:
        super().__init__(f"{address}: {printable(problem.message)} ({printable(problem.error)}, status {status})")
        self.status, self.problem = status, problem


class OwnDisk(RoundelayError, RuntimeError):
    """This device's own disk is full or failed. Nothing is lost by trying again once there is room."""

    def __init__(self, doing: str, cause: OSError) -> None:
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room; it goes on by itself then" if full else "it goes on once the cause is gone"
        super().__init__(f"this device's disk: {doing} failed ({cause.strerror or cause}); {advice}")
