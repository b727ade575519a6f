"""Heartbeats: a beat's window lies where its peak is, time order divides training from testing, nothing is held twice;
a record that is absent, damaged or of another kind is named.
"""

import builtins
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import data_folder
from wfdb_records import FREQUENCY, RR, peaks_of, wfdb, write_patients, write_record

from roundelay.data.ecg import heartbeats
from roundelay.data.examples import Examples
from roundelay.data.windows import WindowExamples
from roundelay.errors import ConfigError, DataError, MissingExtra

BEFORE, AFTER = 0.2, 0.3
LENGTH = 50


def read(folder: Path, **settings: object):
    return heartbeats(folder, **{"before_s": BEFORE, "after_s": AFTER, **settings})


def all_of(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    ((inputs, targets),) = examples.batches(torch.arange(len(examples)), 100_000)
    return inputs, targets


def windows_of(folder: Path, name: str) -> np.ndarray:
    """Cut every window out of a record, straight on: (N, LENGTH), with the record's mean 0 and deviation 1."""
    samples = wfdb.rdrecord(str(folder / name)).p_signal[:, 0]
    scaled = (samples - samples.mean()) / samples.std()
    peaks = wfdb.rdann(str(folder / name), "atr").sample
    return np.stack([scaled[peak - round(BEFORE * FREQUENCY) :][:LENGTH] for peak in peaks])


def starts_of(examples: Examples) -> torch.Tensor:
    assert isinstance(examples, WindowExamples)
    return examples.places.inputs[examples.places.indices]


def test_an_example_is_the_window_around_a_peak_normalised_by_record(tmp_path):
    write_record(tmp_path, "7", list("NVNNVNVN"))
    data = read(tmp_path, test_fraction=0.25)
    inputs, targets = all_of(data.train("7"))
    assert (inputs.dtype, targets.dtype, tuple(inputs.shape)) == (torch.float32, torch.int64, (6, 1, LENGTH))
    assert targets.tolist() == [0, 1, 0, 0, 1, 0]
    np.testing.assert_allclose(inputs[:, 0], windows_of(tmp_path, "7")[:6], rtol=0, atol=1e-6)
    np.testing.assert_allclose(all_of(data.test("7"))[0][:, 0], windows_of(tmp_path, "7")[6:], rtol=0, atol=1e-6)
    upright = inputs[:, 0, round(BEFORE * FREQUENCY)] > 2
    assert upright.tolist() == [True, False, True, True, False, True], "the peak is where before_s says"


def test_every_beat_code_but_v_is_the_rest_and_what_is_no_beat_is_no_example(tmp_path):
    write_record(tmp_path, "7", list("NL+RAV~|/FE"))
    assert read(tmp_path, test_fraction=0.0).train("7").labels().tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


def test_the_first_part_in_time_trains_and_no_sample_of_it_is_tested_on(tmp_path):
    write_record(tmp_path, "7", ["N", "V"] * 20)
    for overlapping in (False, True):
        data = read(tmp_path, after_s=1.2 if overlapping else AFTER, test_fraction=0.5)
        train, test = starts_of(data.train("7")), starts_of(data.test("7"))
        length = data.train("7").length
        assert overlapping == (length > RR)
        assert train.tolist() == sorted(train.tolist())
        assert int(test.min()) >= int(train.max()) + length
        assert len(train) == (19 if overlapping else 20)
        assert len(train) + len(test) == (38 if overlapping else 40), "the window that overlaps, and the last beat's"


def test_beats_whose_window_leaves_the_record_are_left_out(tmp_path):
    write_record(tmp_path, "7", ["N"] * 5)
    data = heartbeats(tmp_path, before_s=0.5, after_s=0.3, test_fraction=0.0)  # the first peak is at 0.4 s
    assert len(data.train("7")) == 4
    assert int(starts_of(data.train("7")).min()) == peaks_of("NN")[1] - 50


def test_patients_are_clients_and_the_servers_are_nobody_elses(tmp_path):
    folder = write_patients(tmp_path, {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5})
    data = read(folder, held_out=["c"])
    assert data.clients == ("a", "b", "d")
    np.testing.assert_allclose(all_of(data.held_out)[0][:, 0], windows_of(folder, "c"), rtol=0, atol=1e-6)
    assert read(folder, patients=["d", "a"]).clients == ("a", "d")
    shared = read(folder, patients={"site": ["b", "a"], "other": ["d"]})
    assert shared.clients == ("other", "site")
    for part in ("train", "test"):
        both = torch.cat([all_of(getattr(read(folder), part)(name))[0] for name in ("b", "a")])
        assert torch.equal(all_of(getattr(shared, part)("site"))[0], both)
    alone = read(folder, patients=[], held_out=["a"])
    assert alone.clients == ()
    assert len(alone.held_out) == 60


def test_a_patient_alone_is_the_same_as_among_others(tmp_path):
    folder = write_patients(tmp_path, {"a": 0.5, "b": 0.5})
    together, alone = read(folder), read(folder, patients=["b"])
    for part in ("train", "test"):
        for one, other in zip(all_of(getattr(together, part)("b")), all_of(getattr(alone, part)("b")), strict=True):
            assert torch.equal(one, other)


def test_a_record_of_650_000_samples_is_held_once_however_many_views_there_are(tmp_path):
    for name in ("a", "b"):
        write_record(tmp_path, name, ["N", "V"] * 4063)
    data = read(tmp_path, held_out=["b"])
    parts = [data.train("a"), data.test("a"), data.held_out]
    num_samples = 2 * 2 * 4063 * RR
    assert num_samples > 1_300_000
    assert {part.signal.untyped_storage().data_ptr() for part in parts} == {data.train("a").signal.data_ptr()}
    assert data.train("a").signal.untyped_storage().nbytes() == 4 * num_samples
    assert len(pickle.dumps(data)) < 4 * num_samples + 16 * 8 * 4063, "pickled it holds the signal once, too"
    batch = next(iter(data.train("a").batches(torch.arange(4000), 10)))[0]
    assert batch.untyped_storage().nbytes() == 10 * 4 * LENGTH


def test_only_the_first_lead_of_several_is_read(tmp_path):
    write_record(tmp_path / "one", "7", list("NVNV"))
    write_record(tmp_path / "two", "7", list("NVNV"), leads=2)
    one, two = (all_of(read(tmp_path / name).train("7"))[0] for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-3)


def test_missing_samples_lie_at_the_mean(tmp_path):
    write_record(tmp_path, "7", list("NVNV"))
    record = wfdb.rdrecord(str(tmp_path / "7"))
    record.p_signal[100:110] = np.nan
    wfdb.wrsamp("7", fs=FREQUENCY, units=["mV"], sig_name=["lead"], p_signal=record.p_signal, fmt=["16"],
                write_dir=str(tmp_path))  # fmt: skip
    signal = read(tmp_path).train("7").signal
    assert torch.equal(signal[100:110], torch.zeros(10))
    assert bool(signal.isfinite().all())


def test_normalisation_knows_nothing_of_what_comes_after_five_minutes(tmp_path):
    write_record(tmp_path, "7", ["N", "V"] * 250)
    before = read(tmp_path).train("7").signal[: 300 * FREQUENCY].clone()
    record = wfdb.rdrecord(str(tmp_path / "7"))
    record.p_signal[300 * FREQUENCY :] *= 3
    wfdb.wrsamp("7", fs=FREQUENCY, units=["mV"], sig_name=["lead"], fmt=["16"], p_signal=record.p_signal,
                adc_gain=[2000.0], baseline=[0], write_dir=str(tmp_path))  # fmt: skip
    after = read(tmp_path).train("7").signal
    torch.testing.assert_close(after[: 300 * FREQUENCY], before, rtol=0, atol=1e-2)
    assert float(after[300 * FREQUENCY :].std()) > 2.5


SPOILT = {
    "no header": ("7.hea", lambda file: file.unlink(), "no such file; put the header of record 7 there"),
    "no signal": ("7.dat", lambda file: file.unlink(), "no such file, but 7.hea names it; put the signal"),
    "no beats' file": ("7.atr", lambda file: file.unlink(), "no such file; put the beat annotations of record 7"),
    "a header of something else": ("7.hea", lambda file: file.write_text("hello"), "cannot read it as a WFDB header"),
    "an empty header": ("7.hea", lambda file: file.write_text(""), "cannot read it as a WFDB header"),
    "a header without signals": ("7.hea", lambda file: file.write_text("7 0 100 640\n"), "it tells of 0 signals"),
    "half a signal": ("7.dat", lambda file: file.write_bytes(file.read_bytes()[:500]), "cannot read the signal"),
    "another signal": ("7.dat", lambda file: file.write_bytes(file.read_bytes()[::-1]), "expected the checksum"),
    "odd bytes of beats": ("7.atr", lambda file: file.write_bytes(file.read_bytes()[:-1]), "cannot read it as WFDB"),
    "beats without an end": ("7.atr", lambda file: file.write_bytes(file.read_bytes()[:-10]), "it ends in the middle"),
    "no annotation": ("7.atr", lambda file: file.write_bytes(b"\0\0"), "expected beats, .* got 0 annotations"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_record_that_is_not_whole_is_named(tmp_path, spoilt):
    write_patients(tmp_path, {"6": 0.5, "7": 0.5})
    name, spoil, says = SPOILT[spoilt]
    spoil(tmp_path / name)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / name))}: {says}"):
        read(tmp_path)


