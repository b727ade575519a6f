"""Clients that load a server, in a process of their own: ``python load_crowd.py FOLDER PID URL RUN SEED NUM_CLIENTS``.
Says what they were told as a line of JSON.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from loads import Loaded, crowd, names


def main() -> None:
    folder, pid, url, run, seed, num_clients = sys.argv[1:]
    here = Loaded(Path(folder), int(pid), url, run, int(seed))
    told = asyncio.run(crowd(here, names(int(num_clients))))
    print(json.dumps({"verdicts": told.verdicts, "busy": told.busy, "without_time": told.without_time,
                      "cpu_s": time.process_time()}))  # fmt: skip


if __name__ == "__main__":
    main()
