"""Question: what does packing a clip cost on this machine, stage by stage, and how far is that from bare decoding?

Method: made clips (photo-like JPEG and 10 s of 16 kHz WAV; 10 s of 640 x 360 H.264 with stereo AAC at 44.1 kHz, or your
own with --videos) from a warm page cache, on one thread. The floor is what cannot be avoided: decoding the JPEG and
reading the WAV (their log-spectrogram by torchaudio stands below it); decoding by PyAV, plainly, the video up to the
wanted picture and all of the sound. Stages are measured
by themselves, the whole by writing real shards. With --scale N also packs N clips (hard links to 256 distinct ones) by
processes and shows rate and memory over time.
A good answer: a video clip at most 1.15 times its floor, pictures with WAV at most 6 CPU-ms with a 10 s log-mel and 2.5
with EZ-VSL's 3 s; memory and rate that do not change from beginning to end.
"""

import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import torchaudio
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figure, descendants, measure, report
from benchmarks.make_store import make_input, picture, sound
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import load_frontend
from configs.schema import FrontendConfig
from pipeline.record import encode
from preprocess.clip import make_record
from preprocess.engines.local import Local
from preprocess.features import Resampled, spectrogram
from preprocess.layout import Layout, SourceClip
from preprocess.layouts.clips import Clips
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.pictures import read_still
from preprocess.quality import picture_measures, sound_measures
from preprocess.shard import write_shard
from preprocess.sound import read_sound
from preprocess.task import ShardTask
from preprocess.video import read_pictures
from preprocess.writer import default_shard_clips, ordered, pack

