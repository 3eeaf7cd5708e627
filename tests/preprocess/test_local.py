"""Packing with real processes that are really killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import UserError
from configs.load import load_frontend
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.verify import verify
from preprocess.writer import Packed, pack
from tests.conftest import numbered_picture, tone, write_wav
from tests.preprocess.kills import packing_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six stills with sound; that of "slow" lasts long enough to be killed on."""
    folder = tmp_path / "source"
    folder.mkdir()
    Image.fromarray(numbered_picture(0, 64, 48)).save(folder / "a.png")
    write_wav(folder / "short.wav", tone(0.5, 16000), 16000)
    write_wav(folder / "long.wav", tone(500.0, 16000), 16000)
    lines = [
        {"clip_id": name, "image": "a.png", "audio": "long.wav" if name == "slow" else "short.wav"}
        for name in ("a", "b", "slow", "c", "d", "e")
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(source: Path, store: Path, report=lambda kind, what: None) -> Packed:
    layout = Manifest(Manifest.Config(name="manifest"), source)
    config = PackConfig(frontends=(load_frontend("logmel"),), waveform=False)
    return pack(layout, store, config, Local(Local.Config(name="local", workers=1)), dataset="made", report=report)


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [1, 5])
def test_a_killed_process_takes_nothing_with_it(source: Path, tmp_path: Path, deaths: int):
    killed = []

    def kill(kind: str, what: str) -> None:
        if (kind, what) == ("clip", "slow") and len(killed) < deaths:
            (process,) = packing_processes(os.getpid())
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    packed = run(source, tmp_path / "store", kill)
    assert len(set(killed)) == deaths
    wanted = [] if deaths == 1 else [["slow", "train", "a.png", "worker_crash", "the process ended by SIGKILL"]]
    assert packed.refused == wanted and packed.packed == 6 - len(wanted)
    assert verify(tmp_path / "store") == []
    assert not packing_processes(os.getpid())


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_said_in_the_parent(source: Path, tmp_path: Path):
    store = tmp_path / "store"

    def block(kind: str, what: str) -> None:
        # The name that the shard will be renamed to is taken by a file.
        (store / "shard-00000").touch()

    with pytest.raises(UserError, match=r"cannot write .*shard-00000.tmp"):
        run(source, store, block)
    assert not packing_processes(os.getpid()) and not list(store.glob("*.tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_and_the_same_command_goes_on(source: Path, tmp_path: Path, number: signal.Signals):
    store = tmp_path / "store"
    with open(source / "manifest.jsonl", "a") as manifest:  # so many that it cannot be over before it is told to stop
        for clip in range(294):
            manifest.write(f'\n{{"clip_id": "more_{clip}", "image": "a.png", "audio": "short.wav"}}')
    arguments = ["pack", "manifest", str(source), str(store), "--workers", "1", "--shard-clips", "2"]
    command = [sys.executable, "-m", "preprocess", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while not list(store.glob("shard-*")):
        assert process.poll() is None
    os.killpg(process.pid, number)
    output, _ = process.communicate()
    assert process.returncode == 130 and "of 150 shards done; run the same command to go on" in output
    assert "Traceback" not in output and not list(store.glob("*.tmp-*"))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "packed 300 of 300 clips" in again.stdout
    assert verify(store) == []
