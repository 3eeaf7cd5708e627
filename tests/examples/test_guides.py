"""The guides, run as they are written: their files are made and their commands typed in, in a copy of the code."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from configs.id_lists import list_names, load_list
from tests.conftest import make_clip

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
CODE = ("configs", "examples", "model", "pipeline", "preprocess", "train.py", "evaluate.py")
BLOCK = re.compile(r"^((?:<!-- \w+: [^\n]* -->\n)*)```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTE = re.compile(r"<!-- (\w+): (.*) -->")


@dataclass
class Block:
    """A fenced block of a guide. notes: what the comments right above it say: `file` (the block is written there),
    `exits` (the exit code of its commands, else 0), `adds` (what the test adds to `train.py`, for a small machine).
    """

    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)


def blocks(guide: Path) -> list[Block]:
    text = guide.read_text()
    found = [Block(kind, body, dict(NOTE.findall(notes))) for notes, kind, body in BLOCK.findall(text)]
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), f"{guide} has a fence that is not closed"
    assert sum(len(block.notes) for block in found) == text.count("<!--"), f"{guide} has a comment above no block"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block, one a line."""
    return block.text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_guide_names_what_exists(guide: Path):
    text = guide.read_text()
    for command in (line for block in blocks(guide) if block.language == "sh" for line in commands(block)):
        words = command.split()
        if words[:2] == ["python", "-m"]:
            assert (ROOT / words[2] / "__main__.py").is_file(), command
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
        for flag, name in itertools.pairwise(words):
            assert flag not in ("--list", "--trained-on") or name in list_names(), command
    for name in re.findall(r"`((?:configs|examples|tests|model|pipeline)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"^.*?\]\((?!https?:)([^)#]+)", text, re.MULTILINE):
        assert (guide.parent / name).exists(), name


def test_counts_of_the_guides():
    text = (ROOT / "examples" / "guides" / "train_vggsound.md").read_text()
    train, test = load_list("vggsound_144k_clean"), load_list("vggss_test")
    assert f"{len(train):,} | counted" in text and f"{len(test):,} | counted" in text
    measured = re.findall(r"(\d+) kB a clip; (\d+) GB estimated", text)
    assert len(measured) == 3
    for kilobytes, gigabytes in measured:
        assert round(int(kilobytes) * (len(train) + len(test)) / 1e6) == int(gigabytes)
    seconds, hours = re.search(r"(0\.\d+) s of a CPU core a clip; ([\d.]+) core hours", text).groups()  # type: ignore[union-attr]
    assert abs(float(seconds) * (len(train) + len(test)) / 3600 - float(hours)) < 0.2


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code, where a guide may write."""
    for name in CODE:
        source, copy = ROOT / name, tmp_path / "checkout" / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return tmp_path / "checkout"


def stand_ins(folder: Path) -> dict[str, str]:
    """What stands for the data that a reader brings: path in the guides -> path here.

    Under ids of VGGSound four real clips to train on, and two made ones of VGG-SS, whose published boxes they get.
    """
    train = load_list("vggsound_144k_clean")[:4]
    test = load_list("vggss_test")[:2]
    clips = sorted((ROOT / "examples" / "clips").glob("*.mp4"))
    videos = folder / "vggsound"
    videos.mkdir()
    for clip_id, clip in zip(train, clips):
        shutil.copy(clip, videos / f"{clip_id}.mp4")
    for clip_id in test:  # VGG-SS points at second 5, where the example clips have ended
        make_clip(videos / f"{clip_id}.mp4", seconds=10.0)
    rows = [f"{clip_id[:11]},{int(clip_id[12:])},a sound,train" for clip_id in [*train, *test]]
    table = folder / "vggsound.csv"
    table.write_text("\n".join(rows) + "\n")
    maps = folder / "maps.npz"
    values = np.random.default_rng(0).random((len(test), 14, 14), np.float32)
    np.savez(maps, clip_id=np.array(test), maps=values)
    return {"/data/vggsound.csv": str(table), "/data/vggsound": str(videos), "/data/maps_vggss.npz": str(maps)}


def run(block: Block, checkout: Path) -> str:
    """Run a block in the copy; what it printed."""
    argv = [sys.executable, "-c", block.text]
    if block.language == "sh":
        typed = [
            f"{command} {block.notes.get('adds', '')}" if command.startswith("python train.py") else command
            for command in commands(block)
        ]
        argv = ["bash", "-ec", "\n".join(typed)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(argv, cwd=checkout, env={**os.environ, **single}, capture_output=True, text=True)
    assert done.returncode == int(block.notes.get("exits", 0)), f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_guide_runs_as_it_is_written(guide: Path, checkout: Path, tmp_path: Path):
    theirs = stand_ins(tmp_path)
    printed = []
    for block in blocks(guide):
        for path, stand_in in theirs.items():
            block.text = block.text.replace(path, stand_in)
        if "file" in block.notes:
            (checkout / block.notes["file"]).write_text(block.text)
        else:
            assert block.language in ("sh", "python"), f"{guide} has a block that nobody runs:\n{block.text}"
            printed.append(run(block, checkout))
    for promised in re.findall(r"runs/[\w-]+/report\.html", guide.read_text()):
        assert (checkout / promised).is_file(), promised
    assert "Traceback" not in "".join(printed)
