"""Every layout of the field, on a small folder of its kind: recognised, listed, packed."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from configs.errors import UserError
from configs.load import load_frontend
from configs.resolve import names, resolve
from pipeline.record import Record, decode
from pipeline.store import Store
from preprocess.engines.local import Local
from preprocess.layout import Layout
from preprocess.options import PackConfig
from preprocess.recognise import recognise
from preprocess.selection import select
from preprocess.writer import pack
from tests.conftest import make_clip, tone, write_wav

A, B = "-Qowmc0P9ic_000034", "6zlMP_kQ_-w_000030"
MS = {A: "-Qowmc0P9ic_34000_44000", B: "6zlMP_kQ_-w_30000_40000"}
FLICKR = "10000130166", "10007936344"
XML = (
    "<annotation><p1><bbox><n/><a>64</a><b>0</b><c>128</c><d>256</d></bbox></p1>"
    "<p2/><p3><bbox><n/><a>0</a><b>0</b><c>256</c><d>256</d></bbox></p3></annotation>"
)


def picture(path: Path, value: int = 90, size: int = 64) -> None:
    """A grey picture with a white square in its upper left quarter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), value, np.uint8)
    pixels[: size // 2, : size // 2] = 255
    assert cv2.imwrite(str(path), pixels)


def sound(path: Path, rate_hz: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, tone(1.0, rate_hz), rate_hz)


def frames_audio(folder: Path) -> None:
    picture(folder / "frames" / f"{A}.jpg")
    picture(folder / "frames" / B / "any.jpg")
    for clip_id in (A, B):
        sound(folder / "audio" / f"{clip_id}.wav")


def fnac(folder: Path) -> None:
    for clip_id in (A, B):
        picture(folder / "frames" / f"{clip_id}.png")
        sound(folder / "audio" / f"{clip_id}.wav")


def htf(folder: Path) -> None:
    for name in MS.values():
        picture(folder / "frames" / f"{name}.jpg")
        sound(folder / "audio" / f"{name}.wav", 22050)
    for axis in ("x", "y"):
        picture(folder / f"flow/flow_{axis}" / f"{MS[A]}.jpg", 0)


def vcs(folder: Path) -> None:
    for clip_id in (A, B):
        for second in (1, 7):
            picture(folder / "video_frames" / clip_id / f"{second:03d}.jpg", 20 * second)
        sound(folder / "audios" / f"{clip_id}.wav", 24000)


def vcs_lmdb(folder: Path) -> None:
    for kind in ("images", "audios"):
        (folder / f"train_{kind}.lmdb").mkdir(parents=True)
        with (
            lmdb.open(str(folder / f"train_{kind}.lmdb"), map_size=2**24) as environment,
            environment.begin(write=True) as transaction,
        ):
            for clip_id in (A, B):
                if kind == "images":
                    for second in (1, 7):
                        pixels = np.full((256, 256, 3), (20 * second, 0, 0), np.uint8)
                        transaction.put(f"{clip_id}/{second:03d}.jpg".encode(), pixels.tobytes())
                else:
                    samples = (tone(1.0, 24000)[:, 0] / 32768).astype("<f4")
                    transaction.put(clip_id.encode(), samples.tobytes())


def ssl_align(folder: Path) -> None:
    for name in MS.values():
        for number in (1, 50):
            picture(folder / "IMG" / name / f"image_{number:03d}.jpg", number)
        sound(folder / "AUD" / f"{name}.wav")


def jsa(folder: Path) -> None:
    (folder / "audio").mkdir(parents=True)
    for clip_id in (A, B):
        picture(folder / "frames" / f"{clip_id}.jpg")
        np.save(folder / "audio" / f"{clip_id}.npy", np.full((1, 257, 501), 0.5, np.float32))


def soundnet(folder: Path) -> None:
    for number in FLICKR:
        for name in ("0001", "0002", "0003"):
            picture(folder / f"frames/videos1/1/6/6/{number}.mp4/{name}.jpg")
        sound(folder / f"mp3/videos1/1/6/6/{number}.mp4.wav")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / f"{FLICKR[0]}.xml").write_text(XML)


