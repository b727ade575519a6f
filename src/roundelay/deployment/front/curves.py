"""A run's numbers, round after round, as they are told to whoever asks: a bounded number of them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from roundelay.deployment.protocol import MAX_CURVES, MAX_ROUNDS, Curves


def curves_of(rows: Sequence[Mapping[str, Any]], measured: Collection[str]) -> Curves:  # Any: names, numbers, text
    """Return the numbers of the last rounds by name; ``measured`` are the names of what the job has clients measure.
    Where there are too many, those are left out whose words clients chose.
    """
    ours = {f"client_{name}{part}" for name in measured for part in ("", "_variance", "_worst_decile")}
    last = rows[-MAX_ROUNDS:]
    names = dict.fromkeys(name for row in last for name in row)
    kept = sorted(names, key=lambda name: name.startswith(("train_", "client_")) and name not in ours)[:MAX_CURVES]
    rounds = {name: [_finite(row.get(name)) for row in last] for name in kept}
    return Curves(left_out=len(rows) - len(last), rounds=rounds)


def _finite(value: object) -> float | int | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
