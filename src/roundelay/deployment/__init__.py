"""Federations of real devices. What both sides share lies here; each side, and what each stands on, has its own room.

Every file in here may count on the extra ``serve``, since none can be imported before this one.
"""

from roundelay.errors import optional

with optional("aiohttp", "serve"):
    import aiohttp  # noqa: F401
with optional("cryptography", "serve"):
    import cryptography  # noqa: F401
with optional("pydantic", "serve"):
    import pydantic  # noqa: F401
