"""Heartbeats by patient, from WFDB records that you have: premature ventricular contractions (PVC) against other beats.

A record is a patient's recording: a header (.hea), the signal that it names (.dat) and the beats (.atr), as PhysioNet's
MIT-BIH arrhythmia database has them. An example is the window around one R peak, its target 1 for a PVC, else 0.
Nothing is downloaded.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roundelay.data.examples import TensorExamples
from roundelay.data.federated import FederatedData
from roundelay.data.windows import WindowExamples
from roundelay.errors import ConfigError, DataError, optional

__all__ = ["heartbeats"]

CLASSES = ("other", "PVC")

BEATS, PVC = frozenset("NLRBAaJSVrFejnE/fQ?"), "V"
"""WFDB's codes for beats; its other codes mark rhythms, noise and waves, and are no examples."""

NORMALISED_BY_S = 300.0
"""A record's mean and deviation are those of its first five minutes, for training and testing alike."""

_REPLACE = "it is truncated or damaged, replace it with a fresh copy"

FLAC = frozenset({"508", "516", "524"})
"""WFDB's formats whose files are compressed."""

_MOST_COMPRESSED = 64
"""So many samples a byte such a file may hold; of the other formats' a sample takes a byte at least."""

_MOST_LEADS, _MOST_FREQUENCY = 64, 1e6
_BESIDE = re.compile(r"(?!\.)[\w.+-]+")
"""The name of a file in the same folder: no path, and nothing that could mean an address."""

Patients = Sequence[str] | Mapping[str, Sequence[str]]


def heartbeats(
    folder: str | os.PathLike[str],
    patients: Patients | None = None,
    held_out: Sequence[str] = (),
    test_fraction: float = 0.5,
    before_s: float = 0.35,
    after_s: float = 0.45,
) -> FederatedData:
    """Read the records of a folder: a patient is a client, and ``held_out`` patients are the server's test data.

    ``patients`` lists the records of the clients, all others unless given; a table, such as ``{clinic = ["100",
    "102"]}``, gives several to one client; an empty list is for a server whose clients have them all. The first lead is
    cut into windows from ``before_s`` before each R peak to ``after_s`` after it; beats whose window leaves the record
    are left out. In each record the last ``test_fraction`` of the beats is the client's test: neighbouring beats are
    nearly alike, so that any other choice would test what was trained on. No sample of the signal is in windows of both
    parts. Inputs are float32 (B, 1, length), less the mean of the record's first five minutes and in units of their
    deviation; missing samples lie at the mean.

    One float32 signal a record is in memory, 4 bytes a sample; clients, their parts and the server hold views of it.

    Raises:
        ConfigError: ``test_fraction`` is not in [0, 1), a window has no length, or a patient is named twice.
        DataError: a file is absent, damaged or too short, a record has no beats, no client of several has a PVC, or
            records differ in their sampling frequency; the message names the file.
        MissingExtra: wfdb is not installed.
    """
    if not 0.0 <= test_fraction < 1.0:
        raise ConfigError(f"test_fraction: expected a number in [0, 1), got {test_fraction!r}")
    if before_s < 0 or after_s <= 0:
        raise ConfigError(f"a window from before_s = {before_s!r} to after_s = {after_s!r} around R peaks is empty")
    if patients is not None and not (patients or held_out):
        return FederatedData.elsewhere(())
    path, reader = Path(folder), _wfdb()
    clients = _clients(path, patients, held_out)
    names = [record for records in clients.values() for record in records] + list(held_out)
    headers = [_header(path / name, reader) for name in names]
    frequency = headers[0].fs
    for name, header in zip(names, headers, strict=True):
        if header.fs != frequency:
            raise DataError(f"{path / name}.hea: expected {frequency:g} samples a second, as in {names[0]}.hea, got "
                            f"{header.fs:g}; resample it, or leave it out")  # fmt: skip
    before, after = round(before_s * frequency), round(after_s * frequency)
    signal = torch.empty(sum(header.sig_len for header in headers))
    beats, offset = {}, 0
    for name, header in zip(names, headers, strict=True):
        own = signal[offset : offset + header.sig_len]
        own.copy_(_normalised(path / name, _samples(path / name, reader), round(NORMALISED_BY_S * frequency)))
        beats[name] = _beats(path / name, reader, header.sig_len, before, after).moved(offset)
        offset += header.sig_len
    if len(clients) > 1:  # one client, a site's own, may well have none
        _require_pvc(path, list(beats.values()))
    every = WindowExamples(signal, before + after, _places(list(beats.values())))
    return _given_out(every, clients, held_out, beats, test_fraction)


