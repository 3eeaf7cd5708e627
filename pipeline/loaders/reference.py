"""Pictures by OpenCV on threads, clip by clip: the path without DALI, and what the DALI loader is tested against."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch
from pydantic import Field

from configs.schema import ComponentConfig, ImageConfig
from pipeline.batch import Batch
from pipeline.loader import ClipSource, LoaderRequest, PlannedLoader, Sheet


class ReferenceLoader(PlannedLoader):
    class Config(ComponentConfig):
        workers: int = Field(2, ge=1, description="threads; OpenCV decodes and resizes outside Python's lock")
        prefetch: int = Field(2, ge=1, description="batches under way while one is used")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        self.source = ClipSource(request)
        super().__init__(self.source.plan)
        self.config = config
        self._threads = ThreadPoolExecutor(config.workers, "whence-reference")
        self._sheets: Iterator[Sheet] = iter(())
        self._running: deque[tuple[Sheet, np.ndarray, list[Future[None]]]] = deque()

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
        count, size_px = len(sheet.numbers), self.source.size_px
        images = np.empty((count, size_px, size_px, 3), np.uint8)
        shares = [range(worker, count, self.config.workers) for worker in range(self.config.workers)]
        self._running.append((sheet, images, [self._threads.submit(self._fill, sheet, images, s) for s in shares]))

    def _fill(self, sheet: Sheet, images: np.ndarray, rows: range) -> None:
        for row in rows:
            picture = cv2.imdecode(sheet.jpegs[row], cv2.IMREAD_COLOR_RGB)
            if picture is None:
                error = self.source.undecodable(sheet)
                assert error is not None
                raise error
            assert picture.shape[:2] == (sheet.clips.height[row], sheet.clips.width[row])
            if sheet.crop is not None:
                (y, x), (height, width) = sheet.crop[0][row], sheet.crop[1][row]
                picture = picture[y : y + height, x : x + width]
            picture = resize(picture, self.source.size_px, self.source.request.data.image)
            for part, parameters in zip(self.source.image_augmentations, sheet.image):
                picture = part.reference(picture, {name: value[row] for name, value in parameters.items()})
            images[row] = picture

    def _next(self) -> Batch:
        sheet, images, tasks = self._running.popleft()
        self._start_one()
        for task in tasks:
            task.result()
        device = self.source.request.device
        sounds = torch.from_numpy(np.stack(sheet.sounds))
        return self.source.batch(sheet, torch.from_numpy(images).to(device), sounds.to(device))

    def _drop(self) -> None:
        """Forget what is under way. Waits for it, because it reads the store in place."""
        tasks = [task for _, _, each in self._running for task in each]
        self._running.clear()
        for task in tasks:
            if not task.cancel():
                task.exception()

    def _release(self) -> None:
        self._drop()
        self._threads.shutdown()
        self.source.close()


def resize(picture: np.ndarray, size_px: int, config: ImageConfig) -> np.ndarray:
    """`(S, S, 3)` uint8 of a `(h, w, 3)` uint8 picture, as the config says."""
    if not config.antialias:
        method = cv2.INTER_LINEAR if config.interpolation == "linear" else cv2.INTER_CUBIC
        return cv2.resize(picture, (size_px, size_px), interpolation=method)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0),
        (size_px, size_px),
        mode="bilinear" if config.interpolation == "linear" else "bicubic",
        antialias=True,
    )
    return resized[0].permute(1, 2, 0).numpy()
