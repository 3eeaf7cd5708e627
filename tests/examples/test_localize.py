"""Any picture and sound, or video, with any method: the maps of a store, a video in step, and clear words otherwise."""

from dataclasses import replace
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.load import load_frontend
from configs.resolve import names
from examples.heat import Heat
from examples.localization import OWN, Localizer
from examples.localize import main
from pipeline.loader import build_loader
from preprocess.engines.local import Local
from preprocess.layouts.clips import Clips
from preprocess.options import PackConfig
from preprocess.sound import read_sound
from preprocess.video import each_picture, read_pictures
from preprocess.writer import pack
from tests.conftest import make_clip, tone, write_wav
from tests.examples.small_checkpoints import small_checkpoint

FPS, RATE_HZ = 10, 16000


def moving(number: int, width: int, height: int) -> np.ndarray:
    """A bright square on its way to the right, so that there is flow."""
    picture = np.random.default_rng(0).integers(30, 90, (height, width, 3), dtype=np.uint8)
    picture[height // 3 : height // 2, 4 * number : 4 * number + width // 5] = (230, 180, 60)
    return picture


def noise(seconds: float) -> np.ndarray:
    """`(n, 1)` int16 that is like itself at no lag but 0."""
    return np.random.default_rng(1).normal(0, 4000, (round(seconds * RATE_HZ), 1)).astype(np.int16)


def make_video(path: Path, seconds: float = 2.0, **changed) -> Path:
    options = {"width": 96, "height": 64, "fps": FPS, "rate_hz": RATE_HZ, "sound": noise(seconds), "picture": moving}
    return make_clip(path, seconds=seconds, **{**options, **changed})


def make_still(folder: Path, name: str = "bird") -> tuple[Path, Path]:
    """A picture and three seconds of sound."""
    picture = av.VideoFrame.from_ndarray(moving(3, 120, 80), format="rgb24").to_image()
    picture.save(folder / f"{name}.png")
    return folder / f"{name}.png", write_wav(folder / f"{name}.wav", tone(3.0, 22050), 22050)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("run"), "ez_vsl")


@pytest.fixture(scope="module")
def localizer(run: Path) -> Localizer:
    return Localizer(run)


@pytest.mark.parametrize(("method", "fit"), [("ez_vsl", "whole"), ("htf", "middle")])
def test_a_map_is_that_of_a_store_with_the_same_clip(tmp_path: Path, method: str, fit: str):
    for name, seconds in (("a", 1.6), ("b", 2.4)):
        make_video(tmp_path / "clips" / f"{name}.mp4", seconds)
    layout = Clips(Clips.Config(name="clips"), tmp_path / "clips")
    config = PackConfig(frontends=(load_frontend("logmel64"),), flow="signed")
    pack(layout, tmp_path / "store", config, Local(Local.Config(name="local", workers=0)), dataset="made")
    image = {"size_px": 64, "test_fit": fit}
    localizer = Localizer(small_checkpoint(tmp_path / "run", method, image=image, store=tmp_path / "store"))
    assert localizer.flow == ("signed" if method == "htf" else "none") and localizer.flow_is_known
    with_store = localizer.config.data
    loader = build_loader(with_store, localizer.model.inputs, layout.clips()[0].split, train=False)
    (batch,) = loader
    loader.close()
    with torch.inference_mode():
        stored = localizer.model.localize(batch).map
    for clip_id, valid, expected in zip(batch.clip_id, batch.valid, stored):
        if not valid:
            continue
        path = next((tmp_path / "clips").glob(f"{clip_id}.mp4"))
        heard = localizer.hear(path)
        pictures = read_pictures(path, [heard.duration_s / 2], 256, 90, localizer.flow)
        found = localizer.localize(pictures, heard, [None])
        torch.testing.assert_close(found.named[OWN][0], expected, rtol=1e-4, atol=1e-6)
        assert expected.std() > 0
        assert found.part == ((0, 0, 1, 1) if fit == "whole" else (1 / 6, 0, 5 / 6, 1))


@pytest.mark.parametrize("method", names("model.methods"))
def test_every_method_has_a_map_for_a_picture_and_for_a_video(tmp_path: Path, method: str):
    localizer = Localizer(small_checkpoint(tmp_path, method))
    still = localizer.of_still(*make_still(tmp_path))
    video = localizer.of_video(make_video(tmp_path / "v.mp4"), 1.0)
    first, second = video.named[OWN][:2]
    assert len(still.named[OWN]) == 1 and first.isfinite().all() and not torch.equal(first, second)
    assert (video.pictures[0].flow is not None) == localizer.with_flow
    assert still.pictures[0].flow is None


def test_a_picture_and_a_sound_become_an_overlay_and_maps(run: Path, tmp_path: Path, capsys):
    image, audio = make_still(tmp_path)
    assert main([str(run), "--image", str(image), "--audio", str(audio), "--out", str(tmp_path / "out")]) == 0
    assert "1 map, heard 1.0 to 2.0 s" in capsys.readouterr().out
    with np.load(tmp_path / "out" / "bird.npz") as saved:
        assert saved["clip_id"].tolist() == ["bird"] and saved["maps"].shape[0] == 1
        assert saved["part"].tolist() == [0, 0, 1, 1]
    with av.open(str(tmp_path / "out" / "bird.jpg")) as opened:
        assert next(opened.decode(video=0)).width == 120


