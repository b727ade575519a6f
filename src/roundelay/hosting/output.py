"""What a script prints, read as it comes: a script that floods neither blocks nor fills the disk."""

import multiprocessing.connection
import os
import threading
from collections import deque
from pathlib import Path
from typing import IO

OUTPUT_BYTES = 10 * 2**20
"""How much of what a script prints is kept in its file."""

TAIL_BYTES = 4096
"""How much of it goes into the message when the script fails."""

CLOSE_S = 1.0
"""How long the last of it is waited for: a grandchild may hold the pipe open."""


class Output:
    """What a script prints: its first bytes in a file, its last ones at hand, the rest dropped."""

    def __init__(self, path: Path) -> None:
        self._ours, self.theirs = multiprocessing.connection.Pipe(duplex=False)
        self._file: IO[bytes] = path.open("ab")
        self._tail: deque[bytes] = deque(maxlen=TAIL_BYTES // 256)
        self._thread = threading.Thread(target=self._drain, daemon=True)

    def begin(self) -> None:
        """Read, now that the other end is the process's."""
        self.theirs.close()
        self._thread.start()

    def tail(self) -> str:
        """Return what was printed last, by a process that has ended."""
        self._thread.join(timeout=0.1)
        return b"".join(self._tail)[-TAIL_BYTES:].decode(errors="replace").strip()

    def close(self) -> None:
        if self._thread.ident is None:  # never begun
            self.theirs.close()
            self._file.close()
        else:
            self._thread.join(timeout=CLOSE_S)
        self._ours.close()

    def _drain(self) -> None:
        left = OUTPUT_BYTES - self._file.tell()
        with self._file:
            while True:
                try:
                    chunk = os.read(self._ours.fileno(), 65536)
                except OSError:
                    return
                if not chunk:
                    return
                self._tail.append(chunk[-TAIL_BYTES:])
                if left > 0:
                    self._file.write(chunk[:left])
                    self._file.flush()
                    left -= len(chunk)
                    if left <= 0:
                        self._file.write(b"\n[what was printed beyond this is dropped]\n")
