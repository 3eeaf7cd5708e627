"""Kill packers and their processes at random moments, go on, and compare with a store that nobody disturbed.

`python -m tests.preprocess.kills --rounds 20` runs it for long; test_robustness.py runs a few rounds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from preprocess.task import SHARD
from preprocess.verify import verify
from tests.conftest import make_clip, numbered_picture, tone, write_wav

ROOT = Path(__file__).parents[2]
CLIPS = 90
SHARD_CLIPS = 6
SHARDS = CLIPS // SHARD_CLIPS


def children(pid: int) -> list[int]:
    """The living child processes of a process."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return [child for child in found if ") Z " not in Path(f"/proc/{child}/stat").read_text()]
    except OSError:
        return []


def packing_processes(pid: int) -> list[int]:
    """The processes that pack for a process, directly or through others; not what else it has started."""
    found = []
    for child in children(pid):
        try:
            forks = b"preprocess.nursery" in Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        found += children(child) if forks else packing_processes(child)
    return found


def content(store: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def make_source(folder: Path) -> Path:
    """Clips of video, or of picture and sound; some cannot be packed."""
    folder.mkdir()
    make_clip(folder / "video.mp4", seconds=1.0)
    (folder / "broken.mp4").write_bytes((folder / "video.mp4").read_bytes()[:2000])
    for number in range(4):
        Image.fromarray(numbered_picture(number, 200, 150)).save(folder / f"{number}.jpg")
        write_wav(folder / f"{number}.wav", tone(1.0 + number, 16000, 300 + 100 * number), 16000)
    lines = []
    for number in range(CLIPS):
        part = number % 4
        still = {"image": f"{part}.jpg", "audio": f"{part}.wav" if number % 9 else "missing.wav"}
        video = {"video": "video.mp4" if number % 14 else "broken.mp4"}
        lines.append({"clip_id": f"clip_{number:03d}", "split": "train", **(video if number % 7 == 0 else still)})
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def start(source: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    """A packer."""
    options = ["--frontend", "logmel64", "--workers", "2", "--shard-clips", str(SHARD_CLIPS), *more]
    command = ["pack", "manifest", str(source), str(store), "--dataset", "made", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "preprocess", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(store: Path) -> dict[str, int]:
    """The finished shards, and which files they are."""
    return {path.parent.name: path.stat().st_ino for path in store.glob(f"shard-?????/{SHARD}")}


@dataclass
class Round:
    """What was killed in a round, with how many shards finished, and how many of them were written again."""

    packers: int = 0
    processes: int = 0
    at: list[int] = field(default_factory=list)


def run_round(source: Path, store: Path, draw: random.Random, kills: int) -> Round:
    """Pack with so many kills in between, each within half a second after a random shard was finished."""
    done = Round()
    packer = start(source, store)
    while packer.poll() is None and kills:
        wanted = draw.randint(min(len(finished(store)), SHARDS - 1), SHARDS - 1)
        while packer.poll() is None and len(finished(store)) < wanted:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        victim = draw.choice([packer.pid, *children(packer.pid), *packing_processes(packer.pid)])
        if packer.poll() is not None:
            break
        kept = finished(store)
        os.kill(victim, signal.SIGKILL)
        kills -= 1
        done.at.append(len(kept))
        if victim != packer.pid:
            done.processes += 1
            continue
        done.packers += 1
        packer.communicate()
        kept = finished(store)
        packer = start(source, store)
        until = time.monotonic() + 60
        while packer.poll() is None and len(finished(store)) <= len(kept) and time.monotonic() < until:
            time.sleep(0.05)
        now = finished(store)
        assert all(now.get(name) == file for name, file in kept.items()), "a finished shard was written again"
    output, _ = packer.communicate()
    assert packer.returncode == 0, output
    assert not list(store.glob("*.tmp*")) and not list(store.glob("*.crashed.json")), "something was left behind"
    return done


def main() -> None:
    """Run so many rounds, and say what was killed when."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in; default: a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = make_source(folder / "source")
        start(source, folder / "whole").communicate()
        whole = content(folder / "whole")
        total = Round()
        for number in range(options.rounds):
            done = run_round(source, folder / "store", random.Random(options.seed + number), options.kills)
            assert content(folder / "store") == whole, f"round {number}: other bytes"
            assert verify(folder / "store") == []
            shutil.rmtree(folder / "store")
            total.packers += done.packers
            total.processes += done.processes
            print(f"round {number}: {done}", flush=True)
        killed = f"{total.packers} packers and {total.processes} packing processes killed"
        print(f"{options.rounds} rounds, {killed}: all stores are equal")


if __name__ == "__main__":
    main()
