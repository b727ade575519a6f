"""The workloads in the hand-written loop of ``floor.py``.

python benchmarks/peers/run_floor.py WORKLOAD --rounds N --folder DIR
"""

import sys
from itertools import accumulate

from floor import run_floor
from runner import Asked, now


def main() -> None:
    asked = Asked.read()
    floor = run_floor(asked.workload, asked.rounds, warmup=0)
    seconds, end = floor.seconds_per_round, now()
    asked.tell(floor.params, [end - sum(seconds) + so_far for so_far in accumulate(seconds)], {})


if __name__ == "__main__":
    sys.exit(main())
