"""Who is asked in a round, given who is there and what the network is like: pure functions of a ``Choice``.

A rule of your own is a function of a ``Choice``, or a frozen dataclass with ``__call__``, that returns client ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from roundelay import seeds
from roundelay.errors import ConfigError
from roundelay.simulation.network.checks import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the server may know of a client before it asks: its means, its channel now, and its past.

    ``compute_s`` and ``upload_s`` are what a round is expected to take it, ``upload_s`` in the whole band;
    ``download_s`` is how long the model takes to reach it alone; infinity is out of reach. ``counted`` says in how many
    rounds its update counted, ``last_asked`` in which round it was asked last, 0 for none.
    """

    client: str
    compute_s: float = 0.0
    upload_s: float = 0.0
    download_s: float = 0.0
    rate_bps: float = 0.0
    snr_db: float | None = None
    distance_m: float | None = None
    num_examples: int = 0
    counted: int = 0
    last_asked: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """A round's choice: ``count`` of ``candidates``, who are in the order of their ids. ``seed`` keys what is drawn."""

    round: int
    attempt: int
    count: int
    candidates: Sequence[Candidate]
    seed: int

    def luck(self, client: str) -> int:
        """Return a number by which to settle what is otherwise equal."""
        return seeds.key(self.seed, self.round, self.attempt, client, "selection")


Select = Callable[[Choice], Sequence[str]]


def selected(select: Select, choice: Choice) -> tuple[str, ...]:
    """Return the chosen, sorted by id.

    Raises:
        ConfigError: a rule chose somebody twice, or somebody who is not there.
    """
    chosen = tuple(select(choice))
    known = {candidate.client for candidate in choice.candidates}
    wrong = next((client for client in chosen if client not in known), None)
    name = getattr(select, "__name__", type(select).__name__)
    if wrong is not None:
        raise ConfigError(
            f"{name} chose {wrong!r} for round {choice.round}, who is not among the {len(known)} candidates"
        )
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"{name} chose a client twice for round {choice.round}: {sorted(chosen)}")
    return tuple(sorted(chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class BestChannel:
    """The ``count`` clients with the highest rates at this moment. Who is far away never takes part."""

    def __call__(self, choice: Choice) -> Sequence[str]:
        best = sorted(choice.candidates, key=lambda one: (-one.rate_bps, choice.luck(one.client)))
        return [one.client for one in best[: choice.count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Those whose last turn is longest ago; of equals, in the order of a draw that stands for the whole run."""

    def __call__(self, choice: Choice) -> Sequence[str]:
        def turn(one: Candidate) -> tuple[int, int]:
            return one.last_asked, seeds.key(choice.seed, 0, 0, one.client, "selection")

        return [one.client for one in sorted(choice.candidates, key=turn)[: choice.count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedCs:
    """As many clients as a deadline lets through, with uploads one after another.

    T. Nishio and R. Yonetani, "Client Selection for Federated Learning with Heterogeneous Resources in Mobile Edge",
    ICC 2019: of those who are left, take the one that adds least to the round, T_d(S + k) - T_d(S) + t_UL + max(0, t_UD
    - Theta), where Theta is what the uploads so far take and t_UD is the client's own computing; keep it if the round
    is still over before ``deadline_s``. T_d is a multicast to all, at the pace of the slowest. ``overhead_s`` is what
    selection and aggregation take. ``count`` is not looked at.
    """

    deadline_s: float
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "deadline_s", above=0)
        check_number(self, "overhead_s", least=0)

    def __call__(self, choice: Choice) -> Sequence[str]:
        left = list(choice.candidates)
        compute_s = np.array([one.compute_s for one in left])
        upload_s = np.array([one.upload_s for one in left])
        download_s = np.array([one.download_s for one in left])
        open_ = np.isfinite(compute_s + upload_s + download_s)
        chosen, uploads_s, down_s = list[str](), 0.0, 0.0
        while open_.any():
            own_s = upload_s + np.maximum(0, compute_s - uploads_s)
            adds_s = np.where(open_, np.maximum(down_s, download_s) - down_s + own_s, np.inf)
            best = int(adds_s.argmin())
            open_[best] = False
            slowest_s = max(down_s, float(download_s[best]))
            if self.overhead_s + slowest_s + uploads_s + float(own_s[best]) < self.deadline_s:
                uploads_s, down_s = uploads_s + float(own_s[best]), slowest_s
                chosen.append(left[best].client)
        return chosen
