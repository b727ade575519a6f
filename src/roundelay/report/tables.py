"""Tables of what a run's network did and cost, for a terminal."""

from collections.abc import Callable, Mapping, Sequence

from rich.table import Column, Table

from roundelay.report.accounts import Account
from roundelay.report.comparing import Compared, Told
from roundelay.report.units import quantity, seconds


def target_table(settings: Sequence[Compared], metric: str, target: float) -> Table:
    """Return what each setting took to reach a target; behind it, in how many times less than the first that is, and
    behind a speed-up its bound.
    """
    table = Table(
        "setting", "rounds", Column("time", no_wrap=True), Column("speed-up", no_wrap=True),
        Column("uplink (times fewer)", max_width=20), Column("energy (times less)", max_width=18),
        title=f"to {metric} {target:.6g}", title_justify="left",
    )  # fmt: skip
    for one in settings:
        cost = one.cost
        if cost is None:
            reached = f"{one.reached} of {len(one.setting.runs)} get there" if one.reached else "never"
            table.add_row(one.setting.name, "", reached)
            continue
        less = {axis: f"{ratio:.2f}" for axis, ratio in one.ratios.items()}
        gained = less.get("time_s", "")
        if gained and one.bound is not None:
            gained += f" (bound {one.bound:.2f})"
        table.add_row(
            one.setting.name, f"{cost.rounds:g}", seconds(cost.time_s), gained,
            _with(quantity(cost.uplink_bits, "bit"), less.get("uplink_bits")),
            _with(quantity(cost.energy_j, "J"), less.get("energy_j")),
        )  # fmt: skip
    return table


def _with(value: str, ratio: str | None) -> str:
    return f"{value} ({ratio})" if value and ratio else value


LINES: Sequence[tuple[str, Callable[[Account], str]]] = (
    ("T_comp, median", lambda one: seconds(one.computing_s)),
    ("T_tx on air, median", lambda one: seconds(one.sending_s)),
    ("before it, median", lambda one: seconds(one.queueing_s)),
    ("bound 1 + T_tx/T_comp", lambda one: f"{one.split().bound:.3f}"),
    ("time computing", lambda one: f"{one.shares['computing']:.1%}"),
    ("time queueing", lambda one: f"{one.shares['queueing']:.1%}"),
    ("time on air", lambda one: f"{one.shares['on air']:.1%}"),
    ("time waiting", lambda one: f"{one.shares['waiting']:.1%}"),
    ("staleness, mean", lambda one: _mean(one.staleness)),
    ("staleness, most", lambda one: str(max(one.staleness, default=""))),
    ("uploads fired", lambda one: f"{one.fired:,}"),
    ("uploads skipped", lambda one: f"{one.skipped:,}"),
    ("uploads lost", lambda one: f"{one.lost:,}"),
    ("computing scaled by", lambda one: "" if one.calibration is None else f"{one.calibration:.4g}"),
)


def account_table(runs: Sequence[Told]) -> Table:
    """Return the networks' accounts, a column a run."""
    accounts = [(run.name, run.account) for run in runs if run.account is not None]
    table = Table("network", *(name for name, _ in accounts))
    for label, shown in LINES:
        table.add_row(label, *(shown(one) for _, one in accounts))
    return table


def _mean(counts: Mapping[int, int]) -> str:
    total = sum(counts.values())
    return f"{sum(age * count for age, count in counts.items()) / total:.2f}" if total else ""
