"""A page that shows where a sound comes from: `python examples/app.py CHECKPOINT [CHECKPOINT ...] [--port PORT]`.

Drop or record a picture and a sound, or a video; every checkpoint (a file, or a run folder for its newest) has its own
column. The page is for this machine alone, asks nothing of any other, and keeps its files in a folder of its own until
it ends. Needs the extra `app`.
"""

import argparse
import html
import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.errors import UserError, run_command
from examples.heat import STRENGTH, THRESHOLD, Heat, still_picture, write_video
from examples.localization import OWN, Heard, Localizer, Maps
from model.checkpoint import write_atomically
from preprocess.pictures import decoded
from preprocess.refusals import REASONS, Refused

MAX_S = 60.0
MAX_UPLOAD = "64mb"
MAPS_PER_S = 4.0
EXAMPLES = ("nasa_technician", "bunny_stream", "bunny_bird_a", "bunny_bird_b")
_SHOWN_PX = 640
_SPECTROGRAM_PX = (640, 160)
_KEPT_S = 3600
_CLIPS = Path(__file__).parent / "clips"
_CSS = "footer {display: none !important} .gradio-container {max-width: 1400px !important; margin: auto}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A clip that every checkpoint has localized. still: its picture as it is shown, BGR; None: it is a video."""

    source: Path
    still: np.ndarray | None
    found: list[tuple[Maps, Heat]]

    def overlay(self, column: int, moment_s: float, strength: float, threshold: float) -> np.ndarray:
        """`(h, w, 3)` uint8 RGB: the picture of a moment under the map of a checkpoint."""
        maps, heat = self.found[column]
        times_s = [picture.time_s for picture in maps.pictures]
        nearest = int(np.abs(np.array(times_s) - moment_s).argmin())
        picture = self.still
        if picture is None:
            picture = np.ascontiguousarray(decoded(maps.pictures[nearest].jpeg)[:, :, ::-1])
            scale = _SHOWN_PX / max(picture.shape[:2])
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        return heat.over(picture, times_s[nearest], strength, threshold)[:, :, ::-1]

    def spectrogram(self, column: int, moment_s: float) -> np.ndarray:
        """`(h, w, 3)` uint8 RGB: the sound as a checkpoint hears it, low tones at the bottom, around the window."""
        heard = self.found[column][0].heard
        return drawn_spectrogram(heard, heard.start_of(None if self.still is not None else moment_s))

    @property
    def last_s(self) -> float:
        """Time of the last picture with a map."""
        return self.found[0][0].pictures[-1].time_s


def drawn_spectrogram(heard: Heard, start: int) -> np.ndarray:
    """`(h, w, 3)` uint8 RGB of a whole sound; what lies outside the window from time frame `start` on is darker."""
    power = heard.log_power.T.flip(0).numpy()
    low, high = power.min(), power.max()
    levels = ((power - low) / max(high - low, 1e-6) * 255).round().astype(np.uint8)
    wide = cv2.resize(levels, _SPECTROGRAM_PX, interpolation=cv2.INTER_AREA)
    shown = cv2.applyColorMap(wide, cv2.COLORMAP_MAGMA)[:, :, ::-1].copy()
    first, end = (round(edge / power.shape[1] * _SPECTROGRAM_PX[0]) for edge in (start, start + heard.window))
    shown[:, :first] //= 3
    shown[:, end:] //= 3
    return shown


def localize_all(localizers: list[Localizer], picture: str | None, sound: str | None, video: str | None) -> Seen:
    """A clip under every checkpoint: a picture and a sound, or a video. Raises: UserError."""
    heard_file = Path(video or sound or "")
    if localizers[0].hear(heard_file, duration_s=MAX_S + 1).duration_s > MAX_S:
        raise UserError(f"{heard_file.name} lasts longer than {MAX_S:g} s, which is the most that this page takes")
    still = None if picture is None else still_picture(Path(picture))
    found: list[tuple[Maps, Heat]] = []
    for localizer in localizers:
        if picture is None:
            maps = localizer.of_video(heard_file, MAPS_PER_S)
        else:
            maps = localizer.of_still(Path(picture), heard_file)
        found.append((maps, Heat(localizer, maps, OWN)))
    return Seen(source=heard_file, still=still, found=found)