def avsbench_s4(folder: Path) -> None:
    for number in range(1, 6):
        picture(folder / f"visual_frames/test/helicopter/0d9u2CymIxc/0d9u2CymIxc_{number}.png")
        picture(folder / f"gt_masks/test/helicopter/0d9u2CymIxc/0d9u2CymIxc_{number}.png", 0)
    sound(folder / "audio_wav/test/helicopter/0d9u2CymIxc.wav")


def avsbench_ms3(folder: Path) -> None:
    for number in range(1, 6):
        picture(folder / f"visual_frames/rq5RDUm2Hnk_1/rq5RDUm2Hnk_1.mp4_{number}.png")
        picture(folder / f"gt_masks/test/rq5RDUm2Hnk_1/rq5RDUm2Hnk_1_{number}.png", 0)
    sound(folder / "audio_wav/test/rq5RDUm2Hnk_1.wav")


def annotated(name: str, pictures: str, *stems: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        rows = [
            {"image": f"/disk/{stem}.jpg", "audio": f"/disk/{stem}.wav", "gt_box": [0, 0, 56.0, 112 * bool(number)]}
            for number, stem in enumerate((*stems, "absent_1"))
        ]
        for stem in stems:
            picture(folder / pictures / f"{stem}.jpg")
            sound(folder / "audio_wav" / f"{stem}.wav")
        (folder / name).write_text(json.dumps(rows))

    return build


def vggsound(folder: Path) -> None:
    make_clip(folder / f"{A}.mp4", seconds=1.0)
    make_clip(folder / "more" / f"{MS[B]}.mp4", seconds=1.0)


def clips(folder: Path) -> None:
    make_clip(folder / "mine.mp4", seconds=1.0)


def manifest(folder: Path) -> None:
    clips(folder)
    (folder / "manifest.jsonl").write_text('{"clip_id": "a", "video": "mine.mp4"}\n')


FRAMES = ["0d9u2CymIxc", "rq5RDUm2Hnk_1"]
IS3 = ["cat_dog_12_cat", "cat_dog_12_dog"]
VPO = ["000000416718_160464", "000000416718_160465"]
BUILT: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "avsbench_ms3": (avsbench_ms3, [f"{FRAMES[1]}_{number}" for number in range(1, 6)]),
    "avsbench_s4": (avsbench_s4, [f"{FRAMES[0]}_{number}" for number in range(1, 6)]),
    "clips": (clips, ["mine"]),
    "fnac": (fnac, [A, B]),
    "frames_audio": (frames_audio, [A, B]),
    "htf": (htf, [A, B]),
    "is3": (annotated("synthetic3240_bbox.json", "images", *IS3), IS3),
    "jsa": (jsa, [A, B]),
    "manifest": (manifest, ["a"]),
    "soundnet": (soundnet, list(FLICKR)),
    "ssl_align": (ssl_align, [A, B]),
    "vcs": (vcs, [A, B]),
    "vcs_lmdb": (vcs_lmdb, [A, B]),
    "vggsound": (vggsound, [A, B]),
    "vpo_ms": (annotated("vpo_ms_bbox.json", "visual_frames", *VPO), VPO),
    "vpo_ss": (annotated("vpo_ss_bbox.json", "visual_frames", *VPO), VPO),
}


def layout_of(name: str, folder: Path, **options: str) -> Layout:
    layout = resolve("preprocess.layouts", name)
    return layout(layout.Config(name=name, **options), folder)


def packed(name: str, folder: Path, **options: str) -> dict[str, Record]:
    """The records of all clips of a folder, none refused."""
    layout = layout_of(name, folder, **options)
    chosen = select(layout, layout.clips())
    frontends = (load_frontend("jsa"),) if name == "jsa" else ()
    flow = "published" if name == "htf" else "none"
    config = PackConfig(frontends=frontends, waveform=name != "jsa", flow=flow)
    store = folder.parent / "store"
    result = pack(layout, store, config, Local(Local.Config(name="local", workers=0)), dataset="d", clips=chosen.clips)
    assert not result.refused
    with Store(store) as found:
        return {(record := decode(bytes(found.value(number)))).clip_id: record for number in range(len(found))}


