"""Workflows: the server's logic as plain sequential code over a ``Federation``."""

from roundelay.workflows.rounds import Rounds

__all__ = ["Rounds"]
