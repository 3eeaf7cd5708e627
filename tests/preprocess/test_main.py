import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from preprocess.__main__ import main
from tests.conftest import make_clip

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips, one of them without sound."""
    for name in ("a", "b"):
        make_clip(tmp_path / "in" / f"{name}.mp4", seconds=1.0)
    make_clip(tmp_path / "in" / "mute.mp4", seconds=1.0, audio=False)
    return tmp_path / "in"


def pack(folder: Path, store: Path, *more: str) -> int:
    return main(["pack", "clips", str(folder), str(store), "--workers", "0", *more])


def test_pack_verify_info(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = tmp_path / "store"
    assert pack(folder, store, "--frontend", "logmel64", "ez_vsl", "--frames", "annotated", "2fps") == 0
    output = capsys.readouterr().out
    assert "packed 2 of 3 clips" in output and "no_audio" in output and "mute.mp4 has no audio stream" in output
    assert main(["verify", str(store)]) == 0
    assert "whole: 2 clips in 1 shards" in capsys.readouterr().out
    assert main(["info", str(store)]) == 0
    assert "front-end ez_vsl" in capsys.readouterr().out
    assert main(["info", str(store), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert list(info["frontends"]) == ["logmel64", "ez_vsl"] and info["frames"]["frames"] == ["annotated", "2fps"]
    assert pack(folder, store, "--frontend", "logmel64", "ez_vsl", "--frames", "annotated", "2fps") == 0
    assert "already packed" in capsys.readouterr().out
    os.truncate(store / "shard-00000" / "data.mdb", 100)
    assert main(["verify", str(store)]) == 1
    assert "shard-00000: data.mdb has 100 bytes" in capsys.readouterr().out


def test_too_many_refused_is_a_failure(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert pack(folder, tmp_path / "store", "--max-refused", "0.3") == 1
    assert "33.3% of the clips were refused, more than --max-refused 0.3" in capsys.readouterr().err
    assert pack(folder, tmp_path / "store", "--max-refused", "0.4") == 0
    assert pack(folder, tmp_path / "store", "--strict") == 1
    assert main(["verify", str(tmp_path / "store")]) == 0


def test_a_refused_test_clip_is_a_failure(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "clips.csv").write_text("clip_id,split\na,train\nb,test_hard\nmute,test_hard\n")
    assert pack(folder, tmp_path / "store") == 1
    captured = capsys.readouterr()
    assert "test_hard mute: no_audio" in captured.out
    assert "1 clips of a test split were refused" in captured.err


def test_missing_clips_of_a_list_are_a_failure_if_strict(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "list.txt").write_text("a\nb\nc\n")
    command = (folder, tmp_path / "store", "--list", str(tmp_path / "list.txt"), "--frontend", "none")
    assert pack(*command) == 0
    assert pack(*command, "--strict") == 1
    assert "failed: 0 clips were refused and 1 are missing (--strict)" in capsys.readouterr().err


def test_another_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "other.csv").write_text("clip_id\na\n")
    assert pack(folder, tmp_path / "store", "--csv", str(tmp_path / "other.csv"), "--frontend", "none") == 0
    assert "2 video files are not in" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clipz", "IN", "STORE"], "no 'clipz' in layouts; there are: .*clips, .*manifest.* Did you mean 'clips'?"),
        (["clips", "IN/none", "STORE"], "no input at .*none"),
        (["clips", "IN/a.mp4", "STORE"], "is not a folder"),
        (["manifest", "IN", "STORE"], "no manifest at"),
        (["clips", "IN", "STORE", "--frontend", "logmul"], "no front-end 'logmul'.*Did you mean 'logmel'"),
        (["clips", "IN", "STORE", "--frames", "all"], "frames: 'all' is none of annotated, middle"),
        (["clips", "IN", "STORE", "--quality", "0"], "quality: .*greater than or equal to 1"),
        (["clips", "IN", "STORE", "--short-side", "9999"], "short_side_px: .*4096"),
        (["clips", "IN", "STORE", "--waveform-rate", "10"], "waveform_rate_hz: .*4000"),
        (["clips", "IN", "STORE", "--workers", "-1"], "workers: .*greater than or equal to 0"),
        (["clips", "IN", "STORE", "--shard-clips", "0"], "--shard-clips must be at least 1"),
        (["clips", "IN", "STORE", "--max-refused", "50"], "--max-refused is a share"),
        (["clips", "IN", "STORE", "--csv", "nowhere.csv"], "cannot read nowhere.csv"),
        (["clips", "IN", "STORE", "--colour", "red"], "unknown option --colour; the layout 'clips' has --csv"),
        (["manifest", "IN", "STORE", "--csv", "x"], "unknown option --csv; the layout 'manifest' has none"),
        (["clips", "IN", "IN"], "holds files that are not of an unfinished store"),
    ],
)
def test_wrong_input_is_answered_before_anything_is_written(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
):
    store = tmp_path / "store"
    places = [text.replace("IN", str(folder)).replace("STORE", str(store)) for text in arguments]
    with pytest.raises(UserError, match=message):
        main(["pack", *places])
    assert not store.exists()


def test_two_frontends_of_one_name(folder: Path, tmp_path: Path):
    other = tmp_path / "logmel.yaml"
    other.write_text((ROOT / "configs" / "frontends" / "logmel.yaml").read_text())
    with pytest.raises(UserError, match="two front-ends are named 'logmel'"):
        pack(folder, tmp_path / "store", "--frontend", "logmel", str(other))


def test_help_names_every_layout_and_its_options(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["pack", "--help"])
    output = capsys.readouterr().out
    assert left.value.code == 0 and "clips" in output and "--csv" in output and "manifest.jsonl" in output


def test_the_command_leaves_with_2_and_one_message(tmp_path: Path):
    command = [sys.executable, "-m", "preprocess", "verify", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