@pytest.mark.parametrize("name", names("preprocess.layouts"))
def test_a_folder_is_recognised_and_packed(name: str, tmp_path: Path):
    build, ids = BUILT[name]
    folder = tmp_path / "in"
    build(folder)
    if name == "manifest":  # its folder is one of clips as well
        with pytest.raises(UserError, match=r"2 layouts(.|\n)*clips: (.|\n)*manifest: manifest.jsonl"):
            recognise(folder)
        assert recognise(folder / "manifest.jsonl")[0] == name
    else:
        assert recognise(folder)[0] == name
    records = packed(name, folder)
    assert sorted(records) == sorted(ids)
    for record in records.values():
        assert record.frames[0].jpeg and (record.waveform is not None or record.spectrograms)


def pixel(record: Record) -> int:
    """The blue value in the lower right corner of a record's picture."""
    return int(cv2.imdecode(np.frombuffer(record.frames[0].jpeg, np.uint8), cv2.IMREAD_COLOR)[-1, -1, 0])


@pytest.mark.parametrize(
    ("name", "value", "option", "other"), [("vcs", 140, "001.jpg", 20), ("ssl_align", 50, "first", 1)]
)
def test_one_picture_of_several_is_chosen(name: str, value: int, option: str, other: int, tmp_path: Path):
    BUILT[name][0](tmp_path / "a" / "in")
    assert abs(pixel(packed(name, tmp_path / "a" / "in")[A]) - value) <= 2
    BUILT[name][0](tmp_path / "b" / "in")
    assert abs(pixel(packed(name, tmp_path / "b" / "in", picture=option)[A]) - other) <= 2


def test_a_picture_that_is_not_there_is_named(tmp_path: Path):
    vcs(tmp_path)
    (tmp_path / "video_frames" / A / "007.jpg").rename(tmp_path / "video_frames" / A / "008.jpg")
    layout = layout_of("vcs", tmp_path)
    assert [clip.clip_id for clip in layout.clips()] == [B]
    assert [(item.clip_id, item.reason) for item in layout.left_out] == [(A, "no_picture"), (A, "no_picture")]


def test_flow_pictures_come_along(tmp_path: Path):
    htf(tmp_path / "in")
    records = packed("htf", tmp_path / "in")
    assert records[A].frames[0].flow is not None and records[B].frames[0].flow is None
    layout = layout_of("htf", tmp_path / "in")
    layout.clips()
    assert layout.notes == ["1 of 2 clips have no flow_x and flow_y; they are packed without flow"]


def test_pictures_and_sounds_in_one_folder(tmp_path: Path):
    for number in FLICKR:
        picture(tmp_path / f"{number}.jpg")
        sound(tmp_path / f"{number}.wav")
    assert recognise(tmp_path)[0] == "fnac"
    assert sorted(clip.clip_id for clip in layout_of("fnac", tmp_path).clips()) == sorted(FLICKR)


def test_the_annotated_flickr_download(tmp_path: Path):
    picture(tmp_path / "in" / "Data" / "6" / f"{FLICKR[0]}.jpg")
    sound(tmp_path / "in" / "Data" / "6" / f"{FLICKR[0]}.wav")
    picture(tmp_path / "in" / "Data" / "logo.png")
    (tmp_path / "in" / "Annotations").mkdir()
    (tmp_path / "in" / "Annotations" / f"{FLICKR[0]}.xml").write_text(XML)
    assert recognise(tmp_path / "in")[0] == "soundnet"
    record = packed("soundnet", tmp_path / "in")[FLICKR[0]]
    assert record.boxes is not None and record.extra == {"annotators": 3}
    np.testing.assert_array_equal(record.boxes, [[0.25, 0, 0.5, 1, 0], [0, 0, 1, 1, 1]])


