"""What every loader does alike: which clips, which draws, which bytes; and `build_loader`, which picks one by name."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from configs.load import as_mapping
from configs.resolve import resolve
from configs.schema import ComponentConfig, DataConfig, FrontendConfig
from pipeline.augmentation import Clips, Crop, ImageAugmentation, SoundAugmentation, TimeCrop
from pipeline.batch import Batch, InputSpec, Truth
from pipeline.frontends import log_spectrogram, normalise, resample
from pipeline.record import RecordView
from pipeline.sampler import Draws, Plan, clip_keys, epoch_order
from pipeline.store import Store

_APPLIED_IN_BATCHES = {"offset", "divisor", "short"}
"""Keys of a front-end that do not change what is stored."""


class Loader(Protocol):
    """Batches of one split. After an exception or `close` nothing of it stays behind."""

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, from the place that `load_state_dict` or the last batch left."""
        ...

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """`{"epoch": e, "samples": n}`: n samples of epoch e, over all ranks, were handed out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a place; another batch size, rank count or loader kind is fine."""
        ...

    def close(self) -> None: ...


def build_loader(
    data: DataConfig,
    spec: InputSpec,
    split: str,
    *,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    size_px: int | None = None,
    batch_size: int | None = None,
) -> Loader:
    """The loader that `data.loader` names, over one split of `data.store`.

    train: shuffled, augmented, incomplete last batch dropped. Otherwise in the order of ids, whole picture, middle
    window, truth attached, last batch filled up and marked in `Batch.valid`.
    Raises: UserError if the store lacks what `spec` asks for; the message names the command that adds it.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    request = LoaderRequest(
        data=data,
        spec=spec,
        split=split,
        train=train,
        seed=seed,
        rank=rank,
        world_size=world_size,
        device=device,
        size_px=size_px or data.image.size_px,
        batch_size=batch_size or data.batch_size,
    )
    return resolve("pipeline.loaders", data.loader.name)(data.loader, request)


@dataclass(frozen=True, kw_only=True)
class LoaderRequest:
    """The arguments of `build_loader`, defaults filled in."""

    data: DataConfig
    spec: InputSpec
    split: str
    train: bool
    seed: int
    rank: int
    world_size: int
    device: torch.device
    size_px: int
    batch_size: int


@dataclass(kw_only=True)
class Sheet:
    """Everything about one batch before a pixel is decoded.

    numbers: `(B,)` int64, the clips' numbers in the store. valid: `(B,)` bool.
    jpegs: B arrays of bytes, in place in the store. sounds: B windows, `(L, F)` float16 of a stored spectrogram or
    `(n,)` int16 of the waveform; in place too, unless the clip is shorter than the window.
    crop: `(B, 2)` int32 start and shape (y, x) of the picture in the stored frame; None: the whole frame.
    image: for each image augmentation its parameters, in order; sound: for each sound augmentation likewise.
    """

    numbers: np.ndarray
    valid: np.ndarray
    clips: Clips
    jpegs: list[np.ndarray]
    sounds: list[np.ndarray]
    crop: tuple[np.ndarray, np.ndarray] | None
    image: list[dict[str, np.ndarray]]
    sound: list[dict[str, np.ndarray]]


class ClipSource:
    """From a place in an epoch to a `Sheet`, and from decoded pictures and sounds to a `Batch`; the same for all
    loaders. Reads the store in place; only the picture's decoding is left to them.

    plan: which clips at which step. stored: the sounds are stored spectrograms; otherwise waveforms, and the front-end
    is computed on the device. image_augmentations: what a loader applies to its pictures, in order.
    """

    def __init__(self, request: LoaderRequest) -> None:
        """Raises: UserError if the store is missing or lacks the split, pictures, or every source of sound."""
        self.request = request
        self.frontend: FrontendConfig = request.data.audio.frontend
        self.size_px = request.size_px
        _refuse_unknown_inputs(request.spec)
        if request.data.store is None:
            raise UserError(
                "data.store is not set; name the folder that `python -m preprocess pack` wrote: data.store=F"
            )
        self._choose_augmentations()
        self.store = Store(request.data.store)
        try:
            self._read_index()
        except BaseException:
            self.store.close()
            raise

    def _choose_augmentations(self) -> None:
        parts = self.request.data.augment if self.request.train else {}
        chosen = [(name, resolve("pipeline.augment", name)(config)) for name, config in parts.items()]
        for kind in (Crop, TimeCrop):
            names = [name for name, part in chosen if isinstance(part, kind)]
            if len(names) > 1:
                raise UserError(f"data.augment has {' and '.join(names)}, but only one can be; remove one with =null")
        self._crop = next((part for _, part in chosen if isinstance(part, Crop)), None)
        self._time_crop = next((part for _, part in chosen if isinstance(part, TimeCrop)), None)
        self.image_augmentations = [part for _, part in chosen if isinstance(part, ImageAugmentation)]
        self._sound_augmentations = [part for _, part in chosen if isinstance(part, SoundAugmentation)]

    def _read_index(self) -> None:
        request, index = self.request, self.store.index
        self.numbers = self.store.select(request.split)
        self._ids = [index["clip_id"][number] for number in self.numbers]
        self._keys = clip_keys(self._ids)
        self.plan = Plan(len(self._ids), request.batch_size, request.train, request.rank, request.world_size)

        frames = [index["frames"][number] for number in self.numbers]
        self._refuse_clips_without("a picture", [bool(each) for each in frames], "pack the data again")
        self._frame_count = np.array([len(each) for each in frames])
        self._frame_first = np.cumsum(self._frame_count) - self._frame_count
        sizes = np.array([(width, height) for each in frames for _, width, height in each], np.int64)
        self._frame_width, self._frame_height = sizes[:, 0], sizes[:, 1]
        annotated = [index["annotated_s"][number] for number in self.numbers]
        durations = [index["duration_s"][number] for number in self.numbers]
        if request.data.image.frame == "middle":
            annotated = [None] * len(annotated)
        self._frame = np.array(
            [
                nearest_frame([time_s for time_s, _, _ in each], duration_s / 2 if instant_s is None else instant_s)
                for each, instant_s, duration_s in zip(frames, annotated, durations)
            ]
        )
        self._draw_frame = request.train and request.data.image.frame == "random"
        truth = [index["truth"][number] for number in self.numbers]
        self._with_truth = not request.train and any(truth)
        self._read_sounds()

    def _read_sounds(self) -> None:
        frontend, index = self.frontend, self.store.index
        duration_s = self.request.data.audio.duration_s
        self.window = frontend.window_frames(duration_s)
        if self.window < 1:
            raise UserError(
                f"data.audio.duration_s={duration_s} is shorter than one segment of front-end {frontend.name}"
            )
        self._log_floor = float(np.log(frontend.floor))
        packed = self.store.manifest.get("frontends", {})
        self.stored = frontend.name in packed
        again = f"pack the data again with --frontend {frontend.name}"
        if self.stored:
            self._refuse_other_frontend(packed[frontend.name])
            frames = [index["spectrogram_frames"][number].get(frontend.name, 0) for number in self.numbers]
            self._refuse_clips_without(f"a spectrogram '{frontend.name}'", frames, again)
            self._frames = np.array(frames, np.int64)
            return
        samples = np.array([index["waveform_samples"][number] for number in self.numbers], np.int64)
        if not samples.any():
            has = f"its front-ends: {', '.join(sorted(packed))}" if packed else "it has no front-end"
            raise UserError(
                f"store {self.store.path} has neither the front-end '{frontend.name}' nor waveforms to compute it from "
                f"({has}); {again}, or choose a front-end that it has with data.audio.frontend"
            )
        self._refuse_clips_without("a waveform", samples, again)
        self._samples = samples
        self._rate_hz: int = self.store.view(int(self.numbers[0])).fields()["sample_rate_hz"]
        self._window_samples = round(duration_s * self._rate_hz)
        heard = samples * frontend.sample_rate_hz // self._rate_hz
        self._frames = np.array([frontend.frames(int(count)) for count in heard], np.int64)

    def _refuse_clips_without(self, what: str, has: Any, remedy: str) -> None:
        lacking = [clip_id for clip_id, each in zip(self._ids, has) if not each]
        if lacking:
            raise UserError(
                f"{len(lacking)} of {len(self._ids)} clips of split '{self.request.split}' of {self.store.path} lack "
                f"{what}, the first is {lacking[0]}; {remedy}"
            )

    def _refuse_other_frontend(self, packed: dict[str, Any]) -> None:
        wanted = as_mapping(self.frontend)
        differing = [
            f"{key} is {packed.get(key)!r} in the store and {value!r} in data.audio.frontend"
            for key, value in wanted.items()
            if key not in _APPLIED_IN_BATCHES and packed.get(key) != value
        ]
        if differing:
            raise UserError(
                f"front-end '{self.frontend.name}' of store {self.store.path} was packed with other parameters: "
                f"{'; '.join(differing)}. Give yours another name and pack the data again with it, or use the store's"
            )

    def order(self, epoch: int) -> np.ndarray:
        """`(n,)` int64: the rows of the split in the order of an epoch."""
        return epoch_order(self.request.seed, epoch, self.plan.count, shuffle=self.request.train)

    def sheet(self, epoch: int, order: np.ndarray, first: int, step: int) -> Sheet:
        """The sheet of this rank at `step` after position `first` of an epoch's `order`."""
        rows, valid = self.plan.take(order, first, step)
        draws = Draws(self.request.seed, epoch, self._keys[rows])
        frame = self._frame[rows]
        if self._draw_frame:
            frame = np.floor(draws.uniform("frame")[:, 0] * self._frame_count[rows]).astype(np.int64)
        place = self._frame_first[rows] + frame
        clips = Clips(
            width=self._frame_width[place],
            height=self._frame_height[place],
            frames=self._frames[rows],
            window=self.window,
            bins=self.frontend.bins,
            size_px=self.size_px,
            log_floor=self._log_floor,
        )
        crop = self._crop.draw(draws, clips) if self._crop else None
        start = self._time_crop.draw(draws, clips)["start"] if self._time_crop else None
        views = [self.store.view(int(number)) for number in self.numbers[rows]]
        window = self._spectrogram_window if self.stored else self._waveform_window
        return Sheet(
            numbers=self.numbers[rows],
            valid=valid,
            clips=clips,
            jpegs=[view.blob(f"frames/{index}") for view, index in zip(views, frame)],
            sounds=[window(view, None if start is None else int(start[row])) for row, view in enumerate(views)],
            crop=(crop["start"], crop["shape"]) if crop else None,
            image=[part.draw(draws, clips) for part in self.image_augmentations],
            sound=[part.draw(draws, clips) for part in self._sound_augmentations],
        )

    def _spectrogram_window(self, view: RecordView, start: int | None) -> np.ndarray:
        """`(L, F)` float16, the middle of the clip unless `start` says where."""
        return _window(
            view.blob(f"spectrogram/{self.frontend.name}"), self.window, start, self.frontend.short, self._log_floor
        )

    def _waveform_window(self, view: RecordView, start: int | None) -> np.ndarray:
        """`(n,)` int16 at the store's rate, the middle of the clip to the sample unless `start` (frames) says where."""
        if view.fields()["sample_rate_hz"] != self._rate_hz:
            raise UserError(f"the waveforms of store {self.store.path} have several sample rates; pack the data again")
        waveform = view.blob("waveform")
        if start is not None:
            start = round(start * self.frontend.hop * self._rate_hz / self.frontend.sample_rate_hz)
            start = max(0, min(start, len(waveform) - self._window_samples))
        return _window(waveform, self._window_samples, start, self.frontend.short, 0)

    def batch(self, sheet: Sheet, image: Tensor, sound: Tensor) -> Batch:
        """The batch of a sheet, on the device of `image`.

        Args: image (B, S, S, 3) uint8. sound (B, L, F) float16 or (B, n) int16, as in the sheet; overwritten.
        """
        device = image.device
        log_power = sound
        if not self.stored:
            waveform = resample(sound.float() / 32767, self._rate_hz, self.frontend.sample_rate_hz)
            wanted = round(self.request.data.audio.duration_s * self.frontend.sample_rate_hz)
            # Resampling gives ceil(n * new / old) samples: never fewer than wanted but for the rounding of the window.
            waveform = torch.nn.functional.pad(waveform, (0, wanted - waveform.shape[-1]))
            log_power = log_spectrogram(waveform, self.frontend)
        for part, parameters in zip(self._sound_augmentations, sheet.sound):
            tensors = {
                name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in parameters.items()
            }
            log_power = part.apply(log_power, tensors, sheet.clips)
        valid = torch.ones(len(sheet.valid), dtype=torch.bool, device=device)
        if not sheet.valid.all():
            valid = torch.from_numpy(sheet.valid).to(device)
        return Batch(
            clip_id=[self.store.index["clip_id"][number] for number in sheet.numbers],
            valid=valid,
            image=image.permute(0, 3, 1, 2),
            spectrogram=normalise(log_power, self.frontend),
            truth=[truth_of(self.store.view(int(number))) for number in sheet.numbers] if self._with_truth else None,
        )

    def undecodable(self, sheet: Sheet) -> UserError | None:
        """The error that names the clips of a sheet whose picture cannot be decoded, if there are any."""
        found = [
            self.store.index["clip_id"][number]
            for number, jpeg in zip(sheet.numbers, sheet.jpegs)
            if cv2.imdecode(jpeg, cv2.IMREAD_COLOR) is None
        ]
        if not found:
            return None
        return UserError(
            f"the picture of {', '.join(found)} in store {self.store.path} cannot be decoded; run "
            f"`python -m preprocess verify {self.store.path}`"
        )

    def close(self) -> None:
        self.store.close()


