"""A checkpoint on anybody's pictures, sounds and videos: from files to maps, as a store, a loader and `evaluate.py`
would make them.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from configs.errors import UserError
from configs.load import as_mapping, check, merge, parse_override
from configs.resolve import resolve
from configs.schema import FrontendConfig, RunConfig, component_config
from evaluate import autocast, choose_device
from model.base import Localization
from model.build import restored_model
from model.checkpoint import find_checkpoint, load_checkpoint
from model.protocol import Source
from model.scoring import Scoreboard, build_refinements
from pipeline.augmentation import Clips, Recipe
from pipeline.batch import Batch
from pipeline.frontends import lengthen, log_spectrogram, normalise
from pipeline.loaders.reference import resize
from pipeline.sampler import Draws
from pipeline.store import Store
from preprocess.clip import frame_times
from preprocess.features import Resampled
from preprocess.flow import PX_PER_CODE
from preprocess.options import PackConfig
from preprocess.pictures import Picture, decoded, read_still
from preprocess.quality import SILENT_DBFS, sound_measures
from preprocess.refusals import REASONS, Refused
from preprocess.sound import Sound, read_sound
from preprocess.video import read_pictures

OWN = "map"
"""Name of the method's own map, beside those that refinements add."""
_BATCH = 16
_PACKED = PackConfig()
_REMEDIES = {
    "no_audio": "a map needs a sound: give a picture with --image and a sound for it with --audio",
    "no_video": "give a sound to --audio, together with a picture for --image",
    "too_long": "take a part of it with --start-s and --duration-s",
    "too_short": "give a longer sound, or an earlier --start-s",
}


@contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """What is wrong with a file of media, as an error for people."""
    try:
        yield
    except Refused as error:
        remedy = _REMEDIES.get(error.reason)
        text = f"{path}: {REASONS[error.reason]} ({error.detail})"
        raise UserError(f"{text}; {remedy}" if remedy else text) from error


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A sound as a method hears it.

    log_power: `(T, F)` float32 of the front-end, at least one window long. window: its time frames. start_s: where the
    sound begins in its file.
    """

    sound: Sound
    log_power: Tensor
    frontend: FrontendConfig
    window: int
    start_s: float

    @property
    def duration_s(self) -> float:
        """Seconds of sound in the file, which may be less than a window."""
        return len(self.sound.samples) / self.sound.rate_hz

    @property
    def silent(self) -> bool:
        """Whether nobody would hear it."""
        return sound_measures(self.sound.samples)["rms_dbfs"] < SILENT_DBFS

    def start_of(self, time_s: float | None) -> int:
        """The first time frame of the window around a time of the file, kept inside the sound; None: in its middle."""
        room = len(self.log_power) - self.window
        if time_s is None:
            return room // 2
        centre = (time_s - self.start_s) * self.frontend.sample_rate_hz / self.frontend.hop
        return min(max(0, round(centre - self.window / 2)), room)

    def interval_s(self, time_s: float | None) -> tuple[float, float]:
        """Where that window begins and ends in the file, in seconds."""
        first, step_s = self.start_of(time_s), self.frontend.hop / self.frontend.sample_rate_hz
        end_s = min((first + self.window) * step_s, self.duration_s)
        return self.start_s + first * step_s, self.start_s + end_s


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The maps of n pictures of one clip.

    pictures: as they would be stored; `time_s` counts from the start of the file. named: `OWN` and the maps that
    refinements add, each `(n, h, w)` float32 on the CPU. bounds: the range of the method's own. part: the part of the
    picture that the method saw, x0, y0, x1, y1 as fractions. at_s: the times that windows of sound lie around; None:
    the middle of the sound.
    """

    pictures: list[Picture]
    named: dict[str, Tensor]
    bounds: tuple[float, float]
    part: tuple[float, float, float, float]
    heard: Heard
    at_s: list[float | None]

    def choose(self, name: str | None) -> str:
        """The name itself if there is such a map; None: the one that was added last. Raises: UserError."""
        if name is None:
            return list(self.named)[-1]
        if name not in self.named:
            raise UserError(
                f"there is no map '{name}'; there are: {', '.join(self.named)}. Refinements add more, for example "
                "evaluate.refine.ogl={}"
            )
        return name

    def save(self, clip_id: str, file: BinaryIO) -> None:
        """Write npz: `clip_id` and `times_s` (n,), `maps` (n, h, w), `bounds`, `part`, and further maps by name."""
        further = {name: maps.numpy() for name, maps in self.named.items() if name != OWN}
        times_s = np.array([picture.time_s for picture in self.pictures])
        names = [clip_id] if len(times_s) == 1 else [f"{clip_id}_{time_s:.3f}" for time_s in times_s]
        np.savez_compressed(
            file,
            clip_id=np.array(names, np.str_),
            times_s=times_s,
            maps=self.named[OWN].numpy(),
            bounds=np.array(self.bounds),
            part=np.array(self.part),
            **further,  # pyright: ignore[reportArgumentType]
        )


