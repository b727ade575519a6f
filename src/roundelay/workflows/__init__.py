"""Workflows: what the server does, round after round, as plain sequential code over a ``Federation``."""

from roundelay.workflows.buffered import Buffered
from roundelay.workflows.cross_site import CrossSite
from roundelay.workflows.cyclic import Cyclic
from roundelay.workflows.hierarchical import Hierarchical
from roundelay.workflows.rounds import Rounds

__all__ = ["Buffered", "CrossSite", "Cyclic", "Hierarchical", "Rounds"]
