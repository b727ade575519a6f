"""A blob on its way into a file: goes on after a cut where it was, and is believed only once its digest was checked."""

import hashlib
import re
from pathlib import Path

from roundelay.deployment.device.trouble import OwnDisk, Unreachable

_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/\d{1,19}")
_PIECE = 2**20


class Download:
    """What is in ``part`` is hashed first: blocks for as long as that takes. A context that closes the file."""

    def __init__(self, part: Path, digest: str, size: int) -> None:
        self.digest, self._size, self._path = digest, size, part
        self._sha, self._at = hashlib.sha256(), 0
        try:
            self._file = part.open("ab+", buffering=0)  # what was hashed is what was written, also on a full disk
            self._take_up()
        except OSError as error:
            raise OwnDisk("reading what was fetched of a model", error) from error

    def _take_up(self) -> None:
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            self._sha.update(piece)
            self._at += len(piece)
        if self._at > self._size:
            self._begin_anew()

    def __enter__(self) -> "Download":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_there(self) -> bool:
        return self._at == self._size

    def fields(self, length: int) -> dict[str, str]:
        """Return what asks for the next piece, and for all of it should it have changed."""
        last = min(self._at + length, self._size) - 1
        return {"Range": f"bytes={self._at}-{last}", "If-Range": f'"{self.digest}"'}

    def begin_piece(self, is_partial: bool, content_range: str) -> None:
        """Get ready for what comes: a piece, or everything."""
        if is_partial:
            found = _RANGE.fullmatch(content_range)
            if found is None or int(found[1]) != self._at:
                raise Unreachable(
                    "the server sent another piece of a model than was asked for; a proxy may be at fault"
                )
        else:
            self._begin_anew()
        self._before = self._at

    def write(self, data: bytes) -> None:
        if self._at + len(data) > self._size:
            self._begin_anew()
            raise Unreachable(f"more came of a model than the {self._size} bytes that it has; it is fetched anew")
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OwnDisk("writing a model", error) from error
        self._sha.update(data)
        self._at += len(data)

    def end_piece(self) -> None:
        if self._at == self._before:
            raise Unreachable("the server sent nothing of a model that it offered")

    def check(self) -> None:
        """Raises:
        Unreachable: it is not what it should be; it was removed, and is to be fetched anew.
        """
        if self._sha.hexdigest() != self.digest:
            self._begin_anew()
            raise Unreachable("what came of a model is not what the server offered: damaged on the way or on this "
                              "device's disk; it is fetched anew")  # fmt: skip

    def _begin_anew(self) -> None:
        try:
            self._file.truncate(0)
        except OSError as error:
            raise OwnDisk("writing a model", error) from error
        self._sha, self._at = hashlib.sha256(), 0
