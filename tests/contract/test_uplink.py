"""Encoded updates: one result wherever clients are, bytes as they were sent, and nothing pending that counts."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployments import caught, require_same, rows
from devices import deployed
from networks import Plain, small_job
from own_workflows import fedavg
from torch import Tensor

import roundelay as rd
from roundelay import trainer
from roundelay.bookkeeping import Bookkeeping
from roundelay.config import parts_of
from roundelay.errors import ConfigError
from roundelay.intake import Intake, Outcome
from roundelay.messages import Memory, Payload, Task
from roundelay.simulation.federation import SimulatedFederation
from roundelay.stages.decoding import Decoder
from roundelay.stages.uplink import Coded, Uplink, coded

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
}
EF21, FEEDBACK = UPLINKS["the largest, ef21"], UPLINKS["the largest, with feedback"]
each = pytest.mark.parametrize("uplink", UPLINKS.values(), ids=UPLINKS)


def job(root: Path, **changes: Any) -> rd.Job:  # Any: a job's fields
    kept = rd.Tracking(root=str(root / "runs"), checkpoint_every_s=0.0)
    return small_job(**{"num_rounds": 3, "simulation": SERIAL, "tracking": kept, "clients_per_round": 4, **changes})


def served(given: rd.Job) -> rd.History:
    with deployed(given.prepared()) as deployment:
        for _ in deployment.run:
            pass
    return deployment.run.history()


def memories(history: rd.History) -> dict[str, Memory]:
    assert history.run_folder is not None
    return dict(torch.load(history.run_folder / "checkpoint.pt", weights_only=True)["memory"])


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
    "cross-site": {"workflow": rd.CrossSite(), "uplink": FEEDBACK},
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


# ---- what is pending -------------------------------------------------------------------------------------------------


def late_in_the_second_round(client: str, task: Task) -> float:
    return 2.0 if (client, task.round) == ("c2", 2) else 0.5


def check_pending(root: Path) -> None:
    """The contract: what a late client would have kept for its uplink is not kept, and the server, where it follows
    its clients, holds what each of them holds.
    """
    for uplink in (FEEDBACK, EF21):
        pace = replace(SERIAL, duration=late_in_the_second_round)
        given = job(root, uplink=uplink, simulation=pace, workflow=rd.Rounds(deadline_s=1.0), clients_per_round=6)
        before, after = (memories(replace(given, num_rounds=number).run()) for number in (1, 2))
        assert torch.equal(after["c2"]["uplink params"], before["c2"]["uplink params"])
        assert not torch.equal(after["c1"]["uplink params"], before["c1"]["uplink params"])
    folder = given.run().run_folder
    assert folder is not None
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    for client, memory in content["memory"].items():
        assert torch.equal(content["heard"][client]["params"], memory["uplink params"]), client


def test_what_a_client_keeps_for_its_uplink_is_pending(tmp_path: Path) -> None:
    check_pending(tmp_path)


def kept_though_late(patch: pytest.MonkeyPatch) -> None:
    original = SimulatedFederation.train

    async def planted(self: SimulatedFederation, *args: Any, **settings: Any) -> Outcome:
        outcome = await original(self, *args, **settings)
        for report in outcome.reports:
            if report.status == "late":
                self._memory.commit({report.client: {"uplink params": torch.ones(1)}})
        return outcome

    patch.setattr(SimulatedFederation, "train", planted)


def heard_of_nobody(patch: pytest.MonkeyPatch) -> None:
    original = Intake.close

    def planted(self: Intake) -> Outcome:
        outcome = original(self)
        return replace(outcome, heard={client: {"params": v["params"] * 0} for client, v in outcome.heard.items()})

    patch.setattr(Intake, "close", planted)


test_the_check_of_what_is_pending_catches = caught(
    check_pending, {"kept though late": kept_though_late, "the server holds another vector": heard_of_nobody}
)


def check_base(root: Path) -> None:
    """The contract: an increment is added to the model that it was taken from, not to the newest one."""
    pace = replace(SERIAL, duration=lambda client, task: 1.0 + int(client[1:]))
    settings: dict[str, Any] = {"workflow": rd.Buffered(buffer_size=2, concurrency=4), "simulation": pace}
    given = job(root, model=Plain, num_rounds=4, **settings)
    plain, other = given.run(), replace(given, uplink=rd.Uplink()).run()
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(value, other.model.state_dict()[name], atol=1e-5), name


def test_an_increment_is_added_to_the_model_that_it_was_taken_from(tmp_path: Path) -> None:
    check_base(tmp_path)


def the_newest_base(patch: pytest.MonkeyPatch) -> None:
    sent: list[Payload] = []
    broadcast, decoder = Bookkeeping._broadcast, Bookkeeping._decoder

    def noted(self: Bookkeeping, *args: Any) -> Any:
        cast = broadcast(self, *args)
        sent.append(cast.received)
        return cast

    patch.setattr(Bookkeeping, "_broadcast", noted)
    patch.setattr(Bookkeeping, "_decoder", lambda self, _, heard: decoder(self, sent[-1], heard))


test_the_check_of_the_base_catches = caught(check_base, {"the newest model": the_newest_base})


# ---- what hostile clients send ---------------------------------------------------------------------------------------


def truncated(data: Tensor) -> Tensor:
    return data[:-1]


def extended(data: Tensor) -> Tensor:
    return torch.cat([data, data.new_zeros(1)])


def noise(data: Tensor) -> Tensor:
    return torch.full_like(data, 255)


HOSTILE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "truncated": truncated,
    "too long": extended,
    "all bits set": noise,
    "nothing": lambda data: data[:0],
    "raw zeros": lambda data: torch.zeros(146),
    "not finite": lambda data: torch.full((146,), torch.nan),
    "integers": lambda data: torch.zeros(len(data), dtype=torch.int64),
}


@pytest.mark.parametrize("alter", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_encoding_costs_its_own_client_the_round(
    tmp_path: Path, alter: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(own: Uplink, seed: int, task: Task, *rest: Any) -> Coded:
        came = coded(own, seed, task, *rest)
        if task.client != "c1":
            return came
        return replace(came, payload=replace(came.payload, vectors={"params": alter(came.payload.vectors["params"])}))

    def fails(own: Uplink, seed: int, task: Task, *rest: Any) -> Coded:
        if task.client == "c1":
            raise OSError("it is gone")
        return coded(own, seed, task, *rest)

    given = job(tmp_path, uplink=EF21, model=Plain, clients_per_round=6)
    monkeypatch.setattr(trainer, "coded", fails)
    without = given.run()
    monkeypatch.setattr(trainer, "coded", hostile)
    for history in (given.run(), served(given)):
        assert history.sha256 == without.sha256
        told = [row for row in history.clients() if row["status"] == "refused"]
        assert [row["client"] for row in told] == ["c1"] * 3
        assert all("client 'c1'" in row["reason"] for row in told)


def test_who_says_that_it_sends_nothing_where_nobody_may_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "coded", lambda own, seed, task, *rest: replace(
        coded(own, seed, task, *rest), silent=task.client == "c1"))  # fmt: skip
    history = job(tmp_path, uplink=FEEDBACK, clients_per_round=6, num_rounds=1).run()
    (row,) = (row for row in history.clients() if row["status"] == "refused")
    assert row["client"] == "c1"
    assert "this job has no trigger" in row["reason"]


def test_attacks_alter_what_the_codec_is_given(tmp_path: Path) -> None:
    """What is told as a lie about 32 bits is the lie itself."""
    attacks = (rd.attacks.SignFlip(clients=("c1",), scale=3.0),)
    for changes in ({}, {"algorithm": rd.Scaffold()}):
        given = job(tmp_path, attacks=attacks, clients_per_round=6, **changes)
        assert given.run().sha256 == replace(given, uplink=rd.Uplink(difference=False)).run().sha256
    for uplink in (EF21, FEEDBACK):
        given = job(tmp_path, uplink=uplink, attacks=(*attacks, rd.attacks.ALIE(clients=("c2",))), clients_per_round=6)
        history = given.run()
        assert [row["admitted"] for row in history.rows] == [6, 6, 6]
        assert history.sha256 == given.run(rd.Simulation(num_workers=2)).sha256


# ---- silence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_silence", ["exclude", "zero", "reuse"])
def test_a_job_in_which_nobody_ever_speaks_keeps_its_model_and_ends(tmp_path: Path, on_silence: str) -> None:
    never = rd.Uplink(trigger=rd.SendOnDelta(threshold=float("inf")), on_silence=on_silence)
    given = job(tmp_path, model=Plain, uplink=never)
    first = given.prepared().work.initial_module()
    for history in (given.run(), served(given)):
        for name, value in history.model.state_dict().items():
            assert torch.equal(value, first.state_dict()[name])
        assert [row["silent"] for row in history.rows] == [4, 4, 4]
        assert [row["bytes_up"] for row in history.rows] == [4, 4, 4]
        silent = "silent" if on_silence == "exclude" else "admitted"
        assert {row["status"] for row in history.clients()} == {silent}
    spoke = replace(never, trigger=rd.MaxSilence(rounds=1, then=never.trigger))
    assert [row["silent"] for row in job(tmp_path, uplink=spoke, clients_per_round=6).run().rows] == [6, 0, 6]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a class": ({"uplink": lambda: rd.Uplink(codec=rd.QSGD)}, "codec must be one such as"),
    "feedback": ({"uplink": lambda: rd.Uplink(feedback="some")}, "feedback must be one of 'none', 'error', 'ef21'"),
    "no rule for silence": ({"uplink": lambda: rd.Uplink(trigger=DELTA)}, "on_silence must be one of"),
    "feedback and reuse": (
        {"uplink": lambda: rd.Uplink(trigger=DELTA, on_silence="reuse", feedback="error")}, "use feedback = 'ef21'",
    ),
    "a buffer that waits": (
        {"uplink": lambda: UPLINKS["silence excludes"], "workflow": rd.Buffered(buffer_size=2)}, "a buffer waits",
    ),
    "a buffer that goes on": ({"uplink": lambda: EF21, "workflow": rd.Buffered(buffer_size=2)}, "outlive them"),
    "memory": ({"uplink": lambda: UPLINKS["silence is zero"], "algorithm": rd.FedDyn(alpha=0.1)}, "a client of FedDyn would"),
    "several models": ({"uplink": lambda: FEEDBACK, "algorithm": rd.IFCA(num_clusters=2)}, "uplink difference compares"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_mean_what_it_says_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        job(tmp_path, **{**changes, "uplink": changes["uplink"]()}).run()


def test_links_are_written_in_job_files_and_read_back(tmp_path: Path) -> None:
    for uplink in UPLINKS.values():
        given = job(tmp_path, uplink=uplink, downlink=rd.Downlink(codec=rd.Int8()))
        document = tomllib.loads(given.to_toml())
        parts = parts_of({name: document[name] for name in ("uplink", "downlink")})
        assert parts == {"uplink": uplink, "downlink": given.downlink}
