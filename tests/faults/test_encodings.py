"""Hostile encodings cost their own client the round, by name; attacks alter what the codec is given."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Plain
from torch import Tensor
from uplinks import EF21, FEEDBACK, job, served

import roundelay as rd
from roundelay import trainer
from roundelay.messages import Task
from roundelay.stages.uplink import Coded, Uplink, coded

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
