"""glibc's allocator, told to keep what is freed: activations on a CPU come and go at every step."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEEP_BYTES = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Large blocks come from the heap and stay there when freed, instead of going back to the kernel.

    By default every activation of a CPU pass above 32 MB is mapped anew and zeroed page by page, which takes longer
    than many a convolution. The process keeps its peak memory until it ends. Returns False where there is no glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, because those of other threads (autograd's) hold no block above 64 MB.
    options = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _KEEP_BYTES), (_M_TRIM_THRESHOLD, _KEEP_BYTES))
    done = [mallopt(option, value) == 1 for option, value in options]  # a list: all are set, whatever the first says
    return all(done)
