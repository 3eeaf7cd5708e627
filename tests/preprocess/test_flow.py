import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from pipeline.store import Store
from preprocess.__main__ import main
from preprocess.flow import PX_PER_CODE, coded, flow_between, grey_jpeg
from preprocess.pictures import Picture, read_flow
from preprocess.refusals import Refused
from preprocess.video import read_pictures
from tests.conftest import make_clip, numbered_picture, tone, write_wav

STEP_PX = 4  # of the moving texture, a picture
TEXTURE = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (120, 400, 3)).astype(np.uint8), (0, 0), 3)
TEXTURE = cv2.normalize(TEXTURE, None, 0, 255, cv2.NORM_MINMAX)


def moving(number: int, width: int, height: int) -> np.ndarray:
    """A texture that moves STEP_PX to the left with every picture, and stands still from the fifth on."""
    start = STEP_PX * min(number, 4)
    return TEXTURE[:height, start : start + width]


def shown(picture: Picture, encoding: str) -> np.ndarray:
    """The flow that was stored, `(H, W, 2)` px, without its border of 16 px."""
    assert picture.flow is not None
    planes = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in picture.flow]
    assert all(plane.shape == picture.size[::-1] for plane in planes)
    codes = np.stack(planes, -1)[16:-16, 16:-16].astype(np.float64)
    return (codes - 128) * PX_PER_CODE if encoding == "signed" else codes


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("flow") / "v.mp4", seconds=0.8, picture=moving)


def test_flow_goes_to_the_next_picture(video: Path):
    times_s = [0.0, 0.1, 0.3, 0.5]  # one directly behind another; the texture stops at 0.4 s
    pictures = read_pictures(video, times_s, 256, 90, "signed")
    assert [round(picture.time_s, 3) for picture in pictures] == times_s
    for picture, step_px in zip(pictures, (STEP_PX, STEP_PX, STEP_PX, 0)):
        flow = shown(picture, "signed")
        assert np.median(flow[..., 0]) == pytest.approx(-step_px, abs=PX_PER_CODE)
        assert np.median(flow[..., 1]) == pytest.approx(0, abs=PX_PER_CODE)
    without = read_pictures(video, times_s, 256, 90)
    assert [picture.jpeg for picture in without] == [picture.jpeg for picture in pictures]
    assert all(picture.flow is None for picture in without)


def test_flow_is_in_pixels_of_the_stored_picture(video: Path):
    (picture,) = read_pictures(video, [0.0], 60, 90, "signed")
    assert picture.size == (80, 60)
    assert np.median(shown(picture, "signed")[..., 0]) == pytest.approx(-STEP_PX / 2, abs=PX_PER_CODE)


def test_the_last_picture_has_the_motion_that_led_to_it(tmp_path: Path):
    path = make_clip(tmp_path / "short.mp4", seconds=0.4, picture=moving)
    for time_s in (0.3, 9.0):
        (picture,) = read_pictures(path, [time_s], 256, 90, "signed")
        assert np.median(shown(picture, "signed")[..., 0]) == pytest.approx(-STEP_PX, abs=PX_PER_CODE)


def test_a_video_of_one_picture_has_no_flow(tmp_path: Path):
    path = make_clip(tmp_path / "one.mp4", seconds=0.1, picture=moving)
    (picture,) = read_pictures(path, [0.0], 256, 90, "signed")
    assert picture.flow is None


def test_the_published_codes_lose_what_is_negative(tmp_path: Path):
    def rightwards(number: int, width: int, height: int) -> np.ndarray:
        return moving(3 - number, width, height)

    path = make_clip(tmp_path / "right.mp4", seconds=0.4, picture=rightwards)
    (right,) = read_pictures(path, [0.1], 256, 90, "published")
    assert np.median(shown(right, "published")[..., 0]) == STEP_PX
    (left,) = read_pictures(make_clip(tmp_path / "left.mp4", seconds=0.4, picture=moving), [0.1], 256, 90, "published")
    assert shown(left, "published").max() <= 1


def test_codes_round_and_clip():
    flow = np.zeros((32, 32, 2), np.float32)
    flow[..., 0], flow[..., 1] = -100, 1.4
    x, y = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in coded(flow, "signed"))
    assert x.shape == (32, 32) and x.max() == 0 and (y == 134).all()
    x, y = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in coded(flow, "published"))
    assert x.max() == 0 and (y == 1).all()


