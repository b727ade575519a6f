"""What the examples here share: settings are trained for several seeds, two at a time, and told of in a table."""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import torch

from roundelay import config
from roundelay.errors import MissingExtra
from roundelay.report.comparing import Compared, Told
from roundelay.report.network import Comparison, comparison, draw_compared, told_of
from roundelay.report.runs import read_run
from roundelay.report.units import quantity, seconds
from roundelay.tracking.run_folder import Tracking

HERE = Path(__file__).parent
START = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"  # the former imports torch once for all
Overrides = Sequence[str]


def arguments(what: str, out: str, target: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / out, help="where runs and pictures go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--target", type=float, default=target, help="the accuracy to reach")
    parser.add_argument("--processes", type=int, default=2, help="so many runs at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run: num_rounds=10")
    parser.add_argument("--only", nargs="+", help="these settings, of which the first is compared with")
    return parser


def trained(
    file: Path, root: Path, settings: Mapping[str, Overrides], asked: argparse.Namespace
) -> dict[str, list[Path]]:
    """Train every setting for every seed, and return the run folders; what is there already is not trained again."""
    wanted = {name: [root / f"{name}-seed{seed}" for seed in asked.seeds] for name in settings}
    todo = [
        (file, folder, [*settings[name], *asked.set, f"seed={seed}"])
        for name, folders in wanted.items()
        for seed, folder in zip(asked.seeds, folders, strict=True)
        if not is_finished(folder)
    ]
    begun_s = time.monotonic()
    with ProcessPoolExecutor(asked.processes, get_context(START)) as pool:
        spent_s = sum(pool.map(_train, *zip(*todo, strict=True))) if todo else 0.0
    print(f"trained {len(todo)} runs: {time.monotonic() - begun_s:.0f} s, {spent_s:.0f} s of CPU time", flush=True)
    return wanted


def _train(file: Path, folder: Path, overrides: Overrides) -> float:
    """Train one run in this process; return the CPU time that it took."""
    torch.set_num_threads(1)
    begun_s = time.process_time()
    job = config.load(file, ["simulation.executor=serial", *overrides])
    tracking = Tracking(str(folder.parent), folder.name, checkpoint_every_s=1e9)
    replace(job, tracking=tracking).run(resume=folder if folder.exists() else None)
    return time.process_time() - begun_s


def is_finished(folder: Path) -> bool:
    state = folder / "state.json"
    return state.exists() and json.loads(state.read_text())["state"] == "finished"


def compared(runs: Iterable[Path], target: float, beside: Sequence[Told] = ()) -> Comparison:
    return comparison([*(told_of(read_run(folder), "accuracy") for folder in runs), *beside], "accuracy", target)


def tell(found: Comparison, root: Path, before: str = "") -> None:
    """Print the table, and keep it beside the pictures."""
    said = f"{before}{bounds(found)}\n\n{table(found)}\n"
    print(f"\n{said}", flush=True)
    root.mkdir(parents=True, exist_ok=True)
    (root / "table.md").write_text(said)
    try:
        for picture in draw_compared(found, root):
            print(f"wrote {picture}")
    except MissingExtra as error:
        print(f"no pictures: {error}")


HEADINGS = ("setting", "accuracy at the end", "time a round", "shorter", "rounds to target", "time to target",
            "speed-up", "uplink", "fewer", "energy", "less")  # fmt: skip


def table(found: Comparison) -> str:
    """Return a Markdown table: what each setting came to, and against the first, what it took to the target."""
    first = _round_s(found.compared[0])
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(_cells(one, first)) + " |" for one in found.compared]
    return "\n".join(lines)


def _cells(one: Compared, first_s: float) -> list[str]:
    ends = [run.curve[-1].value for run in one.setting.runs]
    here_s = _round_s(one)
    cells = [
        one.setting.name.partition(" (")[0],
        f"{statistics.fmean(ends):.3f} ({min(ends):.3f} to {max(ends):.3f})",
        seconds(here_s), f"{first_s / here_s:.2f}",
    ]  # fmt: skip
    cost = one.cost
    if cost is None:
        never = f"in {one.reached} of {len(one.setting.runs)} seeds" if one.reached else "never"
        return [*cells, never, *[""] * 6]
    less = {axis: f"{ratio:.2f}" for axis, ratio in one.ratios.items()}
    return [
        *cells, f"{cost.rounds:.1f}", seconds(cost.time_s), less.get("time_s", "1"),
        quantity(cost.uplink_bits, "bit"), less.get("uplink_bits", "1"),
        quantity(cost.energy_j, "J"), less.get("energy_j", "1"),
    ]  # fmt: skip


def _round_s(one: Compared) -> float:
    """Return how long a round took, in the mean."""
    return statistics.fmean((run.curve[-1].time_s or 0.0) / run.curve[-1].round for run in one.setting.runs)


def bounds(found: Comparison) -> str:
    """Say what the first setting's sending and computing are to each other, and what that bounds."""
    accounts = [run.account for run in found.settings[0].runs if run.account is not None]
    computing_s = statistics.fmean(one.computing_s or 0.0 for one in accounts)
    sending_s = statistics.fmean((one.sending_s or 0.0) + (one.queueing_s or 0.0) for one in accounts)
    computing, sending = (sum(getattr(one.split(), name) for one in accounts)
                          for name in ("computing_ns", "sending_ns"))  # fmt: skip
    return (
        f"{found.settings[0].name}: T_comp {seconds(computing_s)} and T_tx {seconds(sending_s)}, medians over tasks: "
        f"1 + T_tx / T_comp = {1 + sending_s / computing_s:.2f}; over whole rounds (slowest computing, and what the "
        f"round lasted beyond it) {1 + sending / computing:.2f}"
    )
