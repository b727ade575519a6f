"""Bytes that are wrong: every decoder answers with its own error, runs nothing, opens nothing, and stays small.

The decoders are in tests/decoders.py, the process that they are watched in is in tests/watched.py.
"""

import json
import math
import pickle
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from decoders import decoders
from figures import Figures
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from watched import Decoder, Report, mutated, run, watched

from roundelay import header
from roundelay.data import ecg
from roundelay.data.client_tables import Table
from roundelay.data.images import plain_pickle
from roundelay.data.split import Split
from roundelay.deployment.trust import members
from roundelay.errors import IdentityError
from roundelay.tracking import checkpoint

Only = Callable[[Decoder], bool]
SHORT, LONG = (1_500, 300), (100_000, 20_000)
"""How many inputs are mutated and generated, of all decoders together."""

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["../x", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def shaped(decoder: Decoder) -> st.SearchStrategy[bytes]:
    """Inputs made from nothing; where a decoder takes JSON, also objects with its own keys and any values."""
    anything = st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode())
    begun = st.builds(lambda raw, n, noise: raw[:n] + noise, st.sampled_from(decoder.seeds), st.integers(0, 400),
                      st.binary(max_size=64))  # fmt: skip
    try:
        content = json.loads(decoder.seeds[0])
    except ValueError:
        return begun | st.binary(max_size=300)
    if not isinstance(content, dict):
        return anything
    keys = {key: st.just(value) | VALUES for key, value in content.items()}
    return anything | st.fixed_dictionaries({}, optional=keys).map(lambda value: json.dumps(value).encode())


def generated(decoder: Decoder, count: int, number: int) -> list[bytes]:
    found: list[bytes] = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(shaped(decoder))
    def gather(raw: bytes) -> None:
        found.append(raw)

    gather()
    return found[:count]


def attacked(folder: Path, num_mutated: int, num_generated: int, number: int, only: Only = lambda _: True) -> Report:
    """Give all decoders their share of the inputs, in a process of its own."""

    def work() -> Report:
        chosen = [one for one in decoders(folder) if only(one)]
        shares = sum(one.share for one in chosen)
        inputs = []
        for at, one in enumerate(chosen):
            draw = random.Random(number * 1_000 + at)
            each = [math.ceil(total * one.share / shares) for total in (num_mutated, num_generated)]
            inputs.append(
                (one, [*mutated(one.seeds, each[0], draw, one.tokens), *generated(one, each[1], number + at)])
            )
        return run(inputs, folder)

    return watched(work, timeout_s=550)


def told(report: Report, figures: Figures) -> None:
    figures("inputs", report.num_inputs)
    figures("refused with the error that is meant", report.num_refused)
    figures("audit events", len(report.events))
    figures("slowest input", report.slowest_s * 1_000, "ms of CPU time")
    figures("most memory of one input", report.most_bytes / 2**20, "MiB")
    figures("process grown by", report.grown_bytes / 2**20, "MiB")


def test_decoders_refuse_what_is_wrong(tmp_path: Path, figures: Figures) -> None:
    report = attacked(tmp_path, *SHORT, number=0)
    told(report, figures)
    report.check()
    assert report.num_refused > report.num_inputs // 2


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_decoders_refuse_what_is_wrong_at_length(tmp_path: Path, figures: Figures, chaos_seed: int) -> None:
    report = attacked(tmp_path, *LONG, number=chaos_seed)
    told(report, figures)
    report.check()
    assert report.num_inputs >= sum(LONG)


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def numbers_by_eval(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(header, "DECODER", json.JSONDecoder(object_pairs_hook=header._object, parse_float=eval))


def names_of_a_pickle_looked_up(patch: pytest.MonkeyPatch) -> None:
    admitted = plain_pickle._Reader.find_class

    def planted(self: plain_pickle._Reader, module: str, name: str) -> object:
        known = (module, name) in plain_pickle.ADMITTED
        return admitted(self, module, name) if known else pickle.Unpickler.find_class(self, module, name)

    patch.setattr(plain_pickle._Reader, "find_class", planted)


def a_file_that_the_sender_names(patch: pytest.MonkeyPatch) -> None:
    def told(document: dict[str, object]) -> None:
        with suppress(FileNotFoundError):
            Path(str(document.get("format"))).with_suffix(".told").open().close()

    patch.setattr(Split, "_parse", told)


def room_for_whatever_is_numbered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plain_pickle, "_require_dense", lambda content: None)


def room_for_the_largest_secret(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(members, "read_secret", lambda path, limit: bytes(limit)[:0] + path.read_bytes())


def errors_of_the_parser(patch: pytest.MonkeyPatch) -> None:
    parse = header.parse

    def planted(raw: bytes, limits: header.Limits) -> header.Head:
        json.loads(raw[24:].decode())
        return parse(raw, limits)

    patch.setattr(header, "parse", planted)


def code_in_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def planted(path: Path, what: str) -> object:
        return torch.load(path, weights_only=False)

    patch.setattr(checkpoint, "load_saved", planted)


def errors_of_torch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoint, "load_saved", lambda path, what: torch.load(path, weights_only=True))


def ids_as_they_are(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Table, "id", lambda self, number: bytes(self._ids[number]).decode())


def signals_wherever_they_are(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ecg, "_require_sound", lambda file, header: None)


def slow_ones(patch: pytest.MonkeyPatch) -> None:
    refuse = IdentityError.__init__

    def planted(self: IdentityError, *args: object) -> None:
        end = time.thread_time() + 0.06
        while time.thread_time() < end:
            pass
        refuse(self, *args)

    patch.setattr(IdentityError, "__init__", planted)


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str, int]] = {
    "numbers by eval": (numbers_by_eval, "frame", "audit events.*(exec|compile)", 400),
    "names of a pickle looked up": (names_of_a_pickle_looked_up, "pickle", "pickle.find_class", 1_000),
    "a file that the sender names": (a_file_that_the_sender_names, "split", "audit events.*open", 50),
    "room for whatever is numbered": (
        room_for_whatever_is_numbered,
        "pickle",
        "took [0-9]{8,} bytes|ms|MemoryError",
        400,
    ),
    "room for the largest secret": (room_for_the_largest_secret, "roster", "took [0-9]{8,} bytes", 20),
    "errors of the parser": (errors_of_the_parser, "answer, sealed", "sealed: [A-Za-z]*Error", 50),
    "code in a checkpoint": (
        code_in_a_checkpoint,
        "checkpoint, sealed",
        "audit events.*(pickle|os.system|import)",
        400,
    ),
    "errors of torch": (errors_of_torch, "checkpoint", "checkpoint: [A-Za-z]*Error", 50),
    "ids as they are": (ids_as_they_are, "client table, ids", "ids: UnicodeDecodeError", 50),
    "signals wherever they are": (
        signals_wherever_they_are,
        "ECG, .hea",
        "audit events.*(open|import)|hea: |bytes",
        200,
    ),
    "errors of the parser, in a channel": (errors_of_the_parser, "channel", "channel: [A-Za-z]*Error", 100),
    "slow ones": (slow_ones, "address", "took [0-9]+ ms", 20),
}


@pytest.mark.parametrize(("plant", "name", "expected", "count"), PLANTED.values(), ids=PLANTED)
def test_the_watch_catches(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, expected: str, count: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        plant(patch)
        report = attacked(tmp_path, count, 10, number=0, only=lambda one: one.name == name)
    with pytest.raises(AssertionError, match=expected):
        report.check()