def _refuse_unknown_inputs(spec: InputSpec) -> None:
    extra = sorted(spec.fields - {"image", "spectrogram"})
    extra += [f"{getattr(spec, name)} {name}" for name in ("image_views", "audio_views") if getattr(spec, name) != 1]
    extra += [f"{spec.neighbours} neighbours"] if spec.neighbours else []
    if extra:
        raise UserError(
            f"the method asks for {', '.join(extra)}; the loaders give one image and one spectrogram a clip"
        )


def truth_of(view: RecordView) -> Truth | None:
    """The annotation of a record; None if it has none."""
    fields = view.fields()
    mask = view.blob("mask").copy() if "mask" in view else None
    if fields["boxes"] is None and mask is None:
        return None
    return Truth(
        boxes=None if fields["boxes"] is None else np.array(fields["boxes"], np.float64).reshape(-1, 5),
        mask=mask,
        label=fields["label"],
        group=fields["group"],
        extra=fields["extra"],
    )


def nearest_frame(times_s: list[float], instant_s: float) -> int:
    """Index of the time nearest to an instant; the earlier one of two equally near."""
    return min(range(len(times_s)), key=lambda index: abs(times_s[index] - instant_s))


def _window(values: np.ndarray, length: int, start: int | None, short: str, silence: float) -> np.ndarray:
    """`length` rows of `values` from `start`, or their middle: a view of `values`.

    Fewer rows than `length` are repeated from the first one (`tile`) or followed by silence (`pad`), in a new array.
    """
    count = len(values)
    if count >= length:
        start = (count - length) // 2 if start is None else start
        return values[start : start + length]
    if short == "tile":
        return values[np.arange(length) % count]
    padded = np.full((length, *values.shape[1:]), silence, values.dtype)
    padded[:count] = values
    return padded