def test_given_spectrograms_are_stored_under_the_logarithm(tmp_path: Path):
    jsa(tmp_path / "in")
    record = packed("jsa", tmp_path / "in")[A]
    assert record.waveform is None and record.source.duration_s == 5.0
    stored = record.spectrograms["jsa"]
    assert stored.shape == (501, 257)
    np.testing.assert_allclose(stored.astype(np.float32), np.log(0.5 + 1e-7), atol=1e-3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 129, 501), np.float32),
        np.full((1, 257, 501), -3.0, np.float32),
        np.full((257, 501), np.nan, np.float32),
        np.zeros((257, 501), np.int16),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_arrays_that_are_no_powers_are_refused(array: np.ndarray, tmp_path: Path):
    jsa(tmp_path / "in")
    np.save(tmp_path / "in" / "audio" / f"{B}.npy", array)
    layout = layout_of("jsa", tmp_path / "in")
    config = PackConfig(frontends=(load_frontend("jsa"),), waveform=False)
    result = pack(layout, tmp_path / "store", config, Local(Local.Config(name="local", workers=0)), dataset="d")
    assert [row[3] for row in result.refused] == ["bad_spectrogram"]


def test_raw_pictures_and_samples_of_lmdb(tmp_path: Path):
    vcs_lmdb(tmp_path / "in")
    records = packed("vcs_lmdb", tmp_path / "in")
    assert abs(pixel(records[A]) - 140) <= 2
    waveform = records[A].waveform
    assert waveform is not None and len(waveform) == 16000
    assert abs(int(waveform.max()) - 0.5 * 32767) < 200


