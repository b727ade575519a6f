"""Jobs whose updates travel encoded, as several tests run them."""

from pathlib import Path
from typing import Any

import torch
from devices import deployed
from networks import small_job

import roundelay as rd
from roundelay.messages import Memory

SERIAL = rd.Simulation(executor="serial")
DELTA = rd.SendOnDelta(threshold=0.45)
UPLINKS = {
    "4 bits": rd.Uplink(codec=rd.QSGD(bits=4)),
    "the largest, with feedback": rd.Uplink(codec=rd.TopK(fraction=0.1), feedback="error"),
    "2 rotated bits": rd.Uplink(codec=rd.EDEN(bits=2), difference=False),
    "the largest, ef21": rd.Uplink(codec=rd.TopK(fraction=0.1), feedback="ef21"),
    "silence excludes": rd.Uplink(codec=rd.FP16(), trigger=DELTA, on_silence="exclude"),
    "silence is zero": rd.Uplink(codec=rd.Sign(), feedback="error", trigger=DELTA, on_silence="zero"),
    "silence reuses": rd.Uplink(trigger=DELTA, on_silence="reuse"),
    "silence while the model moves": rd.Uplink(trigger=rd.Lag(xi=4.0, depth=2), on_silence="reuse"),
}
EF21, FEEDBACK = UPLINKS["the largest, ef21"], UPLINKS["the largest, with feedback"]


def job(root: Path, **changes: Any) -> rd.Job:  # Any: a job's fields
    kept = rd.Tracking(root=str(root / "runs"), checkpoint_every_s=0.0)
    return small_job(**{"num_rounds": 3, "simulation": SERIAL, "tracking": kept, "clients_per_round": 4, **changes})


def served(given: rd.Job) -> rd.History:
    with deployed(given.prepared()) as deployment:
        for _ in deployment.run:
            pass
    return deployment.run.history()


def checkpoint(history: rd.History) -> dict[str, Any]:  # Any: see tracking/checkpoint.py
    assert history.run_folder is not None
    return dict(torch.load(history.run_folder / "checkpoint.pt", weights_only=True))


def memories(history: rd.History) -> dict[str, Memory]:
    return dict(checkpoint(history)["memory"])
