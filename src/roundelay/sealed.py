"""Anonymous memory that one process fills and another reads, and that cannot shrink under the reader. Linux only.

A plain shared file can be cut off while it is mapped, and whoever then reads its lost pages is killed (SIGBUS). These
files are sealed: the kernel refuses to change their size. They have no name, and are gone with the last process.
"""

import mmap
import os
import sys

import torch
from torch import Tensor

from roundelay.errors import WireError

if sys.platform == "linux":
    import fcntl

AVAILABLE = sys.platform == "linux" and hasattr(os, "memfd_create")


def create(num_bytes: int) -> tuple[Tensor, int]:
    """Return new memory of at least ``num_bytes`` as uint8, all its pages there, and its descriptor, to be closed.

    Raises:
        OSError: there is not so much memory, or no descriptor left.
    """
    size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    descriptor = os.memfd_create("roundelay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, size)  # an error here, instead of SIGBUS at the first write
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return _mapped(descriptor, size), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def attach(descriptor: int, most_bytes: int) -> Tensor:
    """Return the memory that another process made, as uint8, writable; close the descriptor, whatever happens.

    Raises:
        WireError: it is no such memory, it could shrink, or it is larger than ``most_bytes`` or than what it occupies.
    """
    try:
        found = os.fstat(descriptor)
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0  # not a memory file
        if not seals & fcntl.F_SEAL_SHRINK:
            raise WireError("the memory that came is not sealed: its sender could shrink it and kill whoever reads it")
        if not 0 < found.st_size <= -(-most_bytes // mmap.PAGESIZE) * mmap.PAGESIZE:
            raise WireError(f"the memory that came has {found.st_size} bytes; 1 to {most_bytes} are allowed")
        if found.st_blocks * 512 < found.st_size:  # reading a hole would allocate it, at the reader's cost
            raise WireError(f"the memory that came claims {found.st_size} bytes and has {found.st_blocks * 512}")
        return _mapped(descriptor, found.st_size)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)  # the tensor keeps the map
