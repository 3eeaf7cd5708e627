"""Pictures by DALI: one graph for the CPU and, with the JPEG decoder and everything behind it, for the GPU."""

import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.errors import UserError
from configs.schema import ComponentConfig
from pipeline.batch import Batch
from pipeline.loader import PlannedLoader
from pipeline.source import Blobs, ClipSource, LoaderRequest, PictureView, Sheet


class DaliLoader(PlannedLoader):
    """The pipeline asks for a batch only when the loader schedules one, `prefetch` batches ahead and never beyond the
    epoch; so nothing has to be thrown away at an epoch's end, and an abandoned epoch is drained, not rebuilt.
    """

    class Config(ComponentConfig):
        threads: int = Field(2, ge=1, description="CPU threads of DALI; on a GPU they decode the engines' rest")
        prefetch: int = Field(2, ge=1, description="batches in DALI's queue, and again finished ones behind it")
        decode: Literal["roi", "full"] = Field("roi", description="decode only the crop, or all and cut")
        hw_decoder_load: float = Field(0.65, ge=0, le=1, description="share of the pictures for the JPEG engines")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        """Raises: UserError if DALI is not installed, or as `ClipSource`."""
        self.config = config
        self._device = request.device
        self._dali = import_dali()
        self.source = ClipSource(request)
        try:
            super().__init__(self.source.plan, ahead=config.prefetch)
            self._sheets: Iterator[Sheet] = iter(())
            self._running: deque[tuple[Sheet, Blobs]] = deque()
            self._pipeline: Any = self._build()
        except BaseException:
            self.source.close()
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
                pictures = next(rest)
                if not source.raw:
                    pictures = self._decoded(pictures, _crop_nodes(view, rest))
                elif gpu:
                    pictures = pictures.gpu()
                parameters = [{name: next(rest) for name in drawn} for drawn in view.parameters]
                images = self._resized(pictures)
                for part, drawn in zip(view.recipe.image, parameters):
                    images = part.dali(images, drawn)
                outputs.append(images)
                if source.with_flow and place == 0:
                    codes, crop = [next(rest), next(rest)], _crop_nodes(view, rest)
                    axes = [self._decoded(each, crop, grey=True) for each in codes]
                    # As one picture: resizing two of a channel each takes half as long again.
                    outputs.append(self._resized(fn.cat(*axes, axis_name="C"), dtype=self._dali.types.FLOAT))
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

    def _resized(self, pictures: Any, **options: Any) -> Any:
        types, image = self._dali.types, self.source.request.data.image
        interpolation = {"linear": types.INTERP_LINEAR, "cubic": types.INTERP_CUBIC}[image.interpolation]
        size = (self.source.size_px, self.source.size_px)
        return self._dali.fn.resize(
            pictures, size=size, interp_type=interpolation, antialias=image.antialias, **options
        )

    def _feed(self) -> list[Any]:
        sheet = next(self._sheets)  # StopIteration is what DALI expects at the end
        blobs = self._read(sheet)
        self._running.append((sheet, blobs))
        return self._fed(sheet, blobs)

    def _read(self, sheet: Sheet) -> Blobs:
        blobs = self.source.read(sheet)
        if not self.source.raw:
            return blobs
        # Cut here: DALI's slice takes ten times as long.
        return replace(blobs, pictures=[_cut(*pair) for pair in zip(sheet.pictures, blobs.pictures)])

    def _fed(self, sheet: Sheet, blobs: Blobs) -> list[Any]:
        """What a batch feeds to the graph: an array or a list of arrays for each input, in the order of the graph."""
        fed: list[Any] = [sheet.numbers]
        for place, (view, pictures) in enumerate(zip(sheet.pictures, blobs.pictures)):
            crop = view.crop or ()
            fed += [pictures, *(() if self.source.raw else crop)]
            fed += [value for drawn in view.parameters for value in drawn.values()]
            if blobs.flow is not None and place == 0:
                fed += [*blobs.flow, *crop]
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
        sounds = [stacked(windows, self._device) for windows in self._running[0][1].sounds]  # while DALI decodes
        try:
            outputs = self._pipeline.share_outputs(stream)
        except RuntimeError as error:
            sheet, blobs = self._running[0]
            raise (self.source.undecodable(blobs, sheet) or error) from error
        sheet, blobs = self._running.popleft()
        with nullcontext() if stream is None else torch.cuda.device(self._device):
            *tensors, numbers = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._pipeline.release_outputs()
        self._pipeline.schedule_run()
        assert np.array_equal(numbers.numpy(), sheet.numbers), "the pictures are not those of the planned clips"
        self.bytes_read += blobs.nbytes()
        flow = tensors.pop(1) if self.source.with_flow else None
        return self.source.batch(sheet, tensors, sounds, flow)

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

    def describe(self) -> dict[str, Any]:
        where = f"cuda:{self._device.index}, {self.config.hw_decoder_load:g} on its JPEG engines"
        decoder = f"DALI {self._dali.__version__} on {where if self._device.type == 'cuda' else 'cpu'}"
        crops = {"roi": "crops only", "full": "whole pictures"}[self.config.decode]
        decoded = "nothing" if self.source.raw else f"{crops}, by {decoder}"
        return {"loader": "dali", **self.source.describe(), "decodes": decoded, "threads": self.config.threads}


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


def _cut(view: PictureView, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """The pixels inside the crop of each picture `(h, w, 3)`, contiguous."""
    if view.crop is None:
        return pictures
    corners = np.concatenate([view.crop[0], view.crop[0] + view.crop[1]], 1).tolist()
    return [np.ascontiguousarray(each[y0:y1, x0:x1]) for each, (y0, x0, y1, x1) in zip(pictures, corners)]


def stacked(windows: list[np.ndarray], device: torch.device) -> Tensor:
    """`(B, ...)`: windows of the store as a batch of its own memory, on the device. Not by DALI, which takes longer to
    be handed them one by one than they take to copy.
    """
    example = torch.from_numpy(np.array(windows[0]))
    block = torch.empty((len(windows), *example.shape), dtype=example.dtype, pin_memory=device.type == "cuda")
    np.stack(windows, out=block.numpy())
    return block.to(device, non_blocking=True)
