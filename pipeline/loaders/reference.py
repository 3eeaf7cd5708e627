"""Pictures by OpenCV on threads, clip by clip: the path without DALI, and what the DALI loader is tested against."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field

from configs.schema import ComponentConfig, ImageConfig
from pipeline.batch import Batch
from pipeline.loader import PlannedLoader
from pipeline.source import Blobs, ClipSource, LoaderRequest, PictureView, Sheet


@dataclass(kw_only=True)
class _Running:
    """A batch in work: what is filled in, and the tasks that do it."""

    sheet: Sheet
    blobs: Blobs
    images: list[np.ndarray]
    flow: np.ndarray | None
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
        blobs = self.source.read(sheet)
        count, size_px = len(sheet.numbers), self.source.size_px
        running = _Running(
            sheet=sheet,
            blobs=blobs,
            images=[np.empty((count, size_px, size_px, 3), np.uint8) for _ in sheet.pictures],
            flow=np.empty((count, size_px, size_px, 2), np.float32) if self.source.with_flow else None,
            tasks=[],
        )
        self._running.append(running)
        for worker in range(self.config.workers):
            rows = range(worker, count, self.config.workers)
            running.tasks.append(self._threads.submit(self._fill, running, rows))

    def _fill(self, running: _Running, rows: range) -> None:
        sheet, blobs = running.sheet, running.blobs
        for row in rows:
            for view, pictures, images in zip(sheet.pictures, blobs.pictures, running.images):
                picture = pictures[row] if self.source.raw else self._decoded(running, pictures[row], colour=True)
                assert picture.shape[:2] == (view.clips.height[row], view.clips.width[row])
                change(cut(picture, view, row), view, row, self.source.request.data.image, images[row])
            if running.flow is not None and blobs.flow is not None:
                for axis, jpegs in enumerate(blobs.flow):
                    codes = cut(self._decoded(running, jpegs[row], colour=False), sheet.pictures[0], row)
                    running.flow[row, :, :, axis] = resize_codes(codes, self.source)

    def _decoded(self, running: _Running, jpeg: np.ndarray, *, colour: bool) -> np.ndarray:
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE)
        if picture is None:
            error = self.source.undecodable(running.blobs, running.sheet)
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
        device = self.source.request.device
        images = [torch.from_numpy(images).to(device) for images in running.images]
        flow = None if running.flow is None else torch.from_numpy(running.flow).to(device)
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


def resize_codes(codes: np.ndarray, source: ClipSource) -> np.ndarray:
    """`(S, S)` float32 of the codes `(h, w)` uint8 of one direction of the flow."""
    return resize(codes.astype(np.float32), source.size_px, source.request.data.image)


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
