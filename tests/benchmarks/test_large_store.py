"""The parts of the run over 144,000 clips; the run itself takes an hour and is started by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.large_store import _children, _cpu_s, _memory_mb, figures, run
from configs.errors import UserError


def test_the_first_thousand_are_no_figure():
    course = [
        {"variant": "pack", "clips_done": 1000 * turn, "cpu_ms": 9.0 / turn, "value": 100.0 * turn, "memory_mb": turn}
        for turn in range(1, 5)
    ]
    (figure,) = figures(course, {"pack": "12.9 GB"})
    assert (figure.variant, figure.rounds, figure.cpu_ms, figure.value, figure.peak_mb) == ("pack", 3, 3.0, 300.0, 4)
    assert figure.note == "12.9 GB; CPU-ms 2.250 to 4.500; memory 2 to 4 MB"


def test_children_are_counted_in():
    used_s, before_mb = _cpu_s(), _memory_mb()[0]
    code = "held = bytearray(80_000_000)\nfor turn in range(2_000_000): turn * turn\nprint('held', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        assert str(child.pid) in [folder.name for folder, _ in _children()]
        assert _memory_mb()[0] - before_mb > 70
        child.communicate(b"\n")
    assert _cpu_s() - used_s > 0.02


def test_few_clips_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least 5000"):
        run(tmp_path / "store", 3, None, clips=1000)
