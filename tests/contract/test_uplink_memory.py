"""What clients and server keep of encoded updates: pending, the same on both ends, and what silence means."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployments import caught
from networks import Plain
from uplinks import DELTA, EF21, FEEDBACK, SERIAL, UPLINKS, checkpoint, job, memories, served

import roundelay as rd
from roundelay import trainer
from roundelay.bookkeeping import Bookkeeping
from roundelay.config import parts_of
from roundelay.errors import ConfigError
from roundelay.intake import Intake, Outcome
from roundelay.messages import Memory, Payload, Task
from roundelay.simulation.federation import SimulatedFederation
from roundelay.stages.uplink import Coded, Uplink, coded

# ---- what is pending -------------------------------------------------------------------------------------------------


def late_in_the_second_round(client: str, task: Task) -> float:
    return 2.0 if (client, task.round) == ("c2", 2) else 0.5


def spoiled_in_the_second_round(own: Uplink, seed: int, task: Task, *rest: Any) -> Coded:
    came = coded(own, seed, task, *rest)
    if (task.client, task.round) != ("c2", 2):
        return came
    return replace(came, payload=replace(came.payload, vectors={"params": came.payload.vectors["params"][:-1]}))


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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "coded", spoiled_in_the_second_round)
            refused = job(root, uplink=uplink, clients_per_round=6, num_rounds=2).run()
        assert [row["refused"] for row in refused.rows] == [0, 1]
        assert torch.equal(memories(refused)["c2"]["uplink params"], before["c2"]["uplink params"])
    content = checkpoint(given.run())
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


def kept_though_refused(patch: pytest.MonkeyPatch) -> None:
    original = Intake.arrive

    def planted(self: Intake, answer: Any) -> None:
        original(self, answer)
        if isinstance(answer, trainer.Answer):
            self._memories.setdefault(answer.update.task.client, dict(answer.memory))

    patch.setattr(Intake, "arrive", planted)


def heard_of_nobody(patch: pytest.MonkeyPatch) -> None:
    original = Intake.close

    def planted(self: Intake) -> Outcome:
        outcome = original(self)
        return replace(outcome, heard={client: {"params": v["params"] * 0} for client, v in outcome.heard.items()})

    patch.setattr(Intake, "close", planted)


test_the_check_of_what_is_pending_catches = caught(
    check_pending,
    {
        "kept though late": kept_though_late,
        "kept though refused": kept_though_refused,
        "the server holds another vector": heard_of_nobody,
    },
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


def test_a_client_that_has_lost_its_memory_says_so_and_both_ends_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(own: Uplink, seed: int, task: Task, received: Payload, payload: Payload, memory: Memory) -> Coded:
        return coded(own, seed, task, received, payload, {} if (task.client, task.round) == ("c1", 2) else memory)

    undisturbed = job(tmp_path, uplink=EF21, clients_per_round=6).run()
    monkeypatch.setattr(trainer, "coded", forgetful)
    history = job(tmp_path, uplink=EF21, clients_per_round=6).run()
    assert history.sha256 != undisturbed.sha256
    assert [row["admitted"] for row in history.rows] == [6, 6, 6]
    content = checkpoint(history)
    for client, memory in content["memory"].items():
        assert torch.equal(content["heard"][client]["params"], memory["uplink params"]), client


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
    "memory": ({"uplink": lambda: UPLINKS["silence is zero"], "algorithm": rd.FedDyn(alpha=0.1)}, "FedDyn would"),
    "several models": ({"uplink": lambda: FEEDBACK, "algorithm": rd.IFCA(num_clusters=2)}, "uplink difference"),
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