def said(error: UserError, *paths: str | None) -> str:
    """What is wrong with a file, for the page: no folders, no options of the command line."""
    cause = error.__cause__
    text = f"{REASONS[cause.reason]} ({cause.detail})" if isinstance(cause, Refused) else str(error)
    for path in filter(None, paths):
        text = text.replace(path, Path(path).name)
    return f"**This did not work:** {html.escape(text)}"


def told(seen: Seen) -> str:
    """A line about a clip."""
    maps = seen.found[0][0]
    count = "the middle of the sound" if seen.still is not None else f"{len(maps.pictures)} moments"
    silent = " **The sound is silent:** the map shows what the picture alone draws." if maps.heard.silent else ""
    return f"{html.escape(seen.source.name)}: {maps.heard.duration_s:.1f} s, a map for {count}.{silent}"


class Page:
    """The page's parts and what they do. Pictures are the overlays, then the spectrograms, one a column each."""

    def __init__(self, localizers: list[Localizer], folder: Path) -> None:
        """folder: where videos are written."""
        self.localizers, self.folder = localizers, folder

    def draw(self, seen: Seen | None, moment_s: float, strength: float, threshold: float) -> list[np.ndarray | None]:
        """All pictures for these sliders."""
        columns = range(len(self.localizers))
        if seen is None:
            return [None] * (2 * len(columns))
        overlays = [seen.overlay(column, moment_s, strength, threshold) for column in columns]
        return [*overlays, *(seen.spectrogram(column, moment_s) for column in columns)]

    def show(
        self, picture: str | None, sound: str | None, video: str | None, strength: float, threshold: float
    ) -> list[Any]:
        """Of files to: what was seen, a line about it, the moment slider, the video button, videos, pictures."""
        import gradio as gr

        seen, line = None, "Waiting for a picture and a sound, or a video."
        if video or (picture and sound):
            try:
                seen = localize_all(self.localizers, picture, sound, video)
                line = told(seen)
            except UserError as error:
                line = said(error, picture, sound, video)
        elif picture or sound:
            line = f"Waiting for a {'sound' if picture else 'picture'}."
        moves = seen is not None and seen.still is None
        last_s = round(seen.last_s, 2) if seen is not None else 1.0
        moment_s = round(last_s / 2, 2)
        slider = gr.Slider(value=moment_s, maximum=max(last_s, 0.01), visible=moves, interactive=True)
        hidden = [gr.Video(value=None, visible=False) for _ in self.localizers]
        pictures = self.draw(seen, moment_s, strength, threshold)
        return [seen, line, slider, gr.Button(visible=moves), *hidden, *pictures]

    def show_still(self, picture: str | None, sound: str | None, strength: float, threshold: float) -> list[Any]:
        return self.show(picture, sound, None, strength, threshold)

    def show_video(self, video: str | None, strength: float, threshold: float) -> list[Any]:
        return self.show(None, None, video, strength, threshold)

    def make_videos(self, seen: Seen, strength: float, threshold: float) -> list[Any]:
        """The whole video under the maps of each checkpoint."""
        import gradio as gr

        paths = []
        for maps, heat in seen.found:
            path = self.folder / f"{uuid.uuid4().hex}.mp4"
            write_atomically(
                path,
                lambda file, maps=maps, heat=heat: write_video(
                    file, seen.source, heat, maps.heard, strength, threshold
                ),
            )
            paths.append(gr.Video(value=str(path), visible=True))
        return paths

    def build(self, examples: list[Path]) -> Any:
        """The Gradio page."""
        import gradio as gr

        with gr.Blocks(
            title="Whence", analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S), fill_width=True
        ) as page:
            gr.Markdown("# Whence\nWhere in the picture does the sound come from?")
            seen = gr.State(None, time_to_live=_KEPT_S)
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    with gr.Tab("Video", elem_id="tab-video"):
                        video = gr.Video(
                            label=f"Video with sound, up to {MAX_S:g} s",
                            sources=["upload", "webcam"],
                            webcam_options=gr.WebcamOptions(mirror=False),
                            elem_id="video",
                            height=240,
                        )
                        gr.Examples([[str(path)] for path in examples], [video], label="Examples", preload=False)
                    with gr.Tab("Picture and sound", elem_id="tab-still"):
                        picture = gr.Image(
                            label="Picture",
                            type="filepath",
                            image_mode=None,
                            sources=["upload", "webcam", "clipboard"],
                            webcam_options=gr.WebcamOptions(mirror=False),
                            elem_id="picture",
                            height=240,
                        )
                        # Pillow would judge the file before we can say what is wrong with it.
                        picture.preprocess = lambda payload: payload.path if payload else None
                        sound = gr.Audio(
                            label=f"Sound, up to {MAX_S:g} s",
                            type="filepath",
                            sources=["upload", "microphone"],
                            elem_id="sound",
                        )
                    strength = gr.Slider(0, 1, STRENGTH, step=0.01, label="Strength of the colour", elem_id="strength")
                    threshold = gr.Slider(0, 1, THRESHOLD, step=0.01, label="Edge at", elem_id="threshold")
                with gr.Column(scale=2, min_width=320):
                    line = gr.Markdown("Waiting for a picture and a sound, or a video.", elem_id="line")
                    moment = gr.Slider(
                        0, 1, 0, step=0.01, label="Moment (s)", visible=False, interactive=True, elem_id="moment"
                    )
                    overlays, spectrograms, videos = [], [], []
                    with gr.Row():
                        for number, localizer in enumerate(self.localizers):
                            with gr.Column(min_width=300):
                                overlays.append(
                                    gr.Image(
                                        label=localizer.name,
                                        format="jpeg",
                                        interactive=False,
                                        buttons=["fullscreen", "download"],
                                        elem_id=f"overlay-{number}",
                                    )
                                )
                                bins = localizer.config.data.audio.frontend.mel_bins
                                spectrograms.append(
                                    gr.Image(
                                        label="log-mel" if bins else "log-spectrogram",
                                        format="jpeg",
                                        interactive=False,
                                        buttons=["fullscreen", "download"],
                                        elem_id=f"sound-{number}",
                                    )
                                )
                                videos.append(
                                    gr.Video(
                                        label="Video",
                                        visible=False,
                                        interactive=False,
                                        buttons=["download"],
                                        elem_id=f"made-{number}",
                                    )
                                )
                    make = gr.Button("Make the whole video", visible=False, elem_id="make")
            sliders = [strength, threshold]
            results = [seen, line, moment, make, *videos, *overlays, *spectrograms]
            for part in (picture, sound):
                part.change(self.show_still, [picture, sound, *sliders], results, api_visibility="private")
            video.change(self.show_video, [video, *sliders], results, api_visibility="private")
            gr.on(
                [slider.input for slider in (moment, *sliders)],
                self.draw,
                [seen, moment, *sliders],
                [*overlays, *spectrograms],
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
            )
            make.click(self.make_videos, [seen, *sliders], videos, api_visibility="private")
        return page


