"""Keep freed memory in the process: the large, short-lived tensors of a CPU network are then not paid for again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to hand memory back to the system between tensors; return whether it listened.

    By default every tensor of more than 32 MB is mapped and unmapped, and each of its pages costs a fault. On virtual
    machines that give free pages back to their host this has made training four times slower. The price: the process
    stays as large as it was at its peak. Does nothing on other platforms.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
