"""Encoded updates: one result wherever clients are, counted as they were sent, whatever is interrupted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployments import caught, require_same, rows
from devices import deployed
from networks import Plain
from own_workflows import fedavg
from uplinks import EF21, FEEDBACK, UPLINKS, job, served

import roundelay as rd
from roundelay import trainer
from roundelay.messages import Memory, Task
from roundelay.stages.decoding import Decoder
from roundelay.stages.uplink import Coded, Uplink, coded

each = pytest.mark.parametrize("uplink", UPLINKS.values(), ids=UPLINKS)


# ---- the same bits everywhere ----------------------------------------------------------------------------------------


@each
def test_a_pool_and_devices_end_in_the_bits_of_one_process(tmp_path: Path, uplink: Uplink) -> None:
    given = job(tmp_path, uplink=uplink)
    alone = given.run()
    if uplink.triggered:
        assert 0 < sum(row["silent"] for row in alone.rows) < 12, "a threshold that tells nothing"
    require_same(alone, given.run(rd.Simulation(num_workers=2)))
    require_same(alone, served(given))


JOBS: dict[str, dict[str, Any]] = {
    "scaffold": {"algorithm": rd.Scaffold(), "uplink": EF21},
    "fednova": {"algorithm": rd.FedNova(), "uplink": FEEDBACK},
    "hierarchical": {"workflow": rd.Hierarchical(3, edge_rounds=2), "uplink": EF21, "clients_per_round": 2},
    "cyclic": {"workflow": rd.Cyclic(), "uplink": EF21},
    "own workflow": {"workflow": fedavg, "uplink": EF21},
    "median": {"aggregator": rd.CoordinateMedian(), "uplink": FEEDBACK},
    "cross-site": {"workflow": rd.CrossSite(), "uplink": FEEDBACK, "downlink": rd.Downlink(codec=rd.FP16())},
    "both links": {"algorithm": rd.Scaffold(), "uplink": FEEDBACK, "downlink": rd.Downlink(codec=rd.Int8())},
}


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_whatever_the_job_devices_end_in_the_bits_of_the_simulation(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = job(tmp_path, num_rounds=2, **changes)
    alone = given.run()
    real = served(given)
    require_same(alone, real)
    assert real.records == alone.records


def test_a_workflow_of_ones_own_ends_in_the_bits_of_rounds(tmp_path: Path) -> None:
    for uplink in (EF21, UPLINKS["silence excludes"], UPLINKS["silence reuses"]):
        given = job(tmp_path, uplink=uplink, model=Plain)
        assert replace(given, workflow=fedavg).run().sha256 == given.run().sha256


def test_a_codec_that_loses_nothing_of_the_vectors_themselves_changes_no_bit(tmp_path: Path) -> None:
    for changes in ({}, {"algorithm": rd.Scaffold()}, {"workflow": rd.Buffered(buffer_size=2)}):
        given = job(tmp_path, **changes)
        plain, identity = given.run(), replace(given, uplink=rd.Uplink(difference=False)).run()
        assert plain.sha256 == identity.sha256
        assert rows(plain) == rows(identity)  # bytes too: 32 bits are 32 bits


def test_a_run_on_devices_is_reproduced_with_its_silence(tmp_path: Path) -> None:
    given = job(tmp_path, uplink=UPLINKS["silence excludes"], model=Plain)
    real = served(given)
    assert real.run_folder is not None
    require_same(real, given.run(replay=real.run_folder))


# ---- what is counted -------------------------------------------------------------------------------------------------


def check_bytes(root: Path) -> None:
    """The contract: a round's bytes are those of what was encoded, notices among them."""
    for uplink in (FEEDBACK, UPLINKS["silence excludes"]):
        sent: dict[int, int] = {}

        def heard(own: Uplink, seed: int, task: Task, *rest: Any, sent: dict[int, int] = sent) -> Coded:
            came = coded(own, seed, task, *rest)
            payload = came.payload
            tensors = [*payload.vectors.values(), payload.buffers, payload.integers]
            sent[task.round] = sent.get(task.round, 0) + sum(t.numel() * t.itemsize for t in tensors) + came.silent
            return came

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "coded", heard)
            history = job(root, uplink=uplink).run()
        assert [row["bytes_up"] for row in history.rows] == [sent[n] for n in (1, 2, 3)]
        raw = job(root).run()
        assert all(one["bytes_up"] < 4 * other["bytes_up"] for one, other in zip(history.rows, raw.rows, strict=True))


def test_bytes_are_those_that_were_sent(tmp_path: Path) -> None:
    check_bytes(tmp_path)