QUICK: dict[str, Any] = {"clips": 16}
NEEDS = ("lmdb", "av")
_DISTINCT = 64
_INSTANT_S = 5.0
_VIDEO_RATE_HZ = 44_100
_FULL_CLIPS = 144_000
_SAMPLE_EVERY_S = 0.5
_WINDOWS = 10


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--clips", type=int, default=128, help="pictures with sound; an eighth as many videos; default 128"
    )
    parser.add_argument("--videos", type=Path, help="folder of video files to take instead of made ones")
    parser.add_argument("--scale", type=int, default=0, metavar="N", help="also pack N clips by processes")
    parser.add_argument("--workers", type=int, default=1, help="processes for --scale; default 1")
    parser.add_argument(
        "--work", type=Path, help="folder for files that are deleted at the end; default: as the system's"
    )


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    clips: int = 128,
    videos: Path | None = None,
    scale: int = 0,
    workers: int = 1,
    work: Path | None = None,
) -> None:
    """Measure, print, and append rows to `out`; `store` is not used."""
    if clips < 4 or scale < 0 or workers < 1:
        raise UserError("--clips must be at least 4, --scale at least 0, --workers at least 1")
    if work is not None and not work.is_dir():
        raise UserError(f"--work: {work} is not a folder")
    keep_freed_memory()  # as packing processes do
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pack-rate-", dir=work) as name:
        folder = Path(name)
        for seconds, frontend in ((3.0, "ez_vsl"), (10.0, "logmel")):
            made = folder / frontend
            make_input(made, clips, distinct=_DISTINCT, seconds=seconds)
            layout = Manifest(Manifest.Config(name="manifest"), made)
            _stages(layout, load_frontend(frontend), rounds, out, folder, f"pictures with {seconds:g} s WAV")
        if videos is None:
            videos = folder / "videos"
            videos.mkdir()
            for number in range(max(1, clips // 8)):
                make_video(videos / f"{number}.mp4", seed=number)
        layout = Clips(Clips.Config(name="clips"), videos)
        _stages(layout, load_frontend("logmel"), rounds, out, folder, "videos")
        if scale:
            _scale(folder, scale, workers)


def make_video(path: Path, *, seconds: float = 10.0, width: int = 640, height: int = 360, seed: int = 0) -> None:
    """A clip as VGGSound has them: H.264 of 30 pictures a second with a key picture every 250, stereo AAC."""
    rng = np.random.default_rng(seed)
    scene = picture(rng, 2 * width, 2 * height)
    left = sound(rng, seconds, _VIDEO_RATE_HZ)
    with av.open(str(path), "w") as container:
        shown = container.add_stream("libx264", rate=30, options={"crf": "26", "g": "250", "threads": "1"})
        heard = container.add_stream("aac", rate=_VIDEO_RATE_HZ, layout="stereo")
        assert isinstance(shown, av.VideoStream) and isinstance(heard, av.AudioStream)
        shown.width, shown.height, shown.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * 30)):
            # The camera goes round, and what it sees flickers as grain does.
            x = round(width / 2 * (1 + np.sin(number / 40)))
            y = round(height / 2 * (1 + np.cos(number / 55)))
            seen = scene[y : y + height, x : x + width].astype(np.int16) + rng.integers(-3, 4, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(seen.clip(0, 255).astype(np.uint8), format="bgr24")
            frame.pts = number
            container.mux(shown.encode(frame))
        container.mux(shown.encode(None))
        piece = av.AudioFrame.from_ndarray(
            np.stack([left, left[::-1]], 1).reshape(1, -1), format="s16", layout="stereo"
        )
        piece.sample_rate = _VIDEO_RATE_HZ
        container.mux(heard.encode(piece))
        container.mux(heard.encode(None))


def _stages(layout: Layout, frontend: FrontendConfig, rounds: int, out: Path | None, folder: Path, what: str) -> None:
    clips = ordered(layout.clips())
    config = PackConfig(frontends=(frontend,))
    root = layout.root
    sounds = [read_sound(root / _sound_file(clip), 0.0, None) for clip in clips]
    records = [make_record(clip, root, config)[0] for clip in clips]
    size = sum(len(encode(record)) for record in records) / len(records)
    shards = iter(range(10**9))

    def each(function: Callable[[int], Any]) -> Callable[[], int]:
        def take() -> int:
            for number in range(len(clips)):
                function(number)
            return len(clips)

        return take

    def pictures(number: int) -> Any:
        clip = clips[number]
        if clip.video:
            return read_pictures(root / clip.video, [_instant_s(records[number])], config.short_side_px, config.quality)
        return read_still(root / (clip.image or ""), config.short_side_px, config.quality)

    def measures(number: int) -> None:
        picture_measures([bytes(frame.jpeg or b"") for frame in records[number].frames], bytes(72))
        sound_measures(sounds[number].samples)

    def features(number: int) -> None:
        resampled = Resampled(sounds[number])
        spectrogram(resampled, frontend, "float16")
        resampled.waveform(config.waveform_rate_hz)

    def whole() -> int:
        task = ShardTask(number=next(shards), store=folder, root=root, plan=what, config=config, clips=tuple(clips))
        write_shard(task, lambda kind, text: None)
        # Its pages go to the next one: on a virtual machine a page that nobody has used costs more than what it holds.
        shutil.rmtree(folder / task.name)
        return len(clips)

    floor = _bare_video if clips[0].video else _bare_files
    plain: Any = torchaudio.transforms.Spectrogram(frontend.n_fft, hop_length=frontend.hop)
    if frontend.mel_bins:
        plain = torchaudio.transforms.MelSpectrogram(
            frontend.sample_rate_hz, frontend.n_fft, hop_length=frontend.hop, n_mels=frontend.mel_bins
        )
    figures = measure(
        "pack_rate",
        {
            "bare decode": each(lambda number: floor(root, clips[number], _instant_s(records[number]))),
            "log-spectrogram by torchaudio": each(
                lambda number: plain(torch.from_numpy(sounds[number].samples).float().div_(32767)).add_(1e-6).log_()
            ),
            "whole: shards written and read back": whole,
            "pictures": each(pictures),
            "sound": each(lambda number: read_sound(root / _sound_file(clips[number]), 0.0, None)),
            "resampling and spectrogram": each(features),
            "quality": each(measures),
            "coding the record": each(lambda number: encode(records[number])),
        },
        rounds,
        {
            "bare decode": "the floor",
            "log-spectrogram by torchaudio": "at the sound's own rate",
            "whole: shards written and read back": f"{size / 1000:.0f} kB a clip",
        },
    )
    facts = {"input": what, "clips": len(clips), "frontend": frontend.name}
    report(figures, "bare decode", out, facts)
    Console().print(f"writing, reading back and checksums, by difference: {_rest(figures):.2f} CPU-ms a clip\n")


def _rest(figures: list[Figure]) -> float:
    cost = {figure.variant: figure.cpu_ms for figure in figures}
    whole = next(value for name, value in cost.items() if name.startswith("whole"))
    return whole - sum(value for name, value in cost.items() if not name.startswith(("whole", "bare", "log-")))


def _sound_file(clip: SourceClip) -> str:
    return clip.audio or clip.video or ""


def _instant_s(record: Any) -> float:
    return _INSTANT_S if record.annotated_s is None else record.annotated_s


def _bare_files(root: Path, clip: SourceClip, instant_s: float) -> None:
    cv2.imdecode(np.fromfile(root / (clip.image or ""), np.uint8), cv2.IMREAD_COLOR)
    (root / _sound_file(clip)).read_bytes()


def _bare_video(root: Path, clip: SourceClip, instant_s: float) -> None:
    """Decode plainly: pictures up to the wanted one, then the sound."""
    with av.open(str(root / _sound_file(clip))) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        for frame in container.decode(video):
            if frame.time is not None and frame.time >= instant_s:
                break
    with av.open(str(root / _sound_file(clip))) as container:
        audio = container.streams.audio[0]
        audio.codec_context.thread_count = 1
        for _ in container.decode(audio):
            pass


# -- many clips --------------------------------------------------------------------------------------------------------


def _scale(folder: Path, clips: int, workers: int) -> None:
    """Pack many clips by processes; show rate, CPU time and memory of every tenth of the way."""
    source = folder / "scale"
    make_input(source, clips)
    layout = Manifest(Manifest.Config(name="manifest"), source)
    done = 0

    def count(kind: str, text: str) -> None:
        nonlocal done
        done += kind in ("packed", "refused")

    start = time.monotonic()
    samples: list[tuple[int, float, float, int, int]] = [(0, 0.0, _cpu_s([]), 0, 0)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_EVERY_S):
            children = descendants(os.getpid())
            memory = max((_memory_kb(pid, "RssAnon") for pid in children), default=0)
            peak = max((_memory_kb(pid, "VmHWM") for pid in children), default=0)
            samples.append((done, time.monotonic() - start, _cpu_s(children), memory, peak))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        engine = Local(Local.Config(name="local", workers=workers))
        config = PackConfig(frontends=(load_frontend("logmel"),))
        packed = pack(
            layout,
            folder / "scale-store",
            config,
            engine,
            dataset="made",
            shard_clips=min(default_shard_clips(_FULL_CLIPS), max(8, clips // (4 * workers))),
            report=count,
        )
    finally:
        over.set()
        watcher.join()
    # The processes are gone: what they took is as it was last seen, unless more was accounted to this one since.
    _, _, cpu_s, memory_kb, peak_kb = samples[-1]
    samples.append((done, time.monotonic() - start, max(cpu_s, _cpu_s([])), memory_kb, peak_kb))
    size = sum(path.stat().st_size for path in (folder / "scale-store").rglob("*") if path.is_file())
    table = Table(title=f"{packed.packed} clips by {workers} processes")
    for heading in ("clips", "clips/s", "CPU-ms/clip", "largest process, MB", "its peak, MB"):
        table.add_column(heading, justify="right")
    marks = [next(s for s in samples if s[0] >= done * part / _WINDOWS) for part in range(_WINDOWS)] + [samples[-1]]
    rates = []
    for before, after in pairwise(marks):
        made, wall, cpu = after[0] - before[0], after[1] - before[1], after[2] - before[2]
        if made and wall:
            rates.append(made / wall)
            memory, peak = after[3] / 1000, after[4] / 1000
            table.add_row(
                f"{after[0]:,}", f"{rates[-1]:.0f}", f"{1000 * cpu / made:.2f}", f"{memory:.0f}", f"{peak:.0f}"
            )
    console = Console()
    console.print(table)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    rate = packed.packed / samples[-1][1]
    console.print(
        f"this process, the packer among other things: at most {own:.0f} MB. {size / packed.packed / 1000:.0f} kB "
        f"a clip. {_FULL_CLIPS:,} clips at {rate:.0f} clips/s, the mean of this run: {_FULL_CLIPS / rate / 60:.0f} "
        f"minutes and {_FULL_CLIPS * size / packed.packed / 1e9:.0f} GB"
    )


def _memory_kb(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _cpu_s(pids: list[int]) -> float:
    """CPU seconds of living processes, of those that they waited for, and of ours that have ended."""
    ticks = 0
    for pid in pids:
        try:
            ticks += sum(int(text) for text in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
        except OSError:
            continue
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ticks / os.sysconf("SC_CLK_TCK") + ended.ru_utime + ended.ru_stime
