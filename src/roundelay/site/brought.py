"""What whoever starts a client says on its command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Brought:
    """The command line's words. ``data`` is NAME, NAME:FOLDER, NAME:KEY=VALUE,... or "module:function"; ``shard`` is
    "i/n", counted from 0; ``split`` a file that ``Split.save`` wrote; ``job`` a job file, or "module:NAME"; ``allow``
    names what the server may ask for beyond roundelay's own.

    Raises:
        ConfigError: words that cannot mean anything together.
    """

    data: str | None = None
    shard: str | None = None
    split: Path | None = None
    job: str | None = None
    script: Path | None = None
    script_args: Sequence[str] = ()
    allow: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.shard is not None and self.split is not None:
            raise ConfigError("give --shard or --split, not both: each says which part of the data is this site's")
        if self.script is not None and self.data is not None:
            raise ConfigError("a script reads its own data: tell it where with --script-args, and leave --data out")
        if self.script is None and self.script_args:
            raise ConfigError("--script-args are for a --script, and none is given")
        _ = self.part

    @property
    def part(self) -> tuple[int, int] | None:
        """Return (i, n): this site has the i-th of n parts, counted from 0."""
        if self.shard is None:
            return None
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise ConfigError(f"--shard {self.shard}: expected i/n with i from 0 to n - 1, such as 0/2 or 1/2")
        return int(number), int(count)
