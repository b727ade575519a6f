"""The exception tree. A user's mistake is a ``ValueError`` too, so that ordinary code can catch it."""

from collections.abc import Iterator
from contextlib import contextmanager


class RoundelayError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigError(RoundelayError, ValueError):
    """A job, a component's arguments or a job file cannot mean what they say."""


class LayoutError(RoundelayError, ValueError):
    """Two models differ in a tensor's name, shape or dtype, or a model holds what cannot be averaged."""


class DataError(RoundelayError, ValueError):
    """Data is absent or malformed; the message names the file or client."""


class MetricError(RoundelayError, ValueError):
    """A metric is not one finite number, or not a number at all."""


class EmptyRoundError(RoundelayError, ValueError):
    """An aggregate was asked for although no update was admitted."""


class ClientFailed(RoundelayError, RuntimeError):
    """A client's own code raised; carries the client's name and the remote traceback."""


class WireError(RoundelayError, ValueError):
    """Bytes are not a frame, or not one that is allowed; the message says what was expected and what came."""


class ChannelClosed(RoundelayError, ConnectionError):
    """The other end of a channel is gone, or this end was closed."""


class ClientError(RoundelayError, RuntimeError):
    """A script uses the client API in a way that cannot mean anything; says what was expected."""


class JournalError(RoundelayError, RuntimeError):
    """The journal cannot be read or written. What was asked for is not acknowledged and did not happen, or may be asked
    for again; the message says what to do.
    """


class DiskError(JournalError, RuntimeError):
    """The disk did not take what the journal gave it, being full perhaps; with the cause gone, the journal goes on."""


class NoJournal(JournalError, LookupError):
    """There is no journal there, or one that a crash has kept from being begun."""


class JournalMismatch(JournalError, ValueError):
    """What is asked contradicts what the journal holds: another job, or a round that went another way."""


class IdentityError(RoundelayError, ValueError):
    """A key, a token, a certificate or a name does not prove who somebody is; never quotes a secret."""


class ServeError(RoundelayError, RuntimeError):
    """A server cannot listen where it was told to; the message says why, and what to do."""


class DeviceError(RoundelayError, RuntimeError):
    """A device cannot take part: its folder belongs to another client or server, is open already, or the server turned
    it away for good; the message says what to do.
    """


class VirtualDeadlock(RoundelayError, RuntimeError):
    """In virtual time a workflow waits for something that no model will ever produce."""


class MissingExtra(RoundelayError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; it comes with an extra: pip install 'roundelay[{extra}]'")


@contextmanager
def optional(package: str, extra: str) -> Iterator[None]:
    """What an import of an optional package stands in.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtra(package, extra) from error
