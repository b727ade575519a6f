"""Average precision of every device and of all of them together is pycocotools' own on the same detections."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from deployments import require_same
from photographs import some, voc_folder
from reference_coco import by_pycocotools
from support import data_folder
from torch import Tensor, nn
from uplinks import served

import roundelay as rd
from roundelay.data.augment_boxes import FlipBoxes
from roundelay.data.detection import DetectionExamples, voc
from roundelay.learner import CocoAP, VocAP, detection_loss
from roundelay.models import GridDetector
from roundelay.models.detected import Detected


def job(folder: Path, num_rounds: int, model: partial[GridDetector], **settings: object) -> rd.Job:
    return rd.Job(
        model=model, data=partial(voc, folder, **settings), num_rounds=num_rounds,
        learner=rd.LocalSGD(lr=0.005, batch_size=6, local_epochs=4, optimizer="adamw", loss=detection_loss),
        evaluation=rd.Evaluation(every=1, clients_every=1, batch_size=5, measures=(CocoAP(), VocAP())), tracking=None,
        stopping=rd.Stopping(metric="map_50"), simulation=rd.Simulation("serial"),
    )  # fmt: skip


def seen(module: nn.Module, examples: object) -> tuple[list[Tensor], Tensor]:
    assert isinstance(examples, DetectionExamples)
    inputs, targets = next(examples.batches(torch.arange(len(examples)), len(examples)))
    module.eval()
    with torch.no_grad():
        outputs = module(inputs)
    assert isinstance(outputs, Detected)
    return outputs.detections(), targets


def check_against_pycocotools(given: rd.Job) -> dict[str, float]:
    *_, last = given.rounds()
    module = given.prepared().work.initial_module()
    module.load_state_dict(last.state_dict())
    data = given.prepared().work.data
    found, targets, weights, precisions = [], [], [], []
    own = {report.client: report.metrics for report in last.clients if report.status == "evaluated"}
    assert own.keys() == set(data.clients)
    for client in data.clients:
        of_client = seen(module, data.test(client))
        expected = by_pycocotools(*of_client)
        assert {name: own[client][name] for name in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)
        found += of_client[0]
        targets.append(of_client[1])
        weights.append(len(of_client[0]))
        precisions.append(expected["map_50"])
    merged = by_pycocotools(found, torch.cat(targets))
    told = {name: last.row.get(f"pooled_{name}", float("nan")) for name in merged}
    assert told == pytest.approx(merged, abs=1e-9, nan_ok=True)
    mean = sum(weight * value for weight, value in zip(weights, precisions, strict=True)) / sum(weights)
    assert last.metrics["client_map_50"] == pytest.approx(mean, abs=1e-9)
    assert merged["map_50"] > 0
    return merged


def test_of_each_device_and_of_all_they_are_pycocotools_own(tmp_path: Path) -> None:
    parts = {"north": (some(10, 1), some(5, 2)), "south": (some(6, 3), some(9, 4)), "west": (some(5, 5), some(3, 6))}
    given = job(voc_folder(tmp_path, parts), 4, partial(GridDetector, 2, width=8, object_size=20.0), image_size=64)
    merged = check_against_pycocotools(given)
    assert merged["map_50"] > 0.05


@pytest.mark.slow
def test_of_the_real_devices_too() -> None:
    check_against_pycocotools(job(data_folder("trees"), 3, partial(GridDetector)))


def test_of_one_device_the_merged_ones_are_those_of_the_server_to_the_bit(tmp_path: Path) -> None:
    root = voc_folder(tmp_path, {"north": (some(8, 1), some(7, 2))})
    given = job(root, 2, partial(GridDetector, 2, width=8, object_size=20.0), image_size=64)
    names = [*CocoAP().result(torch.zeros(0, 8)), *VocAP().result(torch.zeros(0, 4))]
    for one in given.rounds():
        known = [name for name in names if one.metrics.get(name) == one.metrics.get(name)]
        assert {"map", "map_50", "recall_100", "voc_map"} <= set(known)
        for name in known:
            assert one.row[f"pooled_{name}"] == one.row[name], name
            assert one.row[f"client_{name}"] == pytest.approx(one.row[name], rel=1e-15), name
        assert one.row["client_loss"] == pytest.approx(one.row["loss"], rel=1e-15)


def test_on_devices_and_in_workers_it_ends_in_the_bits_of_one_process(tmp_path: Path) -> None:
    parts = {"north": (some(6, 1), some(5, 2)), "south": (some(4, 3), some(3, 4))}
    root = voc_folder(tmp_path / "data", parts)
    given = job(root, 2, partial(GridDetector, 2, width=8, object_size=20.0), image_size=64)
    given = replace(
        given, tracking=rd.Tracking(root=str(tmp_path / "runs")),
        learner=replace(given.learner, local_epochs=1, augment=FlipBoxes(0.5, 0.5)),
    )  # fmt: skip
    simulated = given.run()
    require_same(simulated, served(given))
    require_same(simulated, given.run(rd.Simulation("processes", num_workers=2)))
