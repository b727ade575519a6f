"""Who may take part in one run: its clients by name, or as many as it has seats."""

from collections.abc import Collection
from dataclasses import dataclass

from roundelay.deployment.trust.identity import checked_name
from roundelay.errors import IdentityError


@dataclass(frozen=True, slots=True)
class Doors:
    """``names`` are the clients of the run, None where any will do. There are ``seats`` for them, each for one client
    for as long as the run lasts.
    """

    names: tuple[str, ...] | None
    seats: int

    def __post_init__(self) -> None:
        if self.seats < 1:
            raise IdentityError(f"a run needs at least one seat for a client, got {self.seats}")
        for name in self.names or ():
            checked_name(name)

    def admits(self, client: str, inside: Collection[str]) -> bool:
        """Whether ``client`` may take part beside those who do already, by name."""
        if client in inside:
            return True
        return len(inside) < self.seats and (self.names is None or client in self.names)

    def has_room(self, inside: Collection[str]) -> bool:
        """Whether somebody new may still join."""
        return len(inside) < self.seats and (self.names is None or not set(self.names) <= set(inside))

    def refusal(self, client: str, inside: Collection[str]) -> str:
        """Say why ``client`` may not take part, and what to do."""
        if self.names is not None and client not in self.names:
            return (
                f"client {client!r} is none of the {len(self.names)} clients of this run; join under one of their "
                "names, or ask the server's administrator to take it up"
            )
        return f"client {client!r} comes too late: all {self.seats} seats of this run are taken; wait for another run"
