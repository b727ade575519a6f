"""Who may take part in one run: its clients, by name."""

from collections.abc import Collection
from dataclasses import dataclass

from roundelay.deployment.trust.identity import checked_name


@dataclass(frozen=True, slots=True)
class Doors:
    """``names`` are the clients of the run.

    Raises:
        IdentityError: one of them is not what a client can be called.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            checked_name(name)

    def admits(self, client: str) -> bool:
        """Whether ``client`` may take part."""
        return client in self.names

    def has_room(self, inside: Collection[str]) -> bool:
        """Whether somebody may still join, beside those who take part already."""
        return not set(self.names) <= set(inside)

    def refusal(self, client: str) -> str:
        """Say why ``client`` may not take part, and what to do."""
        return (
            f"client {client!r} is none of the {len(self.names)} clients of this run; join under one of their "
            "names, or ask the server's administrator to take it up"
        )
