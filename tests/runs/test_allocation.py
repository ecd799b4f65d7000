"""Freed memory stays with the process, so that the next tensors need none from the system."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from bcu_cli.runs import allocation
if {kept}:
    allocation.keep_freed_memory()
for _ in range(10):  # aligned tensors do not fit into the first gaps that they leave
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, kept: bool) -> int:
    """Count the pages that the system hands out for ten tensors of 64 MB, after ten others."""
    ran = subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_ten_tensors_of_one_size_take_memory_from_the_system_once() -> None:
    pages = 10 * 2**26 // resource.getpagesize()
    assert faults(kept=True) < pages / 100
    assert faults(kept=False) > pages / 4, "without it the test shows nothing"
