"""Pictures by OpenCV on threads, clip by clip: the path without DALI, and what the DALI loader is tested against."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig, ImageConfig
from pipeline.batch import Batch
from pipeline.loader import PlannedLoader
from pipeline.source import Blobs, ClipSource, LoaderRequest, PictureView, Sheet


@dataclass(kw_only=True)
class _Running:
    """A batch in work: what is filled in, and the tasks that do it."""

    sheet: Sheet
    blobs: Blobs
    canvas: "Canvas"
    tasks: list[Future[None]]


class ReferenceLoader(PlannedLoader):
    class Config(ComponentConfig):
        workers: int = Field(2, ge=1, description="threads; OpenCV decodes and resizes outside Python's lock")
        prefetch: int = Field(2, ge=1, description="batches that are decoded, and again finished ones behind them")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        self.source = ClipSource(request)
        super().__init__(self.source.plan, ahead=config.prefetch)
        self.config = config
        self._threads = ThreadPoolExecutor(config.workers, "whence-reference")
        self._sheets: Iterator[Sheet] = iter(())
        self._running: deque[_Running] = deque()

    def _begin(self, epoch: int, first: int, steps: int) -> None:
        self._drop()
        order = self.source.order(epoch)
        self._sheets = (self.source.sheet(epoch, order, first, step) for step in range(steps))
        for _ in range(self.config.prefetch):
            self._start_one()

    def _start_one(self) -> None:
        sheet = next(self._sheets, None)
        if sheet is None:
            return
        blobs, canvas = self.source.read(sheet), Canvas(self.source, sheet)

        def picture(place: int, row: int) -> np.ndarray:
            view, stored = sheet.pictures[place], blobs.pictures[place][row]
            whole = stored if self.source.raw else self._decoded(sheet, blobs, stored, cv2.IMREAD_COLOR_RGB)
            assert whole.shape[:2] == (view.clips.height[row], view.clips.width[row])
            return cut(whole, view, row)

        def codes(axis: int, row: int) -> np.ndarray:
            assert blobs.flow is not None
            return cut(self._decoded(sheet, blobs, blobs.flow[axis][row], cv2.IMREAD_GRAYSCALE), sheet.pictures[0], row)

        tasks = canvas.start(self._threads, self.config.workers, picture, codes)
        self._running.append(_Running(sheet=sheet, blobs=blobs, canvas=canvas, tasks=tasks))

    def _decoded(self, sheet: Sheet, blobs: Blobs, jpeg: np.ndarray, mode: int) -> np.ndarray:
        picture = cv2.imdecode(jpeg, mode)
        if picture is None:
            error = self.source.undecodable(blobs, sheet)
            assert error is not None
            raise error
        return picture

    def _next(self) -> Batch:
        running = self._running.popleft()
        self._start_one()
        spectrograms = self.source.heard(running.sheet, running.blobs)  # while the threads decode
        for task in running.tasks:
            task.result()
        self.bytes_read += running.blobs.nbytes()
        images, flow = running.canvas.tensors(self.source.request.device)
        return self.source.batch(running.sheet, images, spectrograms, flow)

    def _drop(self) -> None:
        """Forget what is under way. Waits for it, because it reads the store in place."""
        tasks = [task for running in self._running for task in running.tasks]
        self._running.clear()
        for task in tasks:
            if not task.cancel():
                task.exception()

    def _release(self) -> None:
        self._drop()
        self._threads.shutdown()
        self.source.close()

    def describe(self) -> dict[str, Any]:
        decoded = "nothing" if self.source.raw else f"whole pictures, by OpenCV {cv2.__version__} on cpu"
        return {"loader": "reference", **self.source.describe(), "decodes": decoded, "threads": self.config.workers}


class Canvas:
    """The pictures of a batch at their final size, and the flow, which OpenCV fills in on threads."""

    def __init__(self, source: ClipSource, sheet: Sheet) -> None:
        count, size_px = len(sheet.numbers), source.size_px
        self._source, self._sheet = source, sheet
        self._images = [np.empty((count, size_px, size_px, 3), np.uint8) for _ in sheet.pictures]
        self._flow = np.empty((count, size_px, size_px, 2), np.float32) if source.with_flow else None

    def start(
        self,
        pool: ThreadPoolExecutor,
        threads: int,
        picture: Callable[[int, int], np.ndarray],
        codes: Callable[[int, int], np.ndarray],
    ) -> list[Future[None]]:
        """Tasks that fill all in, one a thread.

        picture: from the number of a view and of a row to what of its picture is shown, `(h, w, 3)` uint8. codes: from
        0 or 1, for x or y, and the number of a row to the same of its flow, `(h, w)` uint8.
        """
        count, config = len(self._sheet.numbers), self._source.request.data.image

        def fill(first: int) -> None:
            for row in range(first, count, threads):
                for place, (view, images) in enumerate(zip(self._sheet.pictures, self._images)):
                    change(picture(place, row), view, row, config, images[row])
                if self._flow is not None:
                    for axis in range(2):
                        floats = codes(axis, row).astype(np.float32)
                        self._flow[row, :, :, axis] = resize(floats, self._source.size_px, config)

        return [pool.submit(fill, first) for first in range(threads)]

    def tensors(self, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
        """The pictures of each view and the flow, as `ClipSource.batch` takes them, once the tasks are done."""
        images = [torch.from_numpy(each).to(device) for each in self._images]
        return images, None if self._flow is None else torch.from_numpy(self._flow).to(device)


def cut(picture: np.ndarray, view: PictureView, row: int) -> np.ndarray:
    """The part of a stored picture `(h, w, ...)` that a row of a view shows: no copy."""
    if view.crop is None:
        return picture
    (y, x), (height, width) = view.crop[0][row], view.crop[1][row]
    return picture[y : y + height, x : x + width]


def change(picture: np.ndarray, view: PictureView, row: int, config: ImageConfig, target: np.ndarray) -> None:
    """Resize a picture `(h, w, 3)` uint8 to `target` `(S, S, 3)`, and augment it as drawn for a row of a view."""
    changed = resize(picture, len(target), config, target)
    for part, parameters in zip(view.recipe.image, view.parameters):
        changed = part.reference(changed, {name: value[row] for name, value in parameters.items()})
    if changed is not target:
        target[...] = changed


def resize(picture: np.ndarray, size_px: int, config: ImageConfig, target: np.ndarray | None = None) -> np.ndarray:
    """`(S, S, ...)` of a `(h, w, ...)` uint8 or float32 picture, as the config says; may be written to `target`."""
    if not config.antialias:
        method = cv2.INTER_LINEAR if config.interpolation == "linear" else cv2.INTER_CUBIC
        return cv2.resize(picture, (size_px, size_px), dst=target, interpolation=method)
    # A copy: pixels of a raw store are read-only. torch takes a third of the time for bytes whose channels come last,
    # if the strides of the batch say so too, and half of it for floats whose channels come first.
    batch = np.atleast_3d(picture)[None]
    if picture.dtype == np.uint8:
        planes = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2)
    else:
        planes = torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
    resized = torch.nn.functional.interpolate(
        planes,
        (size_px, size_px),
        mode="bilinear" if config.interpolation == "linear" else "bicubic",
        antialias=True,
    )
    return resized[0].permute(1, 2, 0).contiguous().numpy().reshape(size_px, size_px, *picture.shape[2:])
