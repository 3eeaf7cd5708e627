"""The decoded set held in memory: once it is loaded, nothing is read or decoded any more."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from configs.errors import UserError
from configs.schema import ComponentConfig
from pipeline.augmentation import ImageAugmentation, Parameters
from pipeline.batch import Batch
from pipeline.loader import PlannedLoader
from pipeline.loaders.dali import import_dali
from pipeline.resample import crop_and_resize
from pipeline.source import ClipSource, LoaderRequest, PictureView, Sheet, SoundView, on_device

_FILLED_AT_ONCE = 256
"""Pictures or sounds that are read, decoded and moved together."""
_GB = 1e9


class ResidentLoader(PlannedLoader):
    """Pictures as uint8 at their stored size, sounds as they are stored: whole where a crop in time is drawn, else the
    window alone. The draws are those of the other loaders; crops are resized and changed for a whole batch at once, in
    torch. Meant for a GPU: a CPU is faster picture by picture, from a store with raw pixels.
    """

    class Config(ComponentConfig):
        memory: Literal["device", "host"] = Field("device", description="where the set is kept; host: sent batch-wise")
        share: float = Field(
            0.8, gt=0, le=1, description="of the memory that is free at the start, at most for the set"
        )
        decoder: Literal["opencv", "dali"] = Field("opencv", description="of JPEGs, once; dali: on the GPU if there is")
        threads: int = Field(4, ge=1, description="that decode while the set is loaded")
        prefetch: int = Field(1, ge=1, description="finished batches while one is used")
        compile: bool = Field(False, description="compile the changes of the pictures with torch.compile")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        """Raises: UserError as `ClipSource`, or if the set does not fit."""
        self.config = config
        self.source = ClipSource(request)
        self._device = request.device
        self._home = request.device if config.memory == "device" else torch.device("cpu")
        self._sheets: Iterator[Sheet] = iter(())
        self._change: Callable[..., Tensor] = torch.compile(_changed, dynamic=False) if config.compile else _changed
        self._filled = False
        try:
            super().__init__(self.source.plan, ahead=config.prefetch)
            self._measure()
        except BaseException:
            self.source.close()
            raise

    def _measure(self) -> None:
        """Where every picture and sound will lie. Raises: UserError if there is not enough memory for them."""
        source = self.source
        self._frames = source.frames_in_use()
        self._slot = np.full(self._frames.place.max() + 1, -1)
        self._slot[self._frames.place] = np.arange(len(self._frames.place))
        self._plane = self._frames.clips.width * self._frames.clips.height
        self._pixel = np.concatenate([[0], np.cumsum(self._plane)])
        self._row = np.concatenate([[0], np.cumsum(source.kept_rows())])
        example = source.window_of(source.store.view(int(source.numbers[0])).blob(source.sound_blob), -1)
        self._sound_shape, self._sound_type = example.shape[1:], torch.from_numpy(example[:1].copy()).dtype
        self.nbytes = source.decoded_bytes()
        free = free_bytes(self._home)
        if self.total_bytes > self.config.share * free:
            parts = ", ".join(f"{name} {size / _GB:.1f}" for name, size in self.nbytes.items() if size)
            raise UserError(
                f"the decoded set takes {self.total_bytes / _GB:.1f} GB ({parts}); {self._home} has {free / _GB:.1f} "
                f"GB free, of which data.loader.share={self.config.share:g} may be used. Use data.loader.name=dali, "
                "data.loader.memory=host, a shorter window, no time_crop, or a store packed with a smaller "
                "--short-side or with --uint8"
            )

    @property
    def total_bytes(self) -> int:
        """What the set takes in memory."""
        return sum(self.nbytes.values())

    def _fill(self) -> None:
        """Read and decode everything once. Raises: UserError naming pictures that cannot be decoded."""
        source, home = self.source, self._home
        self._pictures = torch.empty(self.nbytes["pictures"], dtype=torch.uint8, device=home)
        self._flow = torch.empty(self.nbytes["flow"], dtype=torch.uint8, device=home)
        self._sounds = torch.empty((int(self._row[-1]), *self._sound_shape), dtype=self._sound_type, device=home)
        title = f"loading {len(source.numbers)} clips into {home} ({self.total_bytes / _GB:.1f} GB)"
        shown = source.request.rank == 0
        with ExitStack() as stack:
            progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True, disable=not shown))
            threads = stack.enter_context(ThreadPoolExecutor(self.config.threads, "whence-resident"))
            task = progress.add_task(title, total=len(self._frames.place) + len(source.numbers))
            decode = self._by_dali() if self.config.decoder == "dali" and not source.raw else None
            for first, stop in _pieces(len(self._frames.place)):
                self._fill_pictures(first, stop, threads, decode)
                progress.advance(task, stop - first)
            for first, stop in _pieces(len(source.numbers)):
                self._fill_sounds(first, stop)
                progress.advance(task, stop - first)
        self._filled = True

    def _fill_pictures(self, first: int, stop: int, threads: ThreadPoolExecutor, decode: Any) -> None:
        source = self.source
        view = _rows_of(self._frames, slice(first, stop))
        sheet = Sheet(numbers=view.numbers, valid=np.ones(stop - first, bool), pictures=[view], sounds=[])
        blobs = source.read(sheet)
        try:
            if source.raw:
                pictures = [torch.from_numpy(np.array(pixels)) for pixels in blobs.pictures[0]]
            elif decode is not None:
                pictures = decode(blobs.pictures[0])
            else:
                pictures = list(threads.map(_decoded, blobs.pictures[0]))
            moves = [list(threads.map(_decoded_codes, jpegs)) for jpegs in blobs.flow or ()]
        except (cv2.error, RuntimeError) as error:
            raise (source.undecodable(blobs, sheet) or error) from error
        # Plane after plane, so that a crop of a plane is a matrix.
        flat = [picture.permute(2, 0, 1).reshape(-1).to(self._home) for picture in pictures]
        self._pictures[3 * self._pixel[first] : 3 * self._pixel[stop]] = torch.cat(flat)
        if moves:
            flat = [torch.cat([x.reshape(-1), y.reshape(-1)]) for x, y in zip(*moves)]
            self._flow[2 * self._pixel[first] : 2 * self._pixel[stop]] = torch.cat(flat).to(self._home)

    def _fill_sounds(self, first: int, stop: int) -> None:
        source = self.source
        kept = []
        for number in source.numbers[first:stop].tolist():
            sound = source.store.view(number).blob(source.sound_blob)
            whole = source.crops_in_time and len(sound) >= source.sound_window
            kept.append(sound if whole else source.window_of(sound, -1))
        self._sounds[self._row[first] : self._row[stop]] = torch.from_numpy(np.concatenate(kept)).to(self._home)

    def _by_dali(self) -> Callable[[list[np.ndarray]], list[Tensor]]:
        """A function that decodes whole JPEGs with DALI, on the GPU if the loader has one."""
        dali = import_dali()
        gpu = self._device.type == "cuda"
        jpegs: list[np.ndarray] = []

        @dali.pipeline_def(
            batch_size=_FILLED_AT_ONCE,
            num_threads=self.config.threads,
            device_id=self._device.index if gpu else None,
            prefetch_queue_depth=1,
        )
        def graph() -> Any:
            fed = dali.fn.external_source(source=lambda: jpegs, batch=True, dtype=dali.types.UINT8, ndim=1)
            return dali.fn.decoders.image(fed, device="mixed" if gpu else "cpu")

        pipeline = graph()

        def decode(wanted: list[np.ndarray]) -> list[Tensor]:
            jpegs[:] = wanted
            (pictures,) = pipeline.run()
            return [torch.from_dlpack(picture).clone() for picture in pictures]

        return decode

    def _begin(self, epoch: int, first: int, steps: int) -> None:
        if not self._filled:
            self._fill()
        order = self.source.order(epoch)
        self._sheets = (self.source.sheet(epoch, order, first, step) for step in range(steps))

    def _next(self) -> Batch:
        sheet = next(self._sheets)
        images = [
            self._change(
                self._cut(view, self._pictures, 3),
                view.recipe.image,
                [on_device(drawn, self._device) for drawn in view.parameters],
            )
            for view in sheet.pictures
        ]
        flow = None
        if self.source.with_flow:
            flow = self._cut(sheet.pictures[0], self._flow, 2).permute(0, 2, 3, 1)
        spectrograms = [self.source.spectrogram(view, self._heard(view)) for view in sheet.sounds]
        return self.source.batch(sheet, images, spectrograms, flow)

    def _cut(self, view: PictureView, pool: Tensor, channels: int) -> Tensor:
        """`(B, C, S, S)` float32: the crops of a view at their final size, on the device."""
        slots = self._slot[view.place]
        first, plane = channels * self._pixel[slots], self._plane[slots]
        if self._home != self._device:
            pieces = [pool[start : start + size] for start, size in zip(first.tolist(), (channels * plane).tolist())]
            sent = torch.empty(channels * int(plane.sum()), dtype=torch.uint8, pin_memory=True)
            pool = torch.cat(pieces, out=sent).to(self._device, non_blocking=True)
            first = channels * (np.cumsum(plane) - plane)
        whole = np.stack([view.clips.height, view.clips.width], 1)
        start, shape = view.crop or (np.zeros_like(whole), whole)
        return crop_and_resize(
            pool,
            torch.from_numpy(first),
            torch.from_numpy(np.stack([plane, view.clips.width], 1)),
            torch.from_numpy(start.astype(np.int64)),
            torch.from_numpy(shape.astype(np.int64)),
            channels,
            self.source.size_px,
            self.source.request.data.image,
        )

    def _heard(self, view: SoundView) -> Tensor:
        """The windows of a view, as the store has them, on the device."""
        source = self.source
        starts = source.sound_starts(view)
        first, behind = self._row[view.rows], self._row[view.rows + 1]
        starts = np.where(starts < 0, (behind - first - source.sound_window) // 2, starts)
        place = torch.from_numpy(first + starts).to(self._home)[:, None]
        return self._sounds[place + torch.arange(source.sound_window, device=self._home)].to(self._device)

    def _release(self) -> None:
        self._sheets = iter(())
        self._pictures = self._flow = self._sounds = torch.empty(0)
        self.source.close()

    def describe(self) -> dict[str, Any]:
        kept = f"{self.total_bytes / _GB:.2f} GB in {self._home}"
        return {"loader": "resident", **self.source.describe(), "decodes": "once", "keeps": kept}


def _changed(crops: Tensor, parts: Sequence[ImageAugmentation], parameters: Sequence[Parameters]) -> Tensor:
    """`(B, S, S, 3)` uint8 of `(B, 3, S, S)` float32 pictures, after their augmentations."""
    images = crops.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)
    for part, drawn in zip(parts, parameters):
        images = part.batched(images, drawn)
    return images.contiguous()


def _decoded(jpeg: np.ndarray) -> Tensor:
    return torch.from_numpy(_read(jpeg, cv2.IMREAD_COLOR_RGB))


def _decoded_codes(jpeg: np.ndarray) -> Tensor:
    return torch.from_numpy(_read(jpeg, cv2.IMREAD_GRAYSCALE))


def _read(jpeg: np.ndarray, mode: int) -> np.ndarray:
    picture = cv2.imdecode(jpeg, mode)
    if picture is None:
        raise RuntimeError("a JPEG that cannot be decoded")
    return picture


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, count, _FILLED_AT_ONCE), count])


def _rows_of(view: PictureView, rows: slice) -> PictureView:
    return replace(view, numbers=view.numbers[rows], frame=view.frame[rows], place=view.place[rows])


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on the CPU what Linux could give to this process, or its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(limit) - int((group / "memory.current").read_text()) + int(used["file"]))
    return free