def port(text: str) -> int:
    """The number of a port. Raises: ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port: 1 to 65535")
    return int(text)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("app.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--port", type=port, help="of this machine; else a free one from 7860 on")
    asked = parser.parse_args(argv)
    localizers = [Localizer(path) for path in asked.checkpoints]
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with tempfile.TemporaryDirectory(prefix="whence-app-") as folder:
        # Read when Gradio is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio as gr
        except ImportError as error:
            raise UserError("the page needs Gradio: pip install gradio, or the extra `app` of this project") from error
        examples = [Path(shutil.copy(_CLIPS / f"{name}.mp4", folder)) for name in EXAMPLES]
        page = Page(localizers, Path(folder)).build(examples)
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=asked.port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=MAX_UPLOAD,
                enable_monitoring=False,
                ssr_mode=False,
                footer_links=[],
                state_session_capacity=16,
                theme=gr.themes.Default(  # pyright: ignore[reportPrivateImportUsage]
                    font=["system-ui", "sans-serif"], font_mono=["monospace"]
                ),
                css=_CSS,
            )
        except OSError as error:
            raise UserError(f"no page on this port: {error}; choose another with --port") from error
        sys.stdout.write(f"open {address} in a browser; Ctrl-C ends it\n")
        sys.stdout.flush()
        stop.wait()
        page.close()
    return 0


if __name__ == "__main__":
    run_command(main)