@dataclass(frozen=True, slots=True, eq=False)
class _Beats:
    """Where the windows of a record's beats begin, ascending, and which of the beats are PVCs: int64 (N,) each."""

    starts: Tensor
    targets: Tensor
    codes: frozenset[str]

    def moved(self, by: int) -> "_Beats":
        return replace(self, starts=self.starts + by)

    def cut(self, test_fraction: float, length: int) -> tuple[Tensor, Tensor]:
        """Return which beats train and which, later in time, test: positions of windows that have no sample in common.

        At least one beat trains.
        """
        number = len(self.starts)
        num_train = max(1, number - round(test_fraction * number))
        after = self.starts >= self.starts[num_train - 1] + length
        return torch.arange(num_train), after.nonzero()[:, 0]


def _clients(path: Path, patients: Patients | None, held_out: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return whose records are whose, in order of client."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; make it and put WFDB records into it, such as PhysioNet's MIT-BIH "
                        "arrhythmia database: 100.hea, 100.dat, 100.atr and so on")  # fmt: skip
    if patients is None:
        there = sorted({file.stem for file in path.iterdir() if file.suffix in (".hea", ".dat")})
        patients = [name for name in there if name not in held_out]
    table = patients if isinstance(patients, Mapping) else {name: [name] for name in patients}
    named = [name for records in table.values() for name in records] + list(held_out)
    twice = sorted(name for name in set(named) if named.count(name) > 1)
    if twice or (not isinstance(patients, Mapping) and len(table) != len(patients)):
        raise ConfigError(f"patient {(twice or sorted(patients))[0]!r} is named twice; a record belongs to one client, "
                          "or to the server's held_out")  # fmt: skip
    for client, records in table.items():
        if not records:
            raise ConfigError(f"client {client!r} has no patients; give it some, or leave it out")
    if not named:
        raise DataError(f"{path}: no WFDB record is there; put the .hea, .dat and .atr file of each patient there")
    return dict(sorted(table.items()))


def _given_out(
    every: WindowExamples, clients: Mapping[str, Sequence[str]], held_out: Sequence[str],
    beats: Mapping[str, _Beats], test_fraction: float,
) -> FederatedData:  # fmt: skip
    first, offset = {}, 0
    for name, own in beats.items():
        first[name], offset = offset, offset + len(own.starts)
    cuts = {name: own.cut(test_fraction, every.length) for name, own in beats.items()}

    def part(records: Sequence[str], which: int) -> WindowExamples:
        return every.select(torch.cat([first[name] + cuts[name][which] for name in records]))

    kept = None
    if held_out:
        kept = every.select(torch.cat([first[name] + torch.arange(len(beats[name].starts)) for name in held_out]))
    if not clients:
        return FederatedData.elsewhere((), kept)
    tests = {client: part(records, 1) for client, records in clients.items()} if test_fraction else {}
    return FederatedData.from_datasets(
        {client: part(records, 0) for client, records in clients.items()},
        kept,
        {client: test for client, test in tests.items() if len(test)},
    )


def _places(beats: Sequence[_Beats]) -> TensorExamples:
    return TensorExamples(torch.cat([own.starts for own in beats]), torch.cat([own.targets for own in beats]))


def _require_pvc(path: Path, beats: Sequence[_Beats]) -> None:
    if not any(int(own.targets.sum()) for own in beats):
        codes = "".join(sorted(frozenset().union(*(own.codes for own in beats))))
        raise DataError(f"{path}: none of its {len(beats)} records has a PVC, code {PVC} in its .atr; the codes there "
                        f"are {codes}: add a patient who has some, or annotate them")  # fmt: skip


# ---- WFDB -----------------------------------------------------------------------------------------------------------


def _wfdb() -> ModuleType:
    with optional("wfdb", "ecg"):
        import wfdb
    module: ModuleType = wfdb
    return module


def _header(record: Path, reader: ModuleType) -> Any:  # Any: wfdb has no types
    file = record.with_name(f"{record.name}.hea")
    if not file.is_file():
        raise DataError(f"{file}: no such file; put the header of record {record.name} there, beside its signal")
    told = [line for line in file.read_bytes()[: 2**20].splitlines() if line.strip() and not line.startswith(b"#")]
    if len(told) > 1 + _MOST_LEADS:  # wfdb takes long for each
        raise DataError(f"{file}: it tells of {len(told) - 1} signals, expected up to {_MOST_LEADS}; {_REPLACE}")
    try:
        header = reader.rdheader(str(record))
    except Exception as error:  # wfdb raises many kinds here and below: a wrong file is nobody's bug, whatever its kind
        raise DataError(f"{file}: cannot read it as a WFDB header ({error}); {_REPLACE}") from error
    if isinstance(header, reader.MultiRecord):
        raise DataError(f"{file}: the record is in several segments, which are not read; write it as one, with "
                        "wfdb.rdrecord and wfdb.wrsamp")  # fmt: skip
    if not header.sig_len or not header.n_sig or not header.file_name:
        raise DataError(f"{file}: it tells of {header.n_sig} signals of {header.sig_len} samples; {_REPLACE}")
    _require_sound(file, header)
    return header


