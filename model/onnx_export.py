"""A checkpoint as one ONNX file: pictures and waveforms in, localization maps out, the front-end included."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import UserError
from configs.load import as_mapping
from configs.schema import DataConfig
from model.base import Localization, LocalizationModel
from model.checkpoint import Checkpoint, write_atomically
from pipeline.batch import Batch
from pipeline.frontends import log_spectrogram, normalise

TOLERANCE = 1e-4
"""How far the maps of the written file may be from torch's, of the range that they can take if it is wider than 1."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class FromWaveform(nn.Module):
    """A method behind its front-end: what the ONNX file holds.

    forward: image (B, 3, S, S) uint8 RGB, waveform (B, n) float32 in -1 .. 1 at the front-end's rate and, where the
    method asks for it, flow (B, 2, S, S) float32 as `Batch.flow`, to the map (B, h, w).
    """

    def __init__(self, model: LocalizationModel, data: DataConfig) -> None:
        super().__init__()
        self.model, self.data = model, data

    def localize(self, image: Tensor, waveform: Tensor, flow: Tensor | None = None) -> Localization:
        frontend = self.data.audio.frontend
        spectrogram = normalise(log_spectrogram(waveform, frontend), frontend)
        valid = torch.ones(image.shape[0], dtype=torch.bool)
        return self.model.localize(Batch(clip_id=[], valid=valid, image=image, spectrogram=spectrogram, flow=flow))

    def forward(self, image: Tensor, waveform: Tensor, flow: Tensor | None = None) -> Tensor:
        return self.localize(image, waveform, flow).map

    def made_inputs(self, count: int) -> dict[str, Tensor]:
        """Noise for `count` clips, by the names of the inputs."""
        draw, size = torch.Generator().manual_seed(0), self.data.image.size_px
        audio = self.data.audio
        samples = round(audio.duration_s * audio.frontend.sample_rate_hz)
        made = {
            "image": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw),
            "waveform": 0.1 * torch.randn(count, samples, generator=draw),
        }
        if "flow" in self.model.inputs.fields:
            made["flow"] = torch.randn(count, 2, size, size, generator=draw)
        return made


def export_onnx(model: LocalizationModel, checkpoint: Checkpoint, out: Path) -> float:
    """Write a method with the weights of a checkpoint; how far its maps of made clips are from torch's at most.

    The batch size is free; the size of the picture and the length of the sound are those of the checkpoint's config.
    What a user of the file must know is in its metadata.
    Raises: UserError if `out` exists or cannot be written, a package is missing, or onnxruntime's maps differ.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"the export to ONNX needs {' and '.join(missing)}: pip install {' '.join(_PACKAGES)}")
    if out.exists():
        raise UserError(f"{out} exists already; name another file")
    net = FromWaveform(model, checkpoint.config.data).eval().requires_grad_(False)
    with torch.no_grad():
        found = net.localize(**net.made_inputs(3))
        data = _program(net, _facts(net, checkpoint, found))
    difference = float((run_onnx(data, net.made_inputs(3)) - found.map).abs().max())
    low, high = found.bounds
    if not difference <= TOLERANCE * max(1.0, high - low if high - low < float("inf") else 1.0):
        raise UserError(
            f"the maps of the exported model differ by {difference:.2g} from torch's on noise, with these versions of "
            f"torch and onnxruntime; {out} was not written"
        )
    write_atomically(out, lambda file: file.write(data))
    return difference


def _program(net: FromWaveform, facts: dict[str, str]) -> bytes:
    given = net.made_inputs(2)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            net,
            tuple(given.values()),
            dynamo=True,
            input_names=list(given),
            output_names=["map"],
            dynamic_shapes=tuple({0: batch} for _ in given),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(facts)
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about its own operators and deprecated calls."""
    logger = logging.getLogger("torch.onnx._internal.exporter._schemas")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def run_onnx(model: bytes | Path, inputs: dict[str, Tensor]) -> Tensor:
    """The maps `(B, h, w)` of an exported file by onnxruntime on the CPU."""
    runtime: Any = import_module("onnxruntime")
    source = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (maps,) = session.run(["map"], {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(maps)


def _facts(net: FromWaveform, checkpoint: Checkpoint, found: Localization) -> dict[str, str]:
    image, audio = net.data.image, net.data.audio
    fit = "whole picture, squeezed to a square" if image.test_fit == "whole" else "square in the picture's middle"
    frontend = audio.frontend
    samples = round(audio.duration_s * frontend.sample_rate_hz)
    short = "repeated from its start" if frontend.short == "tile" else "followed by silence"
    facts = {
        "method": checkpoint.config.model.name,
        "frontend": json.dumps(as_mapping(frontend)),
        "sample_rate_hz": str(frontend.sample_rate_hz),
        "duration_s": f"{audio.duration_s:g}",
        "size_px": str(image.size_px),
        "image": f"uint8 RGB, (batch, 3, {image.size_px}, {image.size_px}): the {fit}, by {image.interpolation} "
        f"interpolation{' with antialiasing' if image.antialias else ''}; normalised inside",
        "waveform": f"float32 in -1 .. 1, mono, (batch, {samples}): the middle {audio.duration_s:g} s at "
        f"{frontend.sample_rate_hz} Hz; a shorter sound is {short}; the log-spectrogram is made inside",
        "map": f"float32, (batch, {', '.join(map(str, found.map.shape[1:]))}), rows from the top; higher means source; "
        f"from {found.bounds[0]:g} to {found.bounds[1]:g}",
        "step": str(checkpoint.step),
        "selection": str(checkpoint.record.get("selection", "")),
        "config": json.dumps(as_mapping(checkpoint.config)),
    }
    if "flow" in net.model.inputs.fields:
        facts["flow"] = (
            f"float32, (batch, 2, {image.size_px}, {image.size_px}): motion to the right and down, cut and resized "
            "with the picture, in the unit of the store that the method was trained on"
        )
    return facts
