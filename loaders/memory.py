"""Memory given back to the system: what was freed, and pages of files that were looked at."""

import ctypes
import mmap
import sys


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library has to be told so (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def forget_mapped_pages(start: int, length: int) -> None:
    """Let a file's mapping at an address take no memory until it is read again, where the system can (Linux).

    Nobody may have written to it: that would be lost.
    """
    if sys.platform == "linux" and start % mmap.PAGESIZE == 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