class PlannedLoader(ABC):
    """Epochs, places and resuming for a loader that gives the batches of consecutive steps.

    What is prefetched does not count: `state_dict` counts a batch when it is handed out.
    """

    Config: ClassVar[type[ComponentConfig]]

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._epoch = 0
        self._samples = 0
        self._turn = 0  # raised whenever the place is moved, so that an iterator of before can tell
        self._closed = False

    @abstractmethod
    def _begin(self, epoch: int, first: int, steps: int) -> None:
        """Drop whatever is under way; the next batches are those of `steps` steps from position `first`."""

    @abstractmethod
    def _next(self) -> Batch:
        """The batch of the next step; called `steps` times at most after a `_begin`."""

    @abstractmethod
    def _release(self) -> None:
        """Give back threads, memory and the store. Called once."""

    def __len__(self) -> int:
        return self.plan.steps()

    def __iter__(self) -> Iterator[Batch]:
        assert not self._closed, "the loader is closed"
        self._turn += 1
        return self._batches(self._turn)

    def _batches(self, turn: int) -> Iterator[Batch]:
        steps = self.plan.steps(self._samples)
        for step in range(steps):
            if turn != self._turn:
                raise RuntimeError("the loader was moved or iterated anew; this iterator is out of date")
            try:
                if step == 0:
                    self._begin(self._epoch, self._samples, steps)
                batch = self._next()
            except BaseException:
                self.close()
                raise
            self._samples = min(self._samples + self.plan.global_batch, self.plan.count)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        self._move(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: UserError if the place is not in this split."""
        epoch, samples = state["epoch"], state["samples"]
        if epoch < 0 or not 0 <= samples <= self.plan.count:
            raise UserError(
                f"the saved place (epoch {epoch}, {samples} clips) is not in this split of {self.plan.count} clips; it "
                "is of another store or split"
            )
        self._move(epoch, samples)

    def _move(self, epoch: int, samples: int) -> None:
        self._turn += 1
        self._epoch, self._samples = epoch, samples

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._turn += 1
            self._release()
