"""The one clock that a simulation reads: how long its rounds really took, for the reports and for nothing else."""

from time import perf_counter as real_s

__all__ = ["real_s"]