def nominal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Decoder, "num_bytes", lambda self, update: 4 * sum(self.lengths.values()))


def free_notices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Uplink, "skip_bytes", 0)


test_the_check_of_bytes_catches = caught(check_bytes, {"counted nominally": nominal, "for nothing": free_notices})


def test_a_broadcast_is_counted_as_encoded_once_for_everybody_who_is_asked(tmp_path: Path) -> None:
    given = job(tmp_path, model=Plain, downlink=rd.Downlink(codec=rd.Int8(block=64)))
    size = rd.Int8(block=64).max_bytes(sum(p.numel() for p in Plain().parameters()))
    history = given.run()
    assert [row["bytes_down"] for row in history.rows] == [4 * size] * 3
    require_same(history, given.run(rd.Simulation(num_workers=2)))
    require_same(history, served(given))


def test_a_broadcast_may_be_the_difference_to_what_was_decoded_last(tmp_path: Path) -> None:
    """Through a codec that loses nothing, clients train from the model, to rounding; and through one that loses most,
    from what was built up of it: to the same bits in a pool and after a resume.
    """
    given = job(tmp_path, model=Plain)
    plain = given.run().model.state_dict()
    exact = replace(given, downlink=rd.Downlink(difference=True)).run().model.state_dict()
    assert all(torch.allclose(value, exact[name], atol=1e-6) for name, value in plain.items())
    lossy = replace(given, downlink=rd.Downlink(codec=rd.TopK(fraction=0.2), difference=True), uplink=FEEDBACK)
    undisturbed = lossy.run()
    raw, *encoded = [row["bytes_down"] for row in undisturbed.rows]
    assert all(number < raw / 3 for number in encoded)
    require_same(undisturbed, lossy.run(rd.Simulation(num_workers=2)))
    run = lossy.start()
    for finished in run:
        if finished.number == 2:
            break
    assert run.folder is not None
    require_same(undisturbed, lossy.run(resume=run.folder))


# ---- interrupted -----------------------------------------------------------------------------------------------------


@each
def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path, uplink: Uplink) -> None:
    given = job(tmp_path, uplink=uplink, downlink=rd.Downlink(codec=rd.FP16()))
    undisturbed = given.run()
    run = given.start()
    for finished in run:
        if finished.number == 2:
            break
    assert run.folder is not None
    require_same(undisturbed, given.run(resume=run.folder))


@pytest.mark.parametrize("uplink", [EF21, UPLINKS["silence excludes"], UPLINKS["silence reuses"]])
@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1e9], ids=["checkpointed", "from the journal alone"])
def test_a_server_that_went_away_is_followed_by_one_that_knows_what_it_heard(
    tmp_path: Path, uplink: Uplink, checkpoint_every_s: float
) -> None:
    given = job(tmp_path, uplink=uplink)
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=checkpoint_every_s))
    undisturbed, kept = given.run(), dict[str, dict[int, Memory]]()
    with deployed(given.prepared(), memories=kept) as deployment:
        rounds = iter(deployment.run)
        next(rounds)
        next(rounds)
        folder = deployment.run.folder
        deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]  # as after kill -9
        rounds.close()
        asked = deployment.asked
    with deployed(given.prepared(), folder, kept) as deployment:
        for _ in deployment.run:
            pass
        again = deployment.asked
    require_same(undisturbed, deployment.run.history())
    assert not set(asked) & set(again)


def test_buffered_rounds_on_devices_go_the_same_way_again_from_their_journal(tmp_path: Path) -> None:
    changes = {"workflow": rd.Buffered(buffer_size=2, concurrency=4), "uplink": FEEDBACK, "model": Plain}
    given = job(tmp_path, **changes, downlink=rd.Downlink(codec=rd.FP16()))
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=1e9))
    kept, asked, came = dict[str, dict[int, Memory]](), list[set[int]](), list[rd.History]()
    folder: Path | None = None
    for _ in range(2):
        with deployed(given.prepared(), folder, kept) as deployment:
            folder, standing = deployment.run.folder, deployment.run.standing
            for finished in deployment.run:
                if finished.number == given.num_rounds:
                    standing.checkpoint = lambda: None  # type: ignore[method-assign]
            asked.append(set(deployment.asked))
            came.append(deployment.run.history())
    require_same(*came)
    assert not asked[0] & asked[1]
    raw = replace(given, uplink=None, downlink=None).run()
    assert all(one["bytes_up"] < other["bytes_up"] / 3 for one, other in zip(came[0].rows, raw.rows, strict=True))
    require_same(came[0], given.run(replay=folder))