def _require_sound(file: Path, header: Any) -> None:  # Any: as above
    """Refuse what would have a file elsewhere opened, or more room made than the signal's file is large."""
    for name in header.file_name:
        if not _BESIDE.fullmatch(name):
            raise DataError(f"{file}: its signal is said to be {name!r}, expected a file beside it; {_REPLACE}")
    signal = file.with_name(header.file_name[0])
    if not signal.is_file():
        raise DataError(f"{signal}: no such file, but {file.name} names it; put the signal of record {file.stem} there")
    together = [at for at, name in enumerate(header.file_name) if name == signal.name]
    samples = header.sig_len * sum(header.samps_per_frame[at] or 1 for at in together)
    skews = [header.skew[at] or 0 for at in together]
    most = signal.stat().st_size * (_MOST_COMPRESSED if header.fmt[0] in FLAC else 1)
    if not 0 < samples <= most or not 0 <= min(skews) <= max(skews) <= header.sig_len:
        raise DataError(f"{signal}: cannot read the signal that {file.name} tells of: a file of its size does not hold "
                        f"{samples} samples; {_REPLACE}")  # fmt: skip
    if not 0 < header.fs <= _MOST_FREQUENCY:
        raise DataError(f"{file}: expected up to {_MOST_FREQUENCY:g} samples a second, got {header.fs:g}; {_REPLACE}")


def _samples(record: Path, reader: ModuleType) -> np.ndarray:
    """Return the first lead, in physical units, float64 (T,); NaN where a sample is missing."""
    file = record.with_name(f"{record.name}.dat")
    try:
        read = reader.rdrecord(str(record), channels=[0], physical=False)
        (told,), (found,) = read.checksum or [None], read.calc_checksum()
        with np.errstate(all="ignore"):  # what is not finite counts as missing
            samples: np.ndarray = read.dac()[:, 0]
    except Exception as error:
        raise DataError(
            f"{file}: cannot read the signal that {record.name}.hea tells of ({error}); {_REPLACE}"
        ) from error
    if told not in (None, found):
        raise DataError(f"{file}: expected the checksum {told} of {record.name}.hea, got {found}; {_REPLACE}")
    return samples


def _beats(record: Path, reader: ModuleType, num_samples: int, before: int, after: int) -> _Beats:
    file = record.with_name(f"{record.name}.atr")
    if not file.is_file():
        raise DataError(f"{file}: no such file; put the beat annotations of record {record.name} there, or leave the "
                        "record out")  # fmt: skip
    try:  # not rdann, which at some damaged notes of what a file's codes mean never comes to an end
        annotations = reader.io.annotation
        samples, numbers, *_ = annotations.proc_ann_bytes(annotations.load_byte_pairs(str(record), "atr", None), None)
        symbols = dict(zip(*(annotations.ann_label_table[key] for key in ("label_store", "symbol")), strict=True))
        codes = np.array([symbols.get(number, "") for number in numbers], dtype=str)
        places = torch.tensor(samples, dtype=torch.int64)
    except Exception as error:
        raise DataError(f"{file}: cannot read it as WFDB annotations ({error}); {_REPLACE}") from error
    if file.read_bytes()[-2:] != b"\0\0":  # which the format ends with
        raise DataError(f"{file}: it ends in the middle; {_REPLACE}")
    beat = np.isin(codes, sorted(BEATS))
    if not beat.any():
        raise DataError(f"{file}: expected beats, codes {''.join(sorted(BEATS))}, got {len(codes)} annotations without "
                        "any; are they in a file of another name?")  # fmt: skip
    starts = places[torch.from_numpy(beat)] - before
    inside = (starts >= 0) & (starts + before + after <= num_samples)
    if not inside.any():
        raise DataError(f"{file.with_suffix('.hea')}: none of {len(starts)} beats has its window of {before + after} "
                        f"samples within the record's {num_samples}: it is too short, leave it out")  # fmt: skip
    return _Beats(starts[inside], torch.from_numpy(codes[beat] == PVC).long()[inside], frozenset(codes[beat].tolist()))


def _normalised(record: Path, samples: np.ndarray, calibration: int) -> Tensor:
    first = samples[:calibration][np.isfinite(samples[:calibration])]
    with np.errstate(all="ignore"):
        mean, deviation = (first.mean(), first.std()) if len(first) else (0.0, 0.0)
    if deviation == 0 or not np.isfinite(mean) or not np.isfinite(deviation):
        raise DataError(f"{record}.dat: its first lead is flat or missing in the first {NORMALISED_BY_S / 60:g} "
                        "minutes, by which it is normalised; leave the record out")  # fmt: skip
    scaled = (samples - mean) / deviation
    return torch.from_numpy(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32))
