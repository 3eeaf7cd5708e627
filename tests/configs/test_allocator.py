"""The allocator keeps large blocks: seen in the faults that the kernel counts, not in time."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import platform, resource, sys
import numpy as np
from configs.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(int(keep_freed_memory() == (platform.libc_ver()[0] == "glibc")), end=" ")
else:
    print(1, end=" ")
def use():
    for _ in range(10):
        np.ones(64 << 20, np.uint8)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    found = subprocess.run([sys.executable, "-c", SCRIPT, mode], cwd=ROOT, capture_output=True, text=True, check=True)
    worked, count = found.stdout.split()
    assert worked == "1"
    return int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again():
    plain, kept = faults("plain"), faults("keep")
    assert plain > 100 > 10 * kept  # huge pages make few faults of many bytes
