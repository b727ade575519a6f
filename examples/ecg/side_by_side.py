"""Heartbeats by patient: one model for all, a model for each, and what lies between them.

    python examples/ecg/side_by_side.py --data FOLDER
    python examples/ecg/side_by_side.py --data FOLDER --leave-one-out

The first command trains the reference task (task:ecg) in six settings for three seeds. Every setting goes through each
patient's beats as often, and each patient is tested on the later half of its own beats. The second leaves one patient
out at a time: all of that patient's beats are tested on a model that was trained without them. What was trained already
is not trained again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from roundelay import config
from roundelay.data import Examples, FederatedData
from roundelay.data.ecg import CLASSES, heartbeats
from roundelay.errors import MissingExtra
from roundelay.learner import ClassRates, MacroF1
from roundelay.report.clients import last_evaluations
from roundelay.report.plots import plot_partition, plot_rounds
from roundelay.tracking.run_folder import Tracking, read_rows

ALL = "all"
SETTINGS: Mapping[str, Sequence[str]] = {
    "centralised": [],
    "local only": ["algorithm={use='ditto', strength=0.0}"],
    "FedAvg": [],
    "FedProx": ["algorithm={use='fedprox', mu=0.1}"],
    "FedBN": ["keep_local=['@batch_norm']"],
    "Ditto": ["algorithm={use='ditto', strength=0.1}"],
}
"""What each changes in the task; "centralised" has all patients as one client. Ditto without a pull to the global model
trains each client's own model alone.
"""

FOR_STRANGERS = ("centralised", "FedAvg", "FedProx")
"""Those that end in a model for somebody who never took part."""

F1, RATES = MacroF1(num_classes=2), ClassRates(num_classes=2)


@dataclass(frozen=True)
class Result:
    """One run, from its confusion matrices by patient, (1, 4) each; patients' values from the same, or as told."""

    f1: Mapping[str, float]
    pooled: Mapping[str, float]

    @classmethod
    def of(cls, counts: Mapping[str, Tensor]) -> "Result":
        together = torch.cat(list(counts.values()))
        own = {patient: F1.result(rows)["macro_f1"] for patient, rows in counts.items()}
        return cls(own, {**F1.result(together), **RATES.result(together)})

    @property
    def mean(self) -> float:
        return statistics.fmean(self.f1.values())

    @property
    def worst(self) -> float:
        return min(self.f1.values())


def main() -> None:
    asked = _arguments()
    data = heartbeats(asked.data)
    patients = list(asked.patients or data.clients)
    begun_s = time.monotonic()
    asked.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: SETTINGS[name] for name in asked.only or SETTINGS}
    if asked.leave_one_out:
        chosen = {name: settings for name, settings in chosen.items() if name in FOR_STRANGERS}
        found = left_out(chosen, patients, data, asked)
        tell(found, asked.out / "left_out.md")
    else:
        found = side_by_side(chosen, patients, data, asked)
        tell(found, asked.out / "side_by_side.md")
        draw(list(chosen), patients, data, asked)
    print(f"{time.monotonic() - begun_s:.0f} s in all")


def side_by_side(
    chosen: Mapping[str, Sequence[str]], patients: Sequence[str], data: FederatedData, asked: argparse.Namespace
) -> dict[str, list[Result]]:
    """Train each setting for each seed; every patient is tested on its own later beats."""
    wanted = {_folder(asked, name, seed): [*settings, _who(name, patients), f"seed={seed}"]
              for name, settings in chosen.items() for seed in asked.seeds}  # fmt: skip
    train(wanted, asked)
    tests = {patient: _there(data.test(patient)) for patient in patients}
    found = {}
    for name in chosen:
        folders = [_folder(asked, name, seed) for seed in asked.seeds]
        found[name] = [Result.of({patient: counts(folder, test) for patient, test in tests.items()})
                       if name == "centralised" else told(folder) for folder in folders]  # fmt: skip
    return found


def left_out(
    chosen: Mapping[str, Sequence[str]], patients: Sequence[str], data: FederatedData, asked: argparse.Namespace
) -> dict[str, list[Result]]:
    """Train each setting, for each seed, without each patient in turn; all the beats of that patient are the test."""
    seldom = ["evaluation.clients_every=0", "evaluation.every=1000"]
    wanted = {
        _folder(asked, f"{name} without {patient}", seed):
            [*settings, _who(name, [p for p in patients if p != patient]), *seldom, f"seed={seed}"]
        for name, settings in chosen.items() for patient in patients for seed in asked.seeds
    }  # fmt: skip
    train(wanted, asked)
    beats = {patient: _there(heartbeats(asked.data, patients=[], held_out=[patient]).held_out) for patient in patients}
    return {
        name: [Result.of({patient: counts(_folder(asked, f"{name} without {patient}", seed), beats[patient])
                          for patient in patients}) for seed in asked.seeds]
        for name in chosen
    }  # fmt: skip