def decoded_again(path: Path) -> tuple[list[float], np.ndarray]:
    """The times of a video's pictures, and its sound."""
    return [time_s for time_s, _ in each_picture(path)], read_sound(path).samples.astype(float)


def lag_of(sound: np.ndarray, source: np.ndarray, most: int = 4000) -> tuple[int, float]:
    """By how many samples a sound comes later than its source, and how much it is like it then."""
    size = min(len(sound), len(source))
    spectrum = np.fft.rfft(sound[:size], 2 * size) * np.fft.rfft(source[:size], 2 * size).conj()
    likeness = np.fft.irfft(spectrum) / np.linalg.norm(sound[:size]) / np.linalg.norm(source[:size])
    around = np.concatenate([likeness[-most:], likeness[: most + 1]])
    return int(around.argmax()) - most, float(around.max())


@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_a_video_keeps_its_pictures_and_its_sound_in_step(run: Path, tmp_path: Path, delay_s: float):
    source = make_video(tmp_path / "clip.mp4", sound_delay_s=delay_s)
    assert main([str(run), "--video", str(source), "--out", str(tmp_path / "out")]) == 0
    (times, sound), (source_times, source_sound) = map(decoded_again, (tmp_path / "out" / "clip.mp4", source))
    assert np.allclose(times, source_times, atol=1e-3) and len(times) == 20
    assert abs(len(sound) - len(source_sound)) <= 1024
    lag, likeness = lag_of(sound, source_sound)
    assert lag == 0 and likeness > 0.9
    with np.load(tmp_path / "out" / "clip.npz") as saved:
        # The pictures nearest to every quarter of a second, and the last one.
        assert np.allclose(saved["times_s"][:8], np.arange(8) / 4, atol=0.051) and len(saved["times_s"]) <= 9
        assert len(saved["maps"]) == len(saved["times_s"]) == len(saved["clip_id"])
    shown, before = (list(each_picture(path))[10][1] for path in (tmp_path / "out" / "clip.mp4", source))
    assert np.abs(shown.astype(int) - before).mean() > 5


