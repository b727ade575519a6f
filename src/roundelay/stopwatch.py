"""The one real clock that a simulation reads: for what its reports say of it, and for when a checkpoint is due. What
comes out of a run does not depend on either.
"""

from time import perf_counter as real_s

__all__ = ["real_s"]
