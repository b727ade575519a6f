"""WFDB records of made-up heartbeats, for tests that need their form and not their meaning."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

wfdb = pytest.importorskip("wfdb", reason="the extra ecg is not installed")

FREQUENCY, RR = 100, 80
"""Samples a second, and from one beat to the next."""


def peaks_of(codes: Sequence[str]) -> np.ndarray:
    """Return the samples at which the beats of a record lie."""
    return RR // 2 + RR * np.arange(len(codes))


def write_record(
    folder: Path, name: str, codes: Sequence[str], *, seed: int = 0, frequency: int = FREQUENCY, leads: int = 1
) -> Path:
    """Write a record with one beat for each code: narrow and upwards, or for a "V", wide and downwards."""
    draws = np.random.default_rng(seed)
    shape_of = {code: np.zeros(RR) for code in codes if not code.isalpha()}
    times = np.arange(RR) - RR // 2
    for code in set(codes) - set(shape_of):
        height, width = (-1.5, 8.0) if code == "V" else (1.0, 2.0)
        shape_of[code] = height * np.exp(-((times / width) ** 2))
    signal = np.concatenate([shape_of[code] for code in codes]) + draws.normal(0, 0.02, RR * len(codes))
    folder.mkdir(parents=True, exist_ok=True)
    signals = np.stack([signal * (lead + 1) for lead in range(leads)], axis=1)
    names = [f"lead {lead}" for lead in range(leads)]
    wfdb.wrsamp(name, fs=frequency, units=["mV"] * leads, sig_name=names, p_signal=signals, fmt=["16"] * leads,
                write_dir=str(folder))  # fmt: skip
    wfdb.wrann(name, "atr", peaks_of(codes), symbol=list(codes), fs=frequency, write_dir=str(folder))
    return folder


def write_patients(folder: Path, shares: dict[str, float], num_beats: int = 60) -> Path:
    """Write one record a patient, in which that share of the beats, drawn at random, are PVCs."""
    for number, (name, share) in enumerate(shares.items()):
        draws = np.random.default_rng(number)
        write_record(folder, name, np.where(draws.random(num_beats) < share, "V", "N").tolist(), seed=number)
    return folder
