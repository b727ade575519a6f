"""The numbers of signed requests against one dict: clients with several keys, captured requests, restarts."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from journal_bugs import Planting, keep_numbers_in_memory
from journals import advance, opened, quick_folder, sha256
from stateful import converse

from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Participant

CLIENT = st.sampled_from("ab")
KEY = st.sampled_from([sha256(b"a key"), sha256(b"another key")])


class Requests(RuleBasedStateMachine):
    """The model: the highest number by client and key. Both clients may have the same key, as no rule forbids it."""

    def __init__(self) -> None:
        super().__init__()
        self.root: tempfile.TemporaryDirectory[str] = quick_folder()
        self.journal: Journal = opened(Path(self.root.name) / "run")
        self.highest: dict[tuple[str, str], int] = {}

    def teardown(self) -> None:
        self.journal.close()
        self.root.cleanup()

    @rule(client=CLIENT, key=KEY)
    def admit(self, client: str, key: str) -> None:
        highest = self.highest.setdefault((client, key), -1)
        assert self.journal.clients.admit(client, key) == Participant(client, key, highest)

    @rule(client=CLIENT, key=KEY, sequence=st.integers(0, 3))
    def request(self, client: str, key: str, sequence: int) -> None:
        newer = (client, key) in self.highest and sequence > self.highest[client, key]
        assert advance(self.journal, client, key, sequence) is newer
        if newer:
            self.highest[client, key] = sequence

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = opened(Path(self.root.name) / "run")


def test_a_request_counts_once_for_the_key_that_signed_it() -> None:
    converse(Requests, examples=60, shrink=False)


@pytest.mark.slow
def test_a_request_counts_once_over_many_conversations() -> None:
    converse(Requests, examples=2000, shrink=False)


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def begin_anew_with_each_admission(patch: pytest.MonkeyPatch) -> None:
    def planted(self: Clients, client: str, key_digest: str) -> Participant:
        with self._db.writing("admitting") as db:
            db.execute("INSERT OR REPLACE INTO clients (client, key_digest) VALUES (?, ?)", (client, key_digest))
        return Participant(client, key_digest, -1)

    patch.setattr(Clients, "admit", planted)


def keep_the_last_key_only(patch: pytest.MonkeyPatch) -> None:
    """One row a client: back at its first key, it begins anew, and what was captured then is good once more."""
    admit = Clients.admit

    def planted(self: Clients, client: str, key_digest: str) -> Participant:
        with self._db.writing("forgetting") as db:
            db.execute("DELETE FROM clients WHERE client = ? AND key_digest <> ?", (client, key_digest))
        return admit(self, client, key_digest)

    patch.setattr(Clients, "admit", planted)


def count_for_whichever_key(patch: pytest.MonkeyPatch) -> None:
    """A number of the old key, noted when the new one is there, shuts the new one out."""

    def planted(self: Clients, requests: Sequence[tuple[str, str, int]]) -> list[bool]:
        sql = "UPDATE clients SET sequence = ?1 WHERE client = ?2 AND sequence < ?1"
        with self._db.writing("noting") as db:
            return [db.execute(sql, (number, client)).rowcount > 0 for client, _, number in requests]

    patch.setattr(Clients, "advance", planted)


@pytest.mark.parametrize(
    "plant",
    [keep_numbers_in_memory, begin_anew_with_each_admission, keep_the_last_key_only, count_for_whichever_key],
)
def test_the_dict_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        converse(Requests, examples=60, shrink=False)