class Localizer:
    """A checkpoint with its front-end, crop, precision and refinements.

    Pictures and sounds go through what `preprocess pack` does by default, the loader and the method; where a store
    holds the same moment, the map is that of the store.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), flow: str | None = None) -> None:
        """overrides: `key=value` for the checkpoint's config. flow: how the method was shown motion, "signed" or
        "published"; None: as its training recorded it, or the store that its config names, else signed.

        Raises: UserError if it is no checkpoint, or an override does not fit.
        """
        self.path = find_checkpoint(path)
        checkpoint = load_checkpoint(self.path)
        mapping = as_mapping(checkpoint.config)
        for text in overrides:
            mapping = merge(mapping, parse_override(text))
        self.config = check(RunConfig, mapping, f"the config of {self.path} with the command line")
        self.device = choose_device(self.config)
        self.model = restored_model(self.config.model, checkpoint, self.path).eval().to(self.device)
        if self.config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        evaluate = self.config.evaluate
        self.protocol = resolve("model.protocols", evaluate.protocol.name)(evaluate.protocol)
        self.refinements = build_refinements(evaluate, self.device)
        self._board = Scoreboard([], self.refinements)
        self.with_flow = "flow" in self.model.inputs.fields
        # A method without flow has no need of the store, which may be gone or of another version.
        known = flow or checkpoint.record.get("flow") or self._flow_of_store() if self.with_flow else "none"
        self.flow, self.flow_is_known = known or "signed", bool(known)
        kind = "middle_crop" if self.config.data.image.test_fit == "middle" else None
        parts = {kind: component_config("pipeline.augment", kind, {})} if kind else {}
        self._crop = Recipe(parts, "data.image.test_fit").crop
        self._numbers = itertools.count()  # refinements keep what they know of a clip by its id

    @property
    def name(self) -> str:
        """For people: method and run."""
        folder = self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent
        return f"{self.config.model.name} ({folder.name}/{self.path.stem})"

    def _flow_of_store(self) -> str | None:
        if self.config.data.store is None or not self.config.data.store.is_dir():
            return None
        with Store(self.config.data.store) as store:
            return store.flow_encoding

    def hear(self, path: Path, start_s: float = 0.0, duration_s: float | None = None) -> Heard:
        """The sound of a file. Raises: UserError."""
        audio = self.config.data.audio
        frontend: FrontendConfig = audio.frontend
        with refusals_explained(path):
            sound = read_sound(path, start_s, duration_s, channel=frontend.channel)
        samples = Resampled(sound).at(frontend.sample_rate_hz)
        samples = lengthen(samples, round(audio.duration_s * frontend.sample_rate_hz), frontend.short)
        # In float16 and back, as it would be stored.
        log_power = log_spectrogram(samples, frontend).half().float()
        window = frontend.window_frames(audio.duration_s)
        return Heard(sound=sound, log_power=log_power, frontend=frontend, window=window, start_s=start_s)

    def of_still(self, image: Path, audio: Path, start_s: float = 0.0, duration_s: float | None = None) -> Maps:
        """The map of a picture for the window in the middle of a sound. Raises: UserError."""
        heard = self.hear(audio, start_s, duration_s)
        with refusals_explained(image):
            picture = read_still(image, _PACKED.short_side_px, _PACKED.quality)
        return self.localize([picture], heard, [None])

    def of_video(
        self,
        path: Path,
        maps_per_s: float,
        start_s: float = 0.0,
        duration_s: float | None = None,
        progress: bool = False,
    ) -> Maps:
        """A map for so many pictures a second of a video, each with the sound around it. Raises: UserError."""
        heard = self.hear(path, start_s, duration_s)
        rule = f"{maps_per_s:f}fps"
        with refusals_explained(path):
            try:
                times_s = [start_s + time_s for time_s in frame_times((rule,), 0.0, heard.duration_s)]
            except Refused as error:
                raise UserError(
                    f"{path}: {error.detail}; ask for fewer with --maps-per-s, or take a part with --duration-s"
                ) from error
            pictures = read_pictures(path, times_s, _PACKED.short_side_px, _PACKED.quality, self.flow)
        return self.localize(pictures, heard, [picture.time_s for picture in pictures], progress)

    def localize(self, pictures: list[Picture], heard: Heard, at_s: list[float | None], progress: bool = False) -> Maps:
        """The maps of pictures, each with the window of sound around its time in `at_s`, or in the middle for None.

        Raises: UserError if a map is not finite.
        """
        firsts = range(0, len(pictures), _BATCH)
        found: dict[str, list[Tensor]] = {}
        bounds = (0.0, 1.0)
        for first in track(firsts, "maps", disable=not progress, transient=True):
            rows = slice(first, first + _BATCH)
            batch = self._batch(pictures[rows], heard, at_s[rows]).to(self.device)
            with torch.inference_mode(), autocast(self.config, self.device):
                localization = self._board.localize(self.model.localize, batch)
            bounds = localization.bounds
            for name, maps in self._mixed(batch, localization).items():
                found.setdefault(name, []).append(maps)
        named = {name: torch.cat(parts) for name, parts in found.items()}
        for name, maps in named.items():
            if not maps.isfinite().all():
                raise UserError(f"{self.path} gives a map '{name}' with NaN or infinity; try train.precision=fp32")
        return Maps(pictures=pictures, named=named, bounds=bounds, part=self._part(pictures[0]), heard=heard, at_s=at_s)

    @torch.inference_mode()
    def _mixed(self, batch: Batch, localization: Localization) -> dict[str, Tensor]:
        """The method's own maps as they are, and those that refinements add as the protocol mixes them."""
        own = localization.map.float()
        sources = {OWN: Source(own, localization.bounds)}
        shares: dict[str, dict[str, float]] = {}
        for refinement in self.refinements:
            sources |= refinement.sources(batch, localization)
            shares |= refinement.mixtures(self.protocol)
        prepared = {
            name: self.protocol.prepare(source.map.float(), source.bounds, prior=source.prior)
            for name, source in sources.items()
        }
        mixed = {name: self.protocol.mix(parts, prepared).scaled for name, parts in shares.items()}
        return {name: maps.cpu() for name, maps in {OWN: own, **mixed}.items()}

    def _batch(self, pictures: Sequence[Picture], heard: Heard, at_s: Sequence[float | None]) -> Batch:
        image = self.config.data.image
        seen, moved = [], []
        for picture in pictures:
            y, x = self._cut(picture)
            seen.append(resize(decoded(picture.jpeg)[y, x], image.size_px, image))
            if self.with_flow:
                codes = [self._codes(picture, axis)[y, x] for axis in (0, 1)]
                moved.append(np.stack([resize(each, image.size_px, image) for each in codes]))
        flow = torch.from_numpy(np.stack(moved)) if moved else None
        if flow is not None:
            flow = (flow - 128) * PX_PER_CODE if self.flow == "signed" else flow / 255
        starts = [heard.start_of(time_s) for time_s in at_s]
        windows = torch.stack([heard.log_power[start : start + heard.window] for start in starts])
        return Batch(
            clip_id=[str(next(self._numbers)) for _ in pictures],
            valid=torch.ones(len(pictures), dtype=torch.bool),
            image=torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2),
            spectrogram=normalise(windows, heard.frontend),
            flow=flow,
        )

    def _codes(self, picture: Picture, axis: int) -> np.ndarray:
        """`(h, w)` float32: the stored codes of the motion to the right or down; a still picture does not move."""
        if picture.flow is None:
            return np.full(picture.size[::-1], 128 if self.flow == "signed" else 0, np.float32)
        codes = cv2.imdecode(np.frombuffer(picture.flow[axis], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert codes is not None, "a JPEG of our own must decode"
        return codes.astype(np.float32)

    def _cut(self, picture: Picture) -> tuple[slice, slice]:
        """Rows and columns of the stored picture that the method sees."""
        width, height = picture.size
        if self._crop is None:
            return slice(0, height), slice(0, width)
        known = Clips(np.array([width]), np.array([height]), np.zeros(1), 0, 0, self.config.data.image.size_px, 0.0)
        crop = self._crop.draw(Draws(0, 0, np.zeros(1, np.uint64)), known)
        (top, left), (rows, columns) = crop["start"][0].tolist(), crop["shape"][0].tolist()
        return slice(top, top + rows), slice(left, left + columns)

    def _part(self, picture: Picture) -> tuple[float, float, float, float]:
        width, height = picture.size
        y, x = self._cut(picture)
        return x.start / width, y.start / height, x.stop / width, y.stop / height
