"""Who plays what."""

import heapq
from collections.abc import Mapping, Sequence

from roundelay import seeds
from roundelay.attacks.faults import FAULTS
from roundelay.attacks.protocol import Hostile
from roundelay.errors import ConfigError

Roles = Mapping[str, Sequence[Hostile]]
"""What strikes each client, in order; clients whom nothing strikes are absent."""


def assigned(attacks: Sequence[Hostile], clients: Sequence[str], seed: int) -> Roles:
    """Say who plays what, among ``clients``.

    Raises:
        ConfigError: an attack names nobody, somebody unknown, or a fraction of nobody.
    """
    roles: dict[str, list[Hostile]] = {}
    for attack in attacks:
        for client in _struck(attack, clients, seed):
            roles.setdefault(client, []).append(attack)
    return roles


def is_honest(roles: Sequence[Hostile]) -> bool:
    """Tell whether a client means well, whatever faults it has."""
    return all(isinstance(role, FAULTS) for role in roles)


def _struck(attack: Hostile, clients: Sequence[str], seed: int) -> Sequence[str]:
    name, fault = type(attack).__name__, isinstance(attack, FAULTS)
    if attack.clients and attack.fraction is not None:
        raise ConfigError(f"attack {name}: give fraction or clients, not both")
    for client in attack.clients:
        if client not in clients:
            raise ConfigError(f"attack {name}: client {client!r} is not among those that can be struck")
    if attack.clients:
        return attack.clients
    if attack.fraction is None:
        if not fault:
            raise ConfigError(f"attack {name} strikes nobody: give fraction=0.2, or clients by id")
        return clients
    if not 0 < attack.fraction <= 1 or not round(attack.fraction * len(clients)):
        raise ConfigError(
            f"attack {name}: a fraction of {attack.fraction} of {len(clients)} clients is nobody; expected one up to 1 "
            "that comes to one client or more"
        )
    purpose = "faulty" if fault else "hostile"
    return heapq.nsmallest(
        round(attack.fraction * len(clients)), clients, key=lambda client: seeds.key(seed, 0, 0, client, purpose)
    )
