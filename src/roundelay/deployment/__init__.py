"""Federations of real devices. What both sides share lies here; each side, and what each stands on, has its own room.

Every file in here may count on the extra ``serve``, since none can be imported before this one.
"""

from roundelay.errors import MissingExtra

try:
    import aiohttp  # noqa: F401
    import cryptography  # noqa: F401
    import pydantic  # noqa: F401
except ImportError as error:
    raise MissingExtra(error.name or "aiohttp", "serve") from error