def train(wanted: Mapping[Path, Sequence[str]], asked: argparse.Namespace) -> None:
    """Train the runs that are not there yet."""
    data = f"data.folder={json.dumps(str(asked.data.absolute()))}"
    todo = [(folder, [data, *settings, *asked.set]) for folder, settings in wanted.items() if not _is_finished(folder)]
    begun_s = time.monotonic()
    with ProcessPoolExecutor(asked.processes, get_context("spawn")) as pool:
        spent_s = sum(pool.map(_train, *zip(*todo, strict=True))) if todo else 0.0
    print(f"trained {len(todo)} runs: {time.monotonic() - begun_s:.0f} s, {spent_s:.0f} s of CPU time", flush=True)


def _train(folder: Path, overrides: Sequence[str]) -> float:
    """Train one run in this process; return the CPU time that it took."""
    torch.set_num_threads(1)
    begun_s = time.process_time()
    job = config.load("task:ecg", ["simulation.executor=serial", *overrides])
    tracking = Tracking(str(folder.parent), folder.name, checkpoint_every_s=1e9)
    replace(job, tracking=tracking).run(resume=folder if folder.exists() else None)
    return time.process_time() - begun_s


def told(folder: Path) -> Result:
    """Return what the patients measured in the last round, each the model that it would use."""
    evaluated = last_evaluations(folder)
    assert evaluated is not None, f"{folder}: no client evaluated"
    row = read_rows(folder / "metrics.jsonl")[-1]
    pooled = {name.removeprefix("pooled_"): value for name, value in row.items() if name.startswith("pooled_")}
    return Result(evaluated.by_client("macro_f1"), pooled)


@torch.no_grad()
def counts(folder: Path, examples: Examples) -> Tensor:
    """Return the confusion matrix, (1, 4), of a run's last model on some beats."""
    model = config.load(folder / "job.toml").model()  # type: ignore[operator]  # of a job file, it is a function
    model.load_state_dict(torch.load(folder / "last.pt", weights_only=True))
    model.eval()
    batches = examples.batches(torch.arange(len(examples)), 512)
    return torch.cat([F1.rows(model(inputs), targets) for inputs, targets in batches]).sum(0, keepdim=True)


# ---- telling --------------------------------------------------------------------------------------------------------


def tell(found: Mapping[str, Sequence[Result]], file: Path) -> None:
    """Print both tables, means over seeds with the range behind, and keep them."""
    head = ["setting", "macro-F1, all beats", "mean over patients", "worst patient", "PVC recall", "PVC precision"]
    lines = [_line(head), _line(["---"] * len(head))]
    for name, results in found.items():
        told_of = [[one.pooled["macro_f1"], one.mean, one.worst, one.pooled["recall_1"], one.pooled["precision_1"]]
                   for one in results]  # fmt: skip
        lines.append(_line([name, *map(_with_range, zip(*told_of, strict=True))]))
    lines += ["", _line(["patient", *found]), _line(["---"] * (1 + len(found)))]
    for patient in next(iter(found.values()))[0].f1:
        means = [statistics.fmean(one.f1.get(patient, float("nan")) for one in results) for results in found.values()]
        lines.append(_line([patient, *(f"{mean:.3f}" for mean in means)]))
    text = "\n".join(lines) + "\n"
    print(f"\n{text}", flush=True)
    file.write_text(text)


def draw(chosen: Sequence[str], patients: Sequence[str], data: FederatedData, asked: argparse.Namespace) -> None:
    """Draw who has which beats, in training and test together, and the first seed's curves."""
    labels = [torch.cat([data.train(one).labels(), _there(data.test(one)).labels()]) for one in patients]
    beats = torch.stack([torch.bincount(one, minlength=len(CLASSES)) for one in labels])
    runs = {name: read_rows(_folder(asked, name, asked.seeds[0]) / "metrics.jsonl") for name in chosen}
    try:
        plot_partition(beats, patients, asked.out / "beats.png", CLASSES)
        plot_rounds(runs, "pooled_macro_f1", asked.out / "pooled_macro_f1.png")
    except MissingExtra as error:
        print(f"no pictures: {error}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _with_range(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _who(name: str, patients: Sequence[str]) -> str:
    """Return whose data is whose: in the centralised setting one client has all."""
    return f"data.patients={json.dumps(list(patients))}" if name != "centralised" else (
        f"data.patients={{{ALL}={json.dumps(list(patients))}}}"
    )  # fmt: skip


def _there(examples: Examples | None) -> Examples:
    assert examples is not None, "every patient has beats to test"
    return examples


def _folder(asked: argparse.Namespace, name: str, seed: int) -> Path:
    folder: Path = asked.out / f"{name.replace(' ', '-')}-seed{seed}"
    return folder


def _is_finished(folder: Path) -> bool:
    state = folder / "state.json"
    return state.exists() and json.loads(state.read_text())["state"] == "finished"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/ecg"), metavar="FOLDER", help="the WFDB records")
    parser.add_argument("--out", type=Path, default=Path("runs/ecg"), help="where runs, tables and pictures go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--patients", nargs="+", help="these only; all that there are unless given")
    parser.add_argument("--processes", type=int, default=2, help="so many runs at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run: num_rounds=2")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, help="these settings")
    parser.add_argument("--leave-one-out", action="store_true", help="test on patients who took no part")
    return parser.parse_args()


if __name__ == "__main__":
    main()