def test_a_part_of_a_video_is_written_from_its_start(run: Path, tmp_path: Path):
    source, out = make_video(tmp_path / "clip.mp4", 3.0), tmp_path / "out"
    part = ["--start-s", "0.5", "--duration-s", "1.5"]
    assert main([str(run), "--video", str(source), "--out", str(out), *part]) == 0
    times, sound = decoded_again(out / "clip.mp4")
    assert len(times) == 15 and abs(times[0]) < 1e-3
    lag, likeness = lag_of(sound, decoded_again(source)[1][RATE_HZ // 2 :])
    assert lag == 0 and likeness > 0.9


@pytest.mark.slow
def test_a_minute_of_video_is_in_step_to_its_end(run: Path, tmp_path: Path):
    source, out = make_video(tmp_path / "long.mp4", 60.0, width=64, height=48), tmp_path / "out"
    assert main([str(run), "--video", str(source), "--out", str(out)]) == 0
    (times, sound), (source_times, source_sound) = map(decoded_again, (out / "long.mp4", source))
    assert np.allclose(times, source_times, atol=1e-3) and len(times) == 600
    assert lag_of(sound[55 * RATE_HZ :], source_sound[55 * RATE_HZ :])[0] == 0


def test_heat_is_smooth_in_time_and_covers_what_the_method_saw(localizer: Localizer, tmp_path: Path):
    maps = localizer.of_video(make_video(tmp_path / "clip.mp4"), 2.0)
    starts = [maps.heard.start_of(time_s) for time_s in maps.at_s]
    assert starts[0] == 0 and starts == sorted(starts)
    assert starts[-1] == len(maps.heard.log_power) - maps.heard.window
    heat = Heat(localizer, maps, OWN)
    first, second = (picture.time_s for picture in maps.pictures[:2])
    ends, middle = [heat.at(time_s, (96, 64)) for time_s in (first, second)], heat.at((first + second) / 2, (96, 64))
    assert not np.array_equal(*ends)
    mean = replace(maps, named={OWN: maps.named[OWN][:2].mean(0, keepdim=True)}, pictures=maps.pictures[:1])
    assert np.abs(Heat(localizer, mean, OWN).at(first, (96, 64)).astype(int) - middle).max() <= 1
    assert all(each.min() <= 10 and each.max() >= 240 for each in (*ends, middle))
    half = Heat(localizer, replace(maps, part=(0.25, 0, 0.75, 1)), OWN).at(first, (96, 64))
    assert not half[:, :24].any() and not half[:, 72:].any() and half[:, 24:72].any()


def test_refinements_add_maps(tmp_path: Path):
    run, (image, audio) = small_checkpoint(tmp_path / "run", "jsa"), make_still(tmp_path)
    files = ["--image", str(image), "--audio", str(audio), "--out", str(tmp_path / "out")]
    main([str(run), *files, "evaluate.refine.iqr={}"])
    with np.load(tmp_path / "out" / "bird.npz") as saved:
        assert {"maps", "iqr", "image_query"} <= set(saved)
        assert not np.allclose(saved["iqr"], saved["image_query"])
    with pytest.raises(UserError, match="no map 'ogl'; there are: map"):
        main([str(run), *files, "--overwrite", "--map", "ogl"])


def test_a_folder_is_done_but_for_what_cannot_be(run: Path, tmp_path: Path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    make_video(folder / "moves.mp4")
    make_video(folder / "mute.mp4", audio=False)
    make_still(folder)
    image, _ = make_still(folder, "alone")
    image.with_suffix(".wav").unlink()
    assert main([str(run), "--folder", str(folder), "--out", str(out)]) == 1
    assert {path.name for path in out.iterdir()} == {"moves.mp4", "moves.npz", "bird.jpg", "bird.npz"}
    said = capsys.readouterr().out
    assert "2 of 3 clips done" in said and "mute.mp4: no audio stream" in said and "alone.png" in said
    make_still(folder, "moves")
    with pytest.raises(UserError, match="more than one clip of the name moves"):
        main([str(run), "--folder", str(folder), "--out", str(out), "--overwrite"])


def test_a_silent_sound_is_named(run: Path, tmp_path: Path, capsys):
    quiet = make_video(tmp_path / "quiet.mp4", sound=np.zeros((2 * RATE_HZ, 1), np.int16))
    main([str(run), "--video", str(quiet), "--out", str(tmp_path / "out")])
    assert "this sound is silent" in capsys.readouterr().out


def test_a_method_without_flow_does_not_open_its_store(tmp_path: Path):
    (tmp_path / "store").mkdir()
    assert Localizer(small_checkpoint(tmp_path / "run", "ez_vsl", store=tmp_path / "store")).flow == "none"


def test_a_part_without_pictures_leaves_no_file(run: Path, tmp_path: Path):
    source, out = make_video(tmp_path / "clip.mp4", 1.0, sound=noise(3.0)), tmp_path / "out"
    with pytest.raises(UserError, match="no picture in this part of the video; give an earlier --start-s"):
        main([str(run), "--video", str(source), "--out", str(out), "--start-s", "2"])
    assert not list(out.iterdir())


def test_libraries_add_no_words_of_their_own(run: Path, tmp_path: Path, capfd):
    av.logging.set_level(av.logging.ERROR)  # as torchvision does when it is imported
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"x")
    with pytest.raises(UserError, match="no video, sound or picture format"):
        main([str(run), "--video", str(bad), "--out", str(tmp_path / "out")])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("option", ["--start-s 1e308", "--duration-s 0", "--maps-per-s 1e-9", "--strength nan"])
def test_a_number_out_of_range_is_named(tmp_path: Path, option: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--video", "clip.mp4", "--out", str(tmp_path), *option.split()])
    assert ended.value.code == 2 and f"'{option.split()[1]}' is no number from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("--video {mute}", "no audio stream.* give a picture with --image and a sound"),
        ("--video {clip} --video {mute}", "2 times --video: one clip at a time"),
        ("--video {clip} --image {png}", "found --image and --video; give --image PICTURE with"),
        ("--video {clip} {mute}", "is no key=value, and one clip comes at a time"),
        ("--image {png}", "found --image; give --image PICTURE with --audio SOUND"),
        ("--video {gone}", "gone.mp4: the file is not there"),
        ("--video {wav}", "bird.wav: no video stream, or no picture in it"),
        ("--image {wav} --audio {wav}", "bird.wav: no video, sound or picture format"),
        ("--folder {empty}", "no clip in .*: expected videos, or pictures and sounds"),
        ("--video {clip} --maps-per-s 900", "more than 1000 pictures.*--maps-per-s"),
        ("--video {clip} --start-s 9", "less than 0.1 s of sound.*earlier --start-s"),
        ("--video {clip} model.nonsense=1", "unknown key 'nonsense'"),
    ],
)
def test_what_cannot_be_done_is_said(run: Path, tmp_path: Path, asked: str, words: str):
    image, audio = make_still(tmp_path)
    (tmp_path / "empty").mkdir()
    files = {"clip": make_video(tmp_path / "clip.mp4"), "mute": make_video(tmp_path / "mute.mp4", audio=False)}
    files |= {"png": image, "wav": audio, "gone": tmp_path / "gone.mp4", "empty": tmp_path / "empty"}
    with pytest.raises(UserError, match=words):
        main([str(run), *asked.format(**files).split(), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path):
    image, audio = make_still(tmp_path)
    with pytest.raises(UserError, match=r"bird\.wav"):
        main([str(audio), "--image", str(image), "--audio", str(audio), "--out", str(tmp_path / "out")])
