"""Pictures by DALI: one graph for the CPU and, with the JPEG decoder and everything behind it, for the GPU."""

import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from configs.errors import UserError
from configs.schema import ComponentConfig
from pipeline.batch import Batch
from pipeline.loader import ClipSource, LoaderRequest, PlannedLoader, Sheet


class DaliLoader(PlannedLoader):
    """The pipeline asks for a batch only when the loader schedules one, `prefetch` batches ahead and never beyond the
    epoch; so nothing has to be thrown away at an epoch's end, and an abandoned epoch is drained, not rebuilt.
    """

    class Config(ComponentConfig):
        threads: int = Field(2, ge=1, description="CPU threads of DALI; on a GPU they decode the engines' rest")
        prefetch: int = Field(2, ge=1, description="batches under way while one is used")
        decode: Literal["roi", "full"] = Field("roi", description="decode only the crop, or all and cut")
        hw_decoder_load: float = Field(0.65, ge=0, le=1, description="share of the pictures for the JPEG engines")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        """Raises: UserError if DALI is not installed, or as `ClipSource`."""
        self.config = config
        self._device = request.device
        self._dali = import_dali()
        self.source = ClipSource(request)
        try:
            super().__init__(self.source.plan)
            self._sheets: Iterator[Sheet] = iter(())
            self._running: deque[Sheet] = deque()
            self._pipeline: Any = self._build()
        except BaseException:
            self.source.close()
            raise

    def _build(self) -> Any:
        fn, types = self._dali.fn, self._dali.types
        source, config = self.source, self.config
        gpu = self._device.type == "cuda"
        image = source.request.data.image
        probe = source.sheet(0, np.arange(source.plan.count), 0, 0)
        samples = _outputs(probe)
        dtypes = {
            np.dtype(name): getattr(types, name.upper()) for name in ("uint8", "int16", "int32", "int64", "float16")
        }
        dtypes[np.dtype("float32")] = types.FLOAT
        interpolation = {"linear": types.INTERP_LINEAR, "cubic": types.INTERP_CUBIC}[image.interpolation]

        @self._dali.pipeline_def(
            batch_size=source.plan.batch_size,
            num_threads=config.threads,
            device_id=(self._device.index or 0) if gpu else None,
            prefetch_queue_depth=config.prefetch,
        )
        def graph() -> tuple[Any, ...]:
            jpegs, sounds, numbers, *rest = fn.external_source(
                source=self._feed,
                num_outputs=len(samples),
                batch=True,
                no_copy=True,
                dtype=[dtypes[each[0].dtype] for each in samples],
                ndim=[each[0].ndim for each in samples],
            )
            rest = iter(rest)
            decoder = {"device": "mixed", "hw_decoder_load": config.hw_decoder_load} if gpu else {"device": "cpu"}
            if probe.crop is None:
                images = fn.decoders.image(jpegs, **decoder)
            else:
                crop = {"start": next(rest), "shape": next(rest), "axis_names": "HW"}
                if config.decode == "roi":
                    images = fn.decoders.image_slice(jpegs, **crop, **decoder)
                else:
                    images = fn.slice(fn.decoders.image(jpegs, **decoder), **crop)
            images = fn.resize(
                images, size=(source.size_px, source.size_px), interp_type=interpolation, antialias=image.antialias
            )
            for part, parameters in zip(source.image_augmentations, probe.image):
                images = part.dali(images, {name: next(rest) for name in parameters})
            # A copy, because the fed window lies in the store, and a batch is one block of memory of its own.
            return images, sounds.gpu() if gpu else fn.copy(sounds), fn.copy(numbers)

        return graph()

    def _feed(self) -> list[Any]:
        sheet = next(self._sheets)  # StopIteration is what DALI expects at the end
        self._running.append(sheet)
        return _outputs(sheet)

    def _begin(self, epoch: int, first: int, steps: int) -> None:
        self._drain()
        order = self.source.order(epoch)
        self._sheets = (self.source.sheet(epoch, order, first, step) for step in range(steps))
        self._pipeline.reset()
        for _ in range(min(self.config.prefetch, steps)):
            if len(self._running) < self.config.prefetch:  # the very first schedule fills the whole queue
                self._pipeline.schedule_run()

    def _next(self) -> Batch:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            outputs = self._pipeline.share_outputs(stream)
        except RuntimeError as error:
            raise (self.source.undecodable(self._running[0]) or error) from error
        sheet = self._running.popleft()
        with nullcontext() if stream is None else torch.cuda.device(self._device):
            image, sound, numbers = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._pipeline.release_outputs()
        self._pipeline.schedule_run()
        assert np.array_equal(numbers.numpy(), sheet.numbers), "the pictures are not those of the planned clips"
        return self.source.batch(sheet, image, sound)

    def _drain(self) -> None:
        while not self._pipeline.empty():
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()
        self._running.clear()

    def _release(self) -> None:
        # DALI has no public call that stops a pipeline, it stops when the last reference goes. But the traceback of an
        # error keeps references, and its threads must not read the store when it is closed.
        self._pipeline._shutdown()
        self._pipeline = None
        self._running.clear()
        self.source.close()


def import_dali() -> Any:
    """The module `nvidia.dali`. Raises: UserError if it is not installed."""
    try:
        return importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise UserError(
            f"data.loader=dali needs NVIDIA DALI ({error}); install it with the extra cuda12 or cuda13 of this project "
            "(Linux only), or use data.loader.name=reference"
        ) from error


def _outputs(sheet: Sheet) -> list[Any]:
    """What a sheet feeds to the graph: an array or a list of arrays for each input, in the order of the graph."""
    parameters = [value for each in sheet.image for value in each.values()]
    return [sheet.jpegs, sheet.sounds, sheet.numbers, *(sheet.crop or ()), *parameters]