def test_a_record_of_another_kind_is_named(tmp_path):
    write_patients(tmp_path, {"6": 0.5})
    write_record(tmp_path, "7", list("NV"), frequency=250)
    with pytest.raises(DataError, match=r"7\.hea: expected 100 samples a second, as in 6\.hea, got 250"):
        read(tmp_path)
    write_record(tmp_path, "7", list("+~|"))
    with pytest.raises(DataError, match=r"7\.atr: expected beats, codes .* got 5 annotations without any"):
        read(tmp_path)
    write_record(tmp_path, "7", list("NV"))
    with pytest.raises(DataError, match=r"\.hea: none of 60 beats has its window .* too short, leave it out"):
        heartbeats(tmp_path, before_s=30.0, after_s=30.0)
    record = wfdb.rdrecord(str(tmp_path / "7"), physical=False)
    wfdb.wrsamp("7", fs=100, units=["mV"], sig_name=["lead"], d_signal=0 * record.d_signal, fmt=["16"],
                adc_gain=[1.0], baseline=[0], write_dir=str(tmp_path))  # fmt: skip
    with pytest.raises(DataError, match=r"7\.dat: its first lead is flat or missing"):
        read(tmp_path)


def test_without_any_pvc_there_is_nothing_to_learn_but_one_client_may_have_none(tmp_path):
    write_record(tmp_path, "6", list("NNLN"))
    assert read(tmp_path).train("6").labels().tolist() == [0, 0]
    write_record(tmp_path, "7", list("NNNN"))
    assert read(tmp_path, patients={"site": ["6", "7"]}).clients == ("site",)
    says = r"none of its 2 records has a PVC, code V in its \.atr; the codes there are LN"
    with pytest.raises(DataError, match=says):
        read(tmp_path)


