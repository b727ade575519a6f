"""Frames between two processes of one machine: a connection's two ends, and where processes meet to have one."""

from roundelay.channel.connection import Channel
from roundelay.channel.rendezvous import Listener, connect, pair

__all__ = ["Channel", "Listener", "connect", "pair"]
