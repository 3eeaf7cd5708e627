"""Pictures by DALI: one graph for the CPU and, with the JPEG decoder and everything behind it, for the GPU. On a CPU
the graph ends behind the decoder, and OpenCV does the rest, unless told otherwise.
"""

import ctypes
import importlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakSet

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.errors import UserError
from configs.schema import ComponentConfig
from pipeline.augmentation import ImageAugmentation, Parameters
from pipeline.batch import Batch
from pipeline.loader import PlannedLoader
from pipeline.loaders.reference import Canvas, cut
from pipeline.source import Blobs, ClipSource, LoaderRequest, PictureView, Sheet


class DaliLoader(PlannedLoader):
    """The pipeline asks for a batch only when the loader schedules one, `prefetch` batches ahead and never beyond the
    epoch; so nothing has to be thrown away at an epoch's end, and an abandoned epoch is drained, not rebuilt.
    """

    class Config(ComponentConfig):
        threads: int = Field(
            2, ge=1, description="CPU threads of DALI, and as many of OpenCV; on a GPU they decode the engines' rest"
        )
        prefetch: int = Field(2, ge=1, description="batches in DALI's queue, and again finished ones behind it")
        decode: Literal["roi", "full"] = Field("roi", description="decode only the crop, or all and cut")
        change: Literal["auto", "dali", "opencv"] = Field(
            "auto",
            description="what resizes and changes the pictures; auto: on a CPU OpenCV, which is several times faster",
        )
        hw_decoder_load: float = Field(0.65, ge=0, le=1, description="share of the pictures for the JPEG engines")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        """Raises: UserError if DALI is not installed, or as `ClipSource`."""
        self.config = config
        self._device = request.device
        self._dali = import_dali()
        on_cpu = request.device.type == "cpu"
        if config.change == "opencv" and not on_cpu:
            raise UserError("data.loader.change=opencv is for a CPU; on a GPU leave it at auto")
        self._pool: ThreadPoolExecutor | None = None
        self.source = ClipSource(request)
        try:
            if on_cpu and config.change != "dali":
                self._pool = ThreadPoolExecutor(config.threads, "whence-dali")
            super().__init__(self.source.plan, ahead=config.prefetch)
            self._sheets: Iterator[Sheet] = iter(())
            self._running: deque[tuple[Sheet, Blobs]] = deque()
            self._pipeline: Any = self._build()
            _open.add(self)
        except BaseException:
            self._give_back()
            raise

    def _build(self) -> Any:
        source, config = self.source, self.config
        gpu = self._device.type == "cuda"
        probe = source.sheet(0, np.arange(source.plan.count), 0, 0)
        fed = self._fed(probe, self._read(probe))

        @self._dali.pipeline_def(
            batch_size=source.plan.batch_size,
            num_threads=config.threads,
            device_id=(self._device.index or 0) if gpu else None,
            prefetch_queue_depth=config.prefetch,
        )
        def graph() -> tuple[Any, ...]:
            fn = self._dali.fn
            nodes = fn.external_source(
                source=self._feed,
                num_outputs=len(fed),
                batch=True,
                no_copy=True,
                dtype=[self._types()[each[0].dtype] for each in fed],
                ndim=[each[0].ndim for each in fed],
                layout=["HWC" if each[0].ndim == 3 else None for each in fed],
            )
            rest = iter(nodes)
            numbers = next(rest)
            outputs = []
            for place, view in enumerate(probe.pictures):
                pictures = []
                if not source.raw:
                    pictures = [self._decoded(next(rest), _crop_nodes(view, rest))]
                elif not self._pool:
                    pictures = [next(rest).gpu() if gpu else next(rest)]
                axes = []
                if source.with_flow and place == 0:
                    codes, crop = [next(rest), next(rest)], _crop_nodes(view, rest)
                    axes = [self._decoded(each, crop, grey=True) for each in codes]
                if self._pool:
                    outputs += [*pictures, *axes]
                    continue
                parameters = [{name: next(rest) for name in drawn} for drawn in view.parameters]
                outputs.append(self._changed(pictures[0], view.recipe.image, parameters))
                if axes:
                    # As one picture: resizing two of a channel each takes half as long again.
                    outputs.append(self._changed(fn.cat(*axes, axis_name="C"), dtype=np.float32))
            return *outputs, fn.copy(numbers)  # a copy, because what is fed is not ours to hand out

        return graph()

    def _types(self) -> dict[np.dtype, Any]:
        types = self._dali.types
        named = {
            np.dtype(name): getattr(types, name.upper()) for name in ("uint8", "int16", "int32", "int64", "float16")
        }
        return named | {np.dtype("float32"): types.FLOAT}

    def _decoded(self, jpegs: Any, crop: dict[str, Any], *, grey: bool = False) -> Any:
        """The node of the pictures' pixels inside the crop, on the device."""
        fn, types, config = self._dali.fn, self._dali.types, self.config
        decoder: dict[str, Any] = {"device": "cpu", "output_type": types.GRAY if grey else types.RGB}
        if self._device.type == "cuda":
            decoder |= {"device": "mixed", "hw_decoder_load": config.hw_decoder_load}
        if not crop:
            return fn.decoders.image(jpegs, **decoder)
        if config.decode == "roi":
            return fn.decoders.image_slice(jpegs, **crop, **decoder)
        return fn.slice(fn.decoders.image(jpegs, **decoder), **crop)

    def _changed(
        self,
        pictures: Any,
        parts: Sequence[ImageAugmentation] = (),
        parameters: Sequence[Parameters] = (),
        dtype: type[np.number] = np.uint8,
    ) -> Any:
        """The node of the pictures at their final size, after their augmentations."""
        fn, types, image = self._dali.fn, self._dali.types, self.source.request.data.image
        size_px = self.source.size_px
        images = fn.resize(
            pictures,
            size=(size_px, size_px),
            interp_type={"linear": types.INTERP_LINEAR, "cubic": types.INTERP_CUBIC}[image.interpolation],
            antialias=image.antialias,
            dtype=self._types()[np.dtype(dtype)],
        )
        for part, drawn in zip(parts, parameters):
            images = part.dali(images, drawn)
        return images

    def _feed(self) -> list[Any]:
        sheet = next(self._sheets)  # StopIteration is what DALI expects at the end
        blobs = self._read(sheet)
        self._running.append((sheet, blobs))
        return self._fed(sheet, blobs)

    def _read(self, sheet: Sheet) -> Blobs:
        blobs = self.source.read(sheet)
        if not self.source.raw or self._pool:
            return blobs
        # Cut here: DALI's slice takes ten times as long.
        pictures = [
            [np.ascontiguousarray(cut(picture, view, row)) for row, picture in enumerate(stored)]
            for view, stored in zip(sheet.pictures, blobs.pictures)
        ]
        return replace(blobs, pictures=pictures)

    def _fed(self, sheet: Sheet, blobs: Blobs) -> list[Any]:
        """What a batch feeds to the graph: an array or a list of arrays for each input, in the order of the graph."""
        fed: list[Any] = [sheet.numbers]
        for place, (view, pictures) in enumerate(zip(sheet.pictures, blobs.pictures)):
            crop = view.crop or ()
            if not self.source.raw:
                fed += [pictures, *crop]
            elif not self._pool:
                fed.append(pictures)
            if blobs.flow is not None and place == 0:
                fed += [*blobs.flow, *crop]
            if not self._pool:
                fed += [value for drawn in view.parameters for value in drawn.values()]
        return fed

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
        spectrograms = self.source.heard(*self._running[0])  # while DALI decodes
        try:
            outputs = self._pipeline.share_outputs(stream)
        except RuntimeError as error:
            sheet, blobs = self._running[0]
            raise (self.source.undecodable(blobs, sheet) or error) from error
        sheet, blobs = self._running.popleft()
        if self._pool:
            try:
                images, flow = self._changed_by_opencv(self._pool, sheet, blobs, list(outputs[:-1]))
                numbers = torch.from_numpy(np.array(outputs[-1].as_tensor()))
            finally:
                self._pipeline.release_outputs()
        else:
            with nullcontext() if stream is None else torch.cuda.device(self._device):
                *images, numbers = (torch.from_dlpack(output.as_tensor()) for output in outputs)
            self._pipeline.release_outputs()
            flow = images.pop(1) if self.source.with_flow else None
        self._pipeline.schedule_run()
        assert np.array_equal(numbers.numpy(), sheet.numbers), "the pictures are not those of the planned clips"
        self.bytes_read += blobs.nbytes()
        return self.source.batch(sheet, images, spectrograms, flow)

    def _changed_by_opencv(
        self, pool: ThreadPoolExecutor, sheet: Sheet, blobs: Blobs, decoded: list[Any]
    ) -> tuple[list[Tensor], Tensor | None]:
        """The pictures of all views and the flow, as `ClipSource.batch` takes them. decoded: DALI's outputs, crops."""
        source, canvas = self.source, Canvas(self.source, sheet)
        axes = [decoded.pop(0 if source.raw else 1) for _ in range(2)] if source.with_flow else []

        def picture(place: int, row: int) -> np.ndarray:
            if source.raw:
                return cut(blobs.pictures[place][row], sheet.pictures[place], row)
            return np.asarray(decoded[place][row])

        def codes(axis: int, row: int) -> np.ndarray:
            return np.asarray(axes[axis][row])[:, :, 0]

        tasks = canvas.start(pool, self.config.threads, picture, codes)
        wait(tasks)  # all of them, also if one fails: the pictures are DALI's, and are gone when it is told so
        for task in tasks:
            task.result()
        return canvas.tensors(self._device)

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
        _open.discard(self)
        self._running.clear()
        self._give_back()

    def leave_to_parent(self) -> None:
        """In a forked child, where DALI's threads are not: its destructor would wait for them for ever. So keep it from
        ever being called.
        """
        pipe, self._pipeline._pipe = self._pipeline._pipe, None
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipe))

    def _give_back(self) -> None:
        if self._pool:
            self._pool.shutdown()
        self.source.close()

    def describe(self) -> dict[str, Any]:
        where = f"cuda:{self._device.index}, {self.config.hw_decoder_load:g} on its JPEG engines"
        decoder = f"DALI {self._dali.__version__} on {where if self._device.type == 'cuda' else 'cpu'}"
        crops = {"roi": "crops only", "full": "whole pictures"}[self.config.decode]
        decoded = "nothing" if self.source.raw else f"{crops}, by {decoder}"
        changed = f"by OpenCV {cv2.__version__}" if self._pool else f"by DALI {self._dali.__version__}"
        known = {"loader": "dali", **self.source.describe(), "decodes": decoded, "changes": changed}
        return known | {"threads": self.config.threads}


_open: WeakSet[DaliLoader] = WeakSet()


def _leave_all_to_parent() -> None:
    for loader in _open:
        loader.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def import_dali() -> Any:
    """The module `nvidia.dali`. Raises: UserError if it is not installed."""
    try:
        return importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise UserError(
            f"data.loader=dali needs NVIDIA DALI ({error}); install it with the extra cuda12 or cuda13 of this project "
            "(Linux only), or use data.loader.name=reference"
        ) from error


def _crop_nodes(view: PictureView, fed: Iterator[Any]) -> dict[str, Any]:
    """Options of `fn.slice` from the nodes that are fed next, if the view has a crop."""
    return {} if view.crop is None else {"start": next(fed), "shape": next(fed), "axis_names": "HW"}