def test_flow_equals_farneback_with_the_published_parameters():
    first, second = moving(0, 160, 120), moving(1, 160, 120)
    grey = [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in (first, second)]
    wanted = cv2.calcOpticalFlowFarneback(*grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    np.testing.assert_array_equal(flow_between(first, second), wanted)


def test_ready_pictures_keep_their_codes(tmp_path: Path):
    codes = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 40, (60, 80)).astype(np.uint8), (0, 0), 4)
    jpeg = grey_jpeg(codes)
    (tmp_path / "grey.jpg").write_bytes(jpeg)
    assert read_flow(tmp_path / "grey.jpg", (80, 60)) == jpeg
    with Image.open(io.BytesIO(jpeg)) as image:
        kept = np.asarray(image)
        image.save(tmp_path / "grey.png")
        image.convert("RGB").save(tmp_path / "colour.jpg", quality=100)
    for name in ("grey.png", "colour.jpg"):
        data = read_flow(tmp_path / name, (80, 60))
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.abs(found.astype(int) - kept).max() <= 2
    smaller = cv2.imdecode(np.frombuffer(read_flow(tmp_path / "grey.jpg", (40, 30)), np.uint8), cv2.IMREAD_UNCHANGED)
    assert smaller.shape == (30, 40) and abs(smaller.mean() - kept.mean()) < 1
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    for name, reason in (("cut.jpg", "bad_flow"), ("none.jpg", "missing_file")):
        with pytest.raises(Refused) as refused:
            read_flow(tmp_path / name, (80, 60))
        assert refused.value.reason == reason


def test_a_store_says_which_clips_have_flow(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    source = tmp_path / "source"
    source.mkdir()
    (source / "v.mp4").write_bytes(video.read_bytes())
    cv2.imwrite(str(source / "i.jpg"), numbered_picture(0, 64, 64))
    write_wav(source / "a.wav", tone(0.5, 16000), 16000)
    lines = [{"clip_id": "still", "image": "i.jpg"}, {"clip_id": "moving", "video": "v.mp4"}]
    (source / "manifest.jsonl").write_text("".join(f"{json.dumps({**line, 'audio': 'a.wav'})}\n" for line in lines))
    store = tmp_path / "store"
    assert main(["pack", "manifest", str(source), str(store), "--flow", "signed", "--workers", "0"]) == 0
    assert "1 of 2 clips have no flow" in " ".join(capsys.readouterr().out.split())
    with Store(store) as opened:
        said = opened.manifest["flow"]
        assert (said["encoding"], said["px_per_code"]) == ("signed", PX_PER_CODE)
        assert said["farneback"]["winsize"] == 15
        flows = dict(zip(opened.index["clip_id"], opened.index["flow"]))
        assert flows == {"still": False, "moving": True}
        number = opened.index["clip_id"].index("moving")
        assert {"flow/0/x", "flow/0/y"} <= set(opened.view(number).names())
    assert main(["info", str(store)]) == 0
    assert "1 of 2 clips have it" in " ".join(capsys.readouterr().out.split())


def test_ready_flow_is_taken_over_by_itself(tmp_path: Path):
    for folder in ("frames", "audio", "flow/flow_x", "flow/flow_y"):
        (tmp_path / "htf" / folder).mkdir(parents=True)
    jpeg = grey_jpeg(np.full((48, 64), 3, np.uint8))
    cv2.imwrite(str(tmp_path / "htf/frames/a.jpg"), numbered_picture(0, 64, 48))
    write_wav(tmp_path / "htf/audio/a.wav", tone(0.5, 16000), 16000)
    for axis in "xy":
        (tmp_path / f"htf/flow/flow_{axis}/a.jpg").write_bytes(jpeg)
    arguments = ["pack", "htf", str(tmp_path / "htf"), str(tmp_path / "store"), "--workers", "0"]
    with pytest.raises(UserError, match="published 8 bits"):
        main([*arguments, "--flow", "signed"])
    assert main(arguments) == 0
    with Store(tmp_path / "store") as opened:
        assert opened.flow_encoding == opened.manifest["flow"]["encoding"] == "published"
        assert bytes(opened.view(0).blob("flow/0/y")) == jpeg