def test_a_folder_without_records_and_settings_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder; make it and put WFDB records"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no WFDB record is there; put the \.hea"):
        read(tmp_path)
    write_patients(tmp_path, {"6": 0.5, "7": 0.5})
    for settings, says in (
        ({"test_fraction": 1.0}, "test_fraction: expected"),
        ({"before_s": -1.0}, "is empty"),
        ({"patients": ["6"], "held_out": ["6"]}, "patient '6' is named twice"),
        ({"patients": ["6", "6"]}, "patient '6' is named twice"),
        ({"patients": {"a": ["6"], "b": ["6"]}}, "patient '6' is named twice"),
        ({"patients": {"a": []}}, "client 'a' has no patients"),
    ):
        with pytest.raises(ConfigError, match=says):
            read(tmp_path, **settings)


def test_without_wfdb_the_extra_is_named(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **more):
        if name == "wfdb":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"'wfdb' is not installed; .* pip install 'roundelay\[ecg\]'"):
        heartbeats(tmp_path)


@pytest.mark.slow
def test_the_records_at_hand_are_read_whole(tmp_path):
    folder = data_folder("mitbih")
    data = heartbeats(folder)
    assert len(data.clients) == 12
    for client in data.clients:
        codes = np.array(wfdb.rdann(str(folder / client), "atr").symbol)
        labels = torch.cat([data.train(client).labels(), data.test(client).labels()])
        assert len(codes) - 3 <= len(labels) <= len(codes)
        assert int((codes == "V").sum()) - 1 <= int(labels.sum()) <= int((codes == "V").sum())
        assert int(data.test(client).labels().sum()) >= 1, "each patient can be judged on a PVC of its own"
    for suffix in (".hea", ".dat"):
        shutil.copyfile(folder / f"100{suffix}", tmp_path / f"100{suffix}")
    with pytest.raises(DataError, match=r"100\.atr: no such file"):
        heartbeats(tmp_path)
