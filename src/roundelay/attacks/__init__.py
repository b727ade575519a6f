"""Attacks and faults that a user turns on: ``Job(attacks=[ALIE(fraction=0.2)])``, or ``--attack "alie:fraction=0.2"``.

An attacked update is sent by a client, so the guard sees it like any other. An attack changes a client's step (what it
sends less what was broadcast, all uplink vectors end to end), or the examples it trains on, or chooses one step for
all its clients from the honest steps of the round. One of your own is a frozen dataclass that extends ``Hostile`` with
``lie``, ``collude`` or ``poison``.

A job file finds them by the names in ``__all__``.

Shapes, in every file: h honest clients of a round, f hostile ones, D values, B examples.
"""

from roundelay.attacks.colluding import ALIE, IPM, MinMax
from roundelay.attacks.faults import Crash, Drop, NaN, Slow
from roundelay.attacks.lying import GaussianNoise, Scaling, SignFlip
from roundelay.attacks.poisoning import Backdoor, LabelFlip
from roundelay.attacks.protocol import Colludes as Colludes
from roundelay.attacks.protocol import Hostile as Hostile
from roundelay.attacks.protocol import Lies as Lies
from roundelay.attacks.protocol import Poisons as Poisons

__all__ = [
    "ALIE",
    "IPM",
    "Backdoor",
    "Crash",
    "Drop",
    "GaussianNoise",
    "LabelFlip",
    "MinMax",
    "NaN",
    "Scaling",
    "SignFlip",
    "Slow",
]
