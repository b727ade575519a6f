"""Seven codecs on one cell: what does each save, where sending takes a tenth of computing, as long, or ten times that?

    python examples/wireless/codec_sweep.py

20 UEs with real digits share an uplink (job.toml). In synchronous rounds what is trained depends on codec and seed, not
on the clock: 7 x 3 runs are trained, two at a time, and each is then put on the clocks of the other two ratios. One UE
that trains alone, and sends nothing, is beside them. With CIFAR-10's files at hand:

    python examples/wireless/codec_sweep.py --cifar10 FOLDER --target 0.4
"""

import argparse
import json
import time
from pathlib import Path

import sweeping

from roundelay.reclocking import reclocked
from roundelay.report.comparing import Point, Told
from roundelay.tracking.run_folder import Tracking, read_rows

CODECS = {
    "fp32": ['uplink.codec="fp32"'],
    "fp16": ['uplink.codec="fp16"'],
    "int8": ['uplink.codec="int8"'],
    "qsgd-4bit": ['uplink.codec={use="qsgd", bits=4}'],
    "eden-2bit": ['uplink.codec={use="eden", bits=2}'],
    "eden-1bit": ['uplink.codec={use="eden", bits=1}'],
    "top-1pc": ['uplink.codec={use="top_k", fraction=0.01}', 'uplink.feedback="error"'],
}
TRAINED, OTHERS = 1.0, (0.1, 10.0)
LONGER = 4
"""A UE alone trains so many times as many rounds: it is asked in each of them, and does not wait."""


def main() -> None:
    parser = sweeping.arguments(__doc__ or "", "codecs", target=0.9)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="CIFAR-10 (binary version) in place of digits")
    asked = parser.parse_args()
    begun_s = time.monotonic()
    if asked.cifar10 is not None:
        asked.set += [f'data={{use="cifar10", folder="{asked.cifar10.resolve()}"}}', "model=lenet"]
    chosen = {name: CODECS[name] for name in asked.only or CODECS}
    runs = sweeping.trained(sweeping.HERE / "job.toml", _root(asked, TRAINED), chosen, asked)
    alone = trained_alone(runs[next(iter(chosen))], asked)
    for ratio in sorted((TRAINED, *OTHERS)):
        if ratio != TRAINED:
            runs_there = [put_on(folder, ratio, asked) for folders in runs.values() for folder in folders]
        else:
            runs_there = [folder for folders in runs.values() for folder in folders]
        scaled = [_factor(_root(asked, ratio) / folder.name) for folder in runs[next(iter(chosen))]]
        beside = [told_alone(folder, factor) for folder, factor in zip(alone, scaled, strict=True)]
        found = sweeping.compared(runs_there, asked.target, beside)
        sweeping.tell(found, asked.out / f"told-{ratio:g}", f"transmit / compute {ratio:g}. ")
    print(f"{time.monotonic() - begun_s:.0f} s in all")


def _root(asked: argparse.Namespace, ratio: float) -> Path:
    root: Path = asked.out / f"ratio-{ratio:g}"
    return root


def put_on(run: Path, ratio: float, asked: argparse.Namespace) -> Path:
    """Return a trained run as it would have been under another ratio."""
    folder = _root(asked, ratio) / run.name
    if not sweeping.is_finished(folder):
        ratio_there = f"simulation.network.transmit_over_compute={ratio}"
        reclocked(run, [ratio_there], Tracking(str(folder.parent), folder.name))
    return folder


def trained_alone(runs: list[Path], asked: argparse.Namespace) -> list[Path]:
    """Train, for each seed, the UE whose number of examples is the median one, on what it holds."""
    folders = []
    for run, seed in zip(runs, asked.seeds, strict=True):
        split = json.loads((run / "split.json").read_text())
        parts = sorted(split["clients"].items(), key=lambda part: len(part[1]))
        name, part = parts[len(parts) // 2]
        file = asked.out / f"alone-seed{seed}.json"
        file.write_text(json.dumps({**split, "clients": {name: part}}))
        num_rounds = LONGER * len(read_rows(run / "metrics.jsonl"))
        settings = [f'partition={{use="fromfile", path="{file}"}}', "clients_per_round=1"]
        one = argparse.Namespace(**{**vars(asked), "seeds": [seed], "set": [*asked.set, f"num_rounds={num_rounds}"]})
        folders += sweeping.trained(sweeping.HERE / "job.toml", asked.out, {"alone": settings}, one)["alone"]
    return folders


def told_alone(run: Path, factor: float) -> Told:
    """Return a UE alone as it compares: it sends nothing, and computes as fast as it does among the others."""
    scale = factor / _factor(run)
    spent = {
        row["round"]: (row["end_ns"] - row["start_ns"], row["energy_j"])
        for row in read_rows(run / "ledger.jsonl")
        if row["row"] == "computation"
    }
    curve, ns, energy_j = [], 0.0, 0.0
    for row in read_rows(run / "metrics.jsonl"):
        took_ns, took_j = spent[row["round"]]
        ns, energy_j = ns + scale * took_ns, energy_j + scale * took_j
        curve.append(Point(row["round"], row["accuracy"], ns / 1e9, 0, energy_j))
    seed = json.loads((run / "run.json").read_text())["seed"]
    return Told(run.name, {"alone": True, "seed": seed}, curve)


def _factor(run: Path) -> float:
    factor: float = json.loads((run / "calibration.json").read_text())["factor"]
    return factor


if __name__ == "__main__":
    main()
