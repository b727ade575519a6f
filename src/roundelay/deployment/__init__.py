"""Federations of real devices. So far who is who: keys, tokens, certificates, signed requests, and kits for sites.

Every file in here may count on the extra ``serve``, since none can be imported before this one.
"""

from roundelay.errors import MissingExtra

try:
    import cryptography  # noqa: F401
except ImportError as error:
    raise MissingExtra("cryptography", "serve") from error