def test_pickled_lmdb_values_are_refused(tmp_path: Path):
    vcs_lmdb(tmp_path)
    with (
        lmdb.open(str(tmp_path / "train_images.lmdb"), map_size=2**24) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(f"{A}/007.jpg".encode(), b"\x80\x04N.")
    with pytest.raises(UserError, match="It looks pickled"):
        layout_of("vcs_lmdb", tmp_path).clips()
    (tmp_path / "train_images.lmdb" / "data.mdb").write_bytes(b"nothing" * 1000)
    with pytest.raises(UserError, match="not an LMDB environment"):
        layout_of("vcs_lmdb", tmp_path).clips()


def test_masks_of_avsbench_are_binary(tmp_path: Path):
    avsbench_ms3(tmp_path / "in")
    for path in (tmp_path / "in" / "gt_masks").rglob("*.png"):
        mask = np.zeros((64, 64, 3), np.uint8)
        mask[:32, :32, 2] = 60  # red: a class colour
        assert cv2.imwrite(str(path), mask)
    record = packed("avsbench_ms3", tmp_path / "in")[f"{FRAMES[1]}_2"]
    assert (record.split, record.annotated_s, record.boxes) == ("avsbench_ms3_test", 2.0, None)
    expected = np.zeros((64, 64), np.uint8)
    expected[:32, :32] = 255
    np.testing.assert_array_equal(record.mask, expected)


def test_boxes_of_avsbench_may_be_empty(tmp_path: Path):
    avsbench_s4(tmp_path / "in")
    rows = [
        {"image": f"/disk/{FRAMES[0]}_{number}.png", "audio": "a.wav", "gt_box": [0, 0, 112 * (number - 1), 112]}
        for number in (1, 2)
    ]
    (tmp_path / "boxes.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    records = packed("avsbench_s4", tmp_path / "in", boxes=str(tmp_path / "boxes.json.gz"))
    assert {clip_id: record.boxes.tolist() for clip_id, record in records.items()} == {
        f"{FRAMES[0]}_1": [[0, 0, 0, 0.5, 0]],
        f"{FRAMES[0]}_2": [[0, 0, 0.5, 0.5, 0]],
    }
    assert records[f"{FRAMES[0]}_1"].label == "helicopter"


def test_flat_avsbench_needs_its_table(tmp_path: Path):
    for number in range(1, 6):
        picture(tmp_path / "visual_frames" / f"{FRAMES[1]}_{number}.png")
    picture(tmp_path / "gt_masks" / f"{FRAMES[1]}_1.png", 0)
    sound(tmp_path / "audio_wav" / f"{FRAMES[1]}.wav")
    with pytest.raises(UserError, match=r"--meta ms3_meta_data\.csv"):
        layout_of("avsbench_ms3", tmp_path).clips()
    (tmp_path / "ms3_meta_data.csv").write_text(f"video_id,split\n{FRAMES[1]},val\nother_2,test\n")
    assert recognise(tmp_path)[0] == "avsbench_ms3"
    layout = layout_of("avsbench_ms3", tmp_path)
    found = layout.clips()
    assert {clip.split for clip in found} == {"val"} and sum(clip.mask is not None for clip in found) == 1
    assert layout.expected == {"train": 0, "val": 5, "avsbench_ms3_test": 5}


def test_the_sets_of_ssl_align(tmp_path: Path):
    BUILT["is3"][0](tmp_path)
    layout = layout_of("is3", tmp_path)
    first, second = layout.clips()
    assert (first.group, first.label, second.label) == ("cat_dog_12", "cat", "dog")
    assert (first.boxes, second.boxes) == ([[0, 0, 0.25, 0, 0]], [[0, 0, 0.25, 0.5, 0]])
    assert layout.expected == {"is3_test": 3}
    assert [(item.clip_id, item.reason) for item in layout.left_out] == [("absent_1", "missing")]
    for stem in IS3:
        picture(tmp_path / "gt_segmentation" / f"{stem}.jpg", 0)
    masked = layout_of("is3", tmp_path, truth="masks").clips()
    assert [clip.mask for clip in masked] == [f"gt_segmentation/{stem}.jpg" for stem in IS3]
    assert all(clip.boxes is None for clip in masked)
    (tmp_path / "synthetic3240_bbox.json").unlink()
    with pytest.raises(UserError, match="--boxes FILE"):
        layout.clips()


def test_other_video_names_are_left_out_by_name(tmp_path: Path):
    for name in (f"{A}.mp4", f"{MS[A]}.webm", "holiday.mp4"):
        (tmp_path / name).touch()
    layout = layout_of("vggsound", tmp_path)
    assert [(clip.clip_id, clip.video) for clip in layout.clips()] == [(A, f"{A}.mp4")]
    assert [(item.clip_id, item.reason) for item in layout.left_out] == [("holiday", "other_name"), (A, "duplicate")]


def test_what_has_no_partner_is_left_out_by_name(tmp_path: Path):
    for clip_id in (A, B):
        picture(tmp_path / "frames" / f"{clip_id}.jpg")
    sound(tmp_path / "audio" / f"{B}.wav")
    sound(tmp_path / "audio" / "10000130166.wav")
    layout = layout_of("frames_audio", tmp_path)
    assert [clip.clip_id for clip in layout.clips()] == [B]
    assert {(item.clip_id, item.reason) for item in layout.left_out} == {(A, "no_sound"), ("10000130166", "no_picture")}
    (tmp_path / "audio" / f"{B}.wav").unlink()
    with pytest.raises(UserError, match="2 pictures and 1 sounds, none of one name"):
        layout.clips()


LINKED = {
    "frames_audio": ("frames", "audio"),
    "htf": ("frames", "audio", "flow/flow_x", "flow/flow_y"),
    "vcs": ("video_frames", "audios"),
    "ssl_align": ("IMG", "AUD"),
    "avsbench_s4": ("visual_frames", "audio_wav", "gt_masks"),
    "is3": ("images", "audio_wav"),
    "vcs_lmdb": ("train_images.lmdb", "train_audios.lmdb"),
}


@pytest.mark.parametrize(("name", "linked"), [(name, folder) for name, folders in LINKED.items() for folder in folders])
def test_no_layout_leaves_its_folder(name: str, linked: str, tmp_path: Path):
    folder = tmp_path / "in"
    BUILT[name][0](folder)
    (folder / linked).rename(tmp_path / "outside")
    (folder / linked).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of"):
        layout_of(name, folder).clips()


@pytest.mark.parametrize(
    ("name", "pattern"), [("vggsound", "*.mp4"), ("fnac", "*.png"), ("soundnet", "*.jpg"), ("jsa", "*.npy")]
)
def test_no_linked_file_leads_out(name: str, pattern: str, tmp_path: Path):
    folder = tmp_path / "in"
    BUILT[name][0](folder)
    path = sorted(folder.rglob(pattern))[0]
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of"):
        layout_of(name, folder).clips()


def test_an_unknown_folder_says_what_is_below(tmp_path: Path):
    fnac(tmp_path / "in" / "VGGSound")
    with pytest.raises(UserError, match=r"it holds VGGSound/(.|\n)*VGGSound is of fnac"):
        recognise(tmp_path / "in")
    with pytest.raises(UserError, match="no input at"):
        recognise(tmp_path / "nowhere")
