"""What a measurement was made on: printed above every table."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch


def describe_machine() -> None:
    """Print machine, versions, commit and command."""
    facts = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in facts if "model name" in line), platform.machine())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    print(f"machine: {cpu}, {len(os.sched_getaffinity(0))} cores; torch {torch.__version__}; commit {commit}")
    print(f"command: python {' '.join(sys.argv)}")
