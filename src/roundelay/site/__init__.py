"""What a site brings to a run of real devices: its part of the data, and what trains on it.

A server may say which of roundelay's own parts a client is made of, and with which settings. It may name nothing that
would be imported here, and no file: what is not our own must be allowed, or brought, by whoever starts the client.
"""

from roundelay.site.brought import Brought
from roundelay.site.making import hands_for, holding
from roundelay.site.named import simulated

__all__ = ["Brought", "hands_for", "holding", "simulated"]
