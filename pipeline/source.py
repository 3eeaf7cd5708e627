"""From a place in an epoch to the clips, draws and bytes of a batch, and from decoded pictures and sounds to a `Batch`:
what every loader does alike.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from configs.load import as_mapping
from configs.schema import DataConfig, FrontendConfig, component_config
from pipeline.augmentation import Clips, Parameters, Recipe
from pipeline.batch import Batch, InputSpec, Truth
from pipeline.frontends import from_codes, log_spectrogram, normalise, normalise_apart, resample
from pipeline.record import RecordView
from pipeline.sampler import Draws, Plan, clip_keys, epoch_order
from pipeline.store import Store, id_hash, training_numbers

_APPLIED_IN_BATCHES = {"offset", "divisor", "short"}
"""Keys of a front-end that do not change what is stored."""
_FIELDS = {"image", "spectrogram", "flow"}


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
class PictureView:
    """What is shown of B clips in one view, before a pixel is read.

    numbers: `(B,)` int64, the clips in the store; frame: `(B,)` int64, which of their frames; place: `(B,)` int64, the
    same among all frames of the split, counted through. crop: `(B, 2)` int32 start and shape (y, x) in the stored
    frame; None: the whole frame. parameters: of each of `recipe.image`, in order.
    """

    numbers: np.ndarray
    frame: np.ndarray
    place: np.ndarray
    clips: Clips
    recipe: Recipe
    crop: tuple[np.ndarray, np.ndarray] | None
    parameters: list[dict[str, np.ndarray]]


@dataclass(kw_only=True)
class SoundView:
    """What is heard of B clips in one view. rows: `(B,)` int64, the clips in the split. start: `(B,)` int32, the
    window's first time frame; None: in the middle. parameters: of each of `recipe.sound`, in order.
    """

    numbers: np.ndarray
    rows: np.ndarray
    clips: Clips
    recipe: Recipe
    start: np.ndarray | None
    parameters: list[dict[str, np.ndarray]]


@dataclass(kw_only=True)
class Sheet:
    """Everything about one batch before a byte of it is read. numbers: `(B,)` int64. valid: `(B,)` bool.

    pictures, sounds: the views, the clip's own first. Flow goes with the first view of the pictures.
    """

    numbers: np.ndarray
    valid: np.ndarray
    pictures: list[PictureView]
    sounds: list[SoundView]


@dataclass(kw_only=True)
class Blobs:
    """What is stored of a sheet, in place in the store unless a clip is shorter than the window; B arrays a view.

    pictures: JPEG bytes `(n,)`, or pixels `(h, w, 3)` uint8 of a raw store. flow: JPEG bytes, x and y. sounds: windows
    `(L, F)` float16, or uint8 codes, of a stored spectrogram, or `(n,)` int16 of the waveform.
    """

    pictures: list[list[np.ndarray]]
    flow: tuple[list[np.ndarray], list[np.ndarray]] | None
    sounds: list[list[np.ndarray]]

    def nbytes(self) -> int:
        groups = [*self.pictures, *(self.flow or ()), *self.sounds]
        return sum(array.nbytes for group in groups for array in group)


class ClipSource:
    """One split of a store as sheets, blobs and batches. Reads in place; only decoding is left to the loaders.

    plan: which clips at which step. raw: the pictures are stored pixels. with_flow: batches carry the flow. stored: the
    sounds are stored spectrograms; otherwise waveforms, and the front-end is computed on the device. sound_rows: `(n,)`
    time frames or samples of each clip's stored sound; sound_window: those of a window.
    """

    def __init__(self, request: LoaderRequest) -> None:
        """Raises: UserError if the store is missing or lacks the split or anything that `request.spec` asks for."""
        self.request = request
        self.frontend: FrontendConfig = request.data.audio.frontend
        self.size_px = request.size_px
        unknown = sorted(request.spec.fields - _FIELDS)
        assert not unknown, f"a method asks for {unknown}; there are {sorted(_FIELDS)}"
        if request.data.store is None:
            raise UserError(
                "data.store is not set; name the folder that `python -m preprocess pack` wrote: data.store=F"
            )
        self._choose_views()
        self.store = Store(request.data.store)
        try:
            self._read_index()
            if request.train and request.data.warm_up:
                self.store.warm_up()
        except BaseException:
            self.store.close()
            raise

    def _choose_views(self) -> None:
        """For every view of either kind its recipe, and whether it is a neighbour's."""
        data, spec = self.request.data, self.request.spec
        own, neighbours = max(spec.image_views, spec.audio_views), spec.neighbours
        if not self.request.train:
            own, neighbours = 1, 0
        recipe = Recipe(data.augment, "data.augment")
        if not self.request.train:
            middle = component_config("pipeline.augment", "middle_crop", {})
            recipe = Recipe({"middle_crop": middle} if data.image.test_fit == "middle" else {}, "data.image.test_fit")
        recipes = [recipe]
        for view in range(1, own):
            given = view - 1 < len(data.views)
            recipes.append(Recipe(data.views[view - 1], f"data.views[{view - 1}]") if given else recipe)
        self._image_recipes = recipes[: spec.image_views]
        self._sound_recipes = recipes[: spec.audio_views]
        self._neighbour_recipes = [recipe] * neighbours

    def _read_index(self) -> None:
        request, index = self.request, self.store.index
        exclude = request.data.exclude if request.train else None
        self.numbers = training_numbers(self.store, request.split, exclude)
        self._ids = [index["clip_id"][number] for number in self.numbers]
        self._keys = clip_keys(self._ids)
        self.plan = Plan(len(self._ids), request.batch_size, request.train, request.rank, request.world_size)
        self._read_pictures()
        self._read_sounds()
        if self._neighbour_recipes:
            self._read_neighbours()
        truth = [index["truth"][number] for number in self.numbers]
        self._with_truth = not request.train and any(truth)

    def _read_pictures(self) -> None:
        request, index = self.request, self.store.index
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

        packed = self.store.manifest.get("frames", {}).get("pixels", "jpeg")
        wanted = request.data.image.pixels
        if wanted != "any" and packed not in (wanted, "both"):
            raise UserError(
                f"data.image.pixels={wanted}, but store {self.store.path} has its pictures as {packed}; pack the data "
                f"again with --pixels {wanted} or --pixels both, or leave data.image.pixels out"
            )
        self.raw = packed == "raw" or (packed == "both" and wanted != "jpeg")
        self.with_flow = "flow" in request.spec.fields
        if self.with_flow:
            again = "pack the data again with --flow signed, or train a method without flow"
            self._flow = self.store.manifest.get("flow") or {}
            if not self._flow:
                raise UserError(f"the method asks for optical flow and store {self.store.path} has none; {again}")
            self._refuse_clips_without("flow", [index["flow"][number] for number in self.numbers], again)

    def _read_sounds(self) -> None:
        frontend, index = self.frontend, self.store.index
        duration_s = self.request.data.audio.duration_s
        self.window = frontend.window_frames(duration_s)
        if self.window < 1:
            raise UserError(
                f"data.audio.duration_s={duration_s} is shorter than one segment of front-end {frontend.name}"
            )
        self.log_floor = float(np.log(frontend.floor))
        packed = self.store.manifest.get("frontends", {})
        self.stored = frontend.name in packed
        add = f"`python -m preprocess features {self.store.path} --frontend {frontend.name}` adds it where the store "
        add += f"has waveforms; else pack the data again with --frontend {frontend.name}"
        if self.stored:
            self._refuse_other_frontend(packed[frontend.name])
            storage = self.store.manifest.get("spectrogram_storage", {}).get(frontend.name, {"dtype": "float16"})
            self._codes = (storage["low"], storage["high"]) if storage["dtype"] == "uint8" else None
            frames = [index["spectrogram_frames"][number].get(frontend.name, 0) for number in self.numbers]
            self._refuse_clips_without(f"a spectrogram '{frontend.name}'", frames, add)
            self._frames = self.sound_rows = np.array(frames, np.int64)
            self.sound_window = self.window
            return
        samples = np.array([index["waveform_samples"][number] for number in self.numbers], np.int64)
        if not samples.any():
            has = f"its front-ends: {', '.join(sorted(packed))}" if packed else "it has no front-end"
            raise UserError(
                f"store {self.store.path} has neither the front-end '{frontend.name}' nor waveforms to compute it from "
                f"({has}); pack the data again with --frontend {frontend.name}, or choose a front-end that it has with "
                "data.audio.frontend"
            )
        self._refuse_clips_without("a waveform", samples, f"pack the data again with --frontend {frontend.name}")
        channels = [index["channels"][number] for number in self.numbers]
        if frontend.channel == "first" and max(channels) > 1:
            raise UserError(
                f"front-end '{frontend.name}' hears the first channel, and the waveforms of store {self.store.path} "
                f"are the mean of up to {max(channels)}; pack the data again with --frontend {frontend.name}"
            )
        rates = {index["sample_rate_hz"][number] for number in self.numbers}
        if len(rates) > 1:
            raise UserError(
                f"the waveforms of store {self.store.path} have several sample rates ({sorted(rates)} Hz); pack the "
                "data again"
            )
        (self._rate_hz,) = rates
        self.sound_rows, self.sound_window = samples, round(duration_s * self._rate_hz)
        heard = samples * frontend.sample_rate_hz // self._rate_hz
        self._frames = np.array([frontend.frames(int(count)) for count in heard], np.int64)

    def _read_neighbours(self) -> None:
        """Rows of the split that are near each row, for either kind; -1 behind the last one."""
        store = self.store
        folder = store.path / "neighbours"
        remedy = f"`python -m preprocess neighbours {store.path}` makes them"
        try:
            said = json.loads((folder / "neighbours.json").read_text(encoding="utf-8"))
            tables = {
                kind: np.load(folder / f"{kind}.npy", mmap_mode="r", allow_pickle=False) for kind in ("image", "audio")
            }
        except FileNotFoundError as error:
            raise UserError(f"the method asks for neighbours and there is no {error.filename}; {remedy}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"the neighbours in {folder} are damaged ({error}); {remedy}") from error
        rows = np.full(len(store), -1)
        rows[self.numbers] = np.arange(len(self.numbers))
        foreign = np.array([split != store.index["split"][self.numbers[0]] for split in store.index["split"]])
        self._near: dict[str, np.ndarray] = {}
        for kind, table in tables.items():
            if said.get("id_hash") != id_hash(store.index["clip_id"]) or table.shape[:1] != (len(store),):
                raise UserError(f"the neighbours in {folder} are those of other clips than the store's; {remedy}")
            mine = table[self.numbers]
            near = np.where(mine >= 0, rows[mine], -1)
            if foreign[mine[mine >= 0]].any():
                raise UserError(f"{folder} names neighbours in other splits; {remedy}")
            self._refuse_clips_without(f"a neighbour ({kind})", (near >= 0).any(1), remedy)
            # The valid ones first, in their order, so that a draw among the first `count` of a row finds one.
            order = np.argsort(near < 0, axis=1, kind="stable")
            self._near[kind] = np.take_along_axis(near, order, 1)

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
                f"{'; '.join(differing)}. Give yours another name and add it to the store, or use the store's"
            )

    def frames_in_use(self) -> PictureView:
        """Every frame of the split that a sheet can ask for, whole."""
        rows = np.arange(len(self.numbers))
        frame = self._frame
        if self._draw_frame:
            rows = np.repeat(rows, self._frame_count)
            frame = np.arange(len(rows)) - self._frame_first[rows]
        place = self._frame_first[rows] + frame
        return PictureView(
            numbers=self.numbers[rows],
            frame=frame,
            place=place,
            clips=self._clips(rows, place),
            recipe=Recipe({}, ""),
            crop=None,
            parameters=[],
        )

    @property
    def crops_in_time(self) -> bool:
        """Whether windows may begin anywhere."""
        return any(recipe.time_crop for recipe in self._sound_recipes + self._neighbour_recipes)

    def kept_rows(self) -> np.ndarray:
        """`(n,)` int64: rows of each clip's stored sound that its windows can cover."""
        rows = np.full(len(self.sound_rows), self.sound_window)
        return np.maximum(self.sound_rows, self.sound_window) if self.crops_in_time else rows

    def decoded_bytes(self) -> dict[str, int]:
        """What the pictures, sounds and flow of the split take in memory, decoded: pictures as uint8 at their stored
        size, sounds as they are stored.
        """
        clips = self.frames_in_use().clips
        pixels = int((clips.width * clips.height).sum())
        example = self.window_of(self.store.view(int(self.numbers[0])).blob(self.sound_blob), -1)
        return {
            "pictures": 3 * pixels,
            "sounds": int(self.kept_rows().sum()) * example[0].nbytes,
            "flow": 2 * pixels if self.with_flow else 0,
        }

    def order(self, epoch: int) -> np.ndarray:
        """`(n,)` int64: the rows of the split in the order of an epoch."""
        return epoch_order(self.request.seed, epoch, self.plan.count, shuffle=self.request.train)

    def sheet(self, epoch: int, order: np.ndarray, first: int, step: int) -> Sheet:
        """The sheet of this rank at `step` after position `first` of an epoch's `order`."""
        rows, valid = self.plan.take(order, first, step)
        draws = [
            Draws(self.request.seed, epoch, self._keys[rows], view)
            for view in range(max(len(self._image_recipes), len(self._sound_recipes)) + len(self._neighbour_recipes))
        ]
        own = len(draws) - len(self._neighbour_recipes)
        pictures = [self._picture_view(rows, drawn, recipe) for drawn, recipe in zip(draws, self._image_recipes)]
        sounds = [self._sound_view(rows, drawn, recipe) for drawn, recipe in zip(draws, self._sound_recipes)]
        for drawn, recipe in zip(draws[own:], self._neighbour_recipes):
            pictures.append(self._picture_view(self._neighbour("image", rows, drawn), drawn, recipe))
            sounds.append(self._sound_view(self._neighbour("audio", rows, drawn), drawn, recipe))
        return Sheet(numbers=self.numbers[rows], valid=valid, pictures=pictures, sounds=sounds)

    def _neighbour(self, kind: str, rows: np.ndarray, draws: Draws) -> np.ndarray:
        """For each row one of its neighbours, all equally likely."""
        near = self._near[kind][rows]
        count = (near >= 0).sum(1)
        choice = np.floor(draws.uniform(f"neighbour/{kind}")[:, 0] * count).astype(np.int64)
        return near[np.arange(len(rows)), choice]

    def _clips(self, rows: np.ndarray, place: np.ndarray) -> Clips:
        return Clips(
            width=self._frame_width[place],
            height=self._frame_height[place],
            frames=self._frames[rows],
            window=self.window,
            bins=self.frontend.bins,
            size_px=self.size_px,
            log_floor=self.log_floor,
        )

    def _picture_view(self, rows: np.ndarray, draws: Draws, recipe: Recipe) -> PictureView:
        frame = self._frame[rows]
        if self._draw_frame:
            frame = np.floor(draws.uniform("frame")[:, 0] * self._frame_count[rows]).astype(np.int64)
        place = self._frame_first[rows] + frame
        clips = self._clips(rows, place)
        crop = recipe.crop.draw(draws, clips) if recipe.crop else None
        return PictureView(
            numbers=self.numbers[rows],
            frame=frame,
            place=place,
            clips=clips,
            recipe=recipe,
            crop=(crop["start"], crop["shape"]) if crop else None,
            parameters=[part.draw(draws, clips) for part in recipe.image],
        )

    def _sound_view(self, rows: np.ndarray, draws: Draws, recipe: Recipe) -> SoundView:
        clips = self._clips(rows, self._frame_first[rows])
        return SoundView(
            numbers=self.numbers[rows],
            rows=rows,
            clips=clips,
            recipe=recipe,
            start=recipe.time_crop.draw(draws, clips)["start"] if recipe.time_crop else None,
            parameters=[part.draw(draws, clips) for part in recipe.sound],
        )

    def read(self, sheet: Sheet) -> Blobs:
        """What the store has of a sheet."""
        known: dict[int, RecordView] = {}

        def views(numbers: np.ndarray) -> list[RecordView]:
            return [
                known.get(number) or known.setdefault(number, self.store.view(number)) for number in numbers.tolist()
            ]

        kind = "raw" if self.raw else "frames"
        pictures = [
            [record.blob(f"{kind}/{frame}") for record, frame in zip(views(view.numbers), view.frame.tolist())]
            for view in sheet.pictures
        ]
        flow = None
        if self.with_flow:
            first = sheet.pictures[0]
            pairs = list(zip(views(first.numbers), first.frame.tolist()))
            flow = (
                [record.blob(f"flow/{frame}/x") for record, frame in pairs],
                [record.blob(f"flow/{frame}/y") for record, frame in pairs],
            )
        name = self.sound_blob
        sounds = []
        for view in sheet.sounds:
            starts = self.sound_starts(view).tolist()
            sounds.append(
                [self.window_of(record.blob(name), start) for record, start in zip(views(view.numbers), starts)]
            )
        return Blobs(pictures=pictures, flow=flow, sounds=sounds)

    @property
    def sound_blob(self) -> str:
        """Name of the blob that sounds are cut from."""
        return f"spectrogram/{self.frontend.name}" if self.stored else "waveform"

    def sound_starts(self, view: SoundView) -> np.ndarray:
        """`(B,)` int64: the first row (time frame or sample) of each window in the stored sound; -1: in the middle."""
        if view.start is None:
            return np.full(len(view.rows), -1)
        if self.stored:
            return view.start.astype(np.int64)
        step = self.frontend.hop * self._rate_hz / self.frontend.sample_rate_hz
        room = np.maximum(self.sound_rows[view.rows] - self.sound_window, 0)
        return np.rint(view.start * step).astype(np.int64).clip(0, room)

    def window_of(self, values: np.ndarray, start: int) -> np.ndarray:
        """`sound_window` rows of a stored sound from `start`, or its middle for -1: a view of `values`.

        Fewer rows are repeated from the first one (`tile`) or followed by silence (`pad`), in a new array.
        """
        count, length = len(values), self.sound_window
        if count >= length:
            start = (count - length) // 2 if start < 0 else start
            return values[start : start + length]
        if self.frontend.short == "tile":
            return values[np.arange(length) % count]
        silence = self.log_floor if self.stored and not self._codes else 0
        padded = np.full((length, *values.shape[1:]), silence, values.dtype)
        padded[:count] = values
        return padded

    def heard(self, sheet: Sheet, blobs: Blobs) -> list[Tensor]:
        """The spectrograms of a sheet, a view each, as `Batch` has them, on the device of the request."""
        device = self.request.device
        found = []
        for view, windows in zip(sheet.sounds, blobs.sounds):
            if device.type == "cpu" and self.stored and not view.recipe.sound:
                found.append(normalise_apart(windows, self._codes, self.frontend))
            else:
                found.append(self.spectrogram(view, _stacked(windows, device)))
        return found

    def batch(
        self, sheet: Sheet, images: Sequence[Tensor], spectrograms: Sequence[Tensor], flow: Tensor | None
    ) -> Batch:
        """The batch of a sheet, on the device of `images`.

        Args: images: a view each, (B, S, S, 3) uint8, augmented. spectrograms: a view each, augmented. flow
        (B, S, S, 2) float32: the stored codes, cropped and resized with the pictures.
        """
        device = images[0].device
        valid = torch.ones(len(sheet.valid), dtype=torch.bool, device=device)
        if not sheet.valid.all():
            valid = torch.from_numpy(sheet.valid).to(device)
        pictures = [image.permute(0, 3, 1, 2) for image in images]
        truth = [truth_of(self.store.view(number)) for number in sheet.numbers.tolist()] if self._with_truth else None
        return Batch(
            clip_id=[self.store.index["clip_id"][number] for number in sheet.numbers.tolist()],
            valid=valid,
            image=pictures[0],
            spectrogram=spectrograms[0],
            flow=None if flow is None else self._motion(sheet.pictures[0], flow.permute(0, 3, 1, 2)),
            more_images=tuple(pictures[1:]),
            more_spectrograms=tuple(spectrograms[1:]),
            truth=truth,
        )

    def spectrogram(self, view: SoundView, sound: Tensor) -> Tensor:
        """The spectrograms of a view, as `Batch` has them. sound: windows as in `Blobs`, stacked; overwritten."""
        log_power = sound
        if not self.stored:
            waveform = resample(sound.float() / 32767, self._rate_hz, self.frontend.sample_rate_hz)
            wanted = round(self.request.data.audio.duration_s * self.frontend.sample_rate_hz)
            # Resampling gives ceil(n * new / old) samples: never fewer than wanted but for the rounding of the window.
            waveform = torch.nn.functional.pad(waveform, (0, wanted - waveform.shape[-1]))
            log_power = log_spectrogram(waveform, self.frontend)
        elif self._codes:
            log_power = from_codes(sound, *self._codes)
        for part, parameters in zip(view.recipe.sound, view.parameters):
            log_power = part.apply(log_power, on_device(parameters, log_power.device), view.clips)
        return normalise(log_power, self.frontend)

    def _motion(self, view: PictureView, codes: Tensor) -> Tensor:
        """`(B, 2, S, S)` of flow codes, contiguous: see `Batch.flow`."""
        signed = self._flow["encoding"] == "signed"
        flow = (codes - 128) * self._flow["px_per_code"] if signed else codes / 255
        for part, parameters in zip(view.recipe.image, view.parameters):
            flow = part.move(flow, on_device(parameters, flow.device), signed)
        return flow.contiguous()

    def undecodable(self, blobs: Blobs, sheet: Sheet) -> UserError | None:
        """The error that names the clips of a sheet whose JPEGs cannot be decoded, if there are any."""
        groups = [] if self.raw else list(zip(sheet.pictures, blobs.pictures))
        groups += [(sheet.pictures[0], jpegs) for jpegs in blobs.flow or ()]
        found = {
            self.store.index["clip_id"][number]: None
            for view, jpegs in groups
            for number, jpeg in zip(view.numbers, jpegs)
            if cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED) is None
        }
        if not found:
            return None
        return UserError(
            f"the picture of {', '.join(found)} in store {self.store.path} cannot be decoded; run "
            f"`python -m preprocess verify {self.store.path}`"
        )

    def describe(self) -> dict[str, Any]:
        """Where pictures and sounds come from, for logs."""
        stored = f"{self.frontend.name}, stored as {'uint8' if self.stored and self._codes else 'float16'}"
        return {
            "pictures": "stored pixels" if self.raw else "JPEG",
            "sounds": stored if self.stored else f"{self.frontend.name}, computed from the waveform",
        }

    def close(self) -> None:
        self.store.close()


def _stacked(windows: list[np.ndarray], device: torch.device) -> Tensor:
    """`(B, ...)`: windows of the store as a batch of its own memory, on the device."""
    dtype = torch.from_numpy(windows[0][:1].copy()).dtype
    block = torch.empty((len(windows), *windows[0].shape), dtype=dtype, pin_memory=device.type == "cuda")
    np.stack(windows, out=block.numpy())
    return block.to(device, non_blocking=True)


def on_device(parameters: Parameters, device: torch.device) -> dict[str, Tensor]:
    """Drawn parameters as tensors on a device."""
    return {name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in parameters.items()}


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
