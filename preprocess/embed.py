"""What frozen encoders make of the pictures and sounds of a store: one vector a clip."""

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchaudio
import torchvision
from torch import Tensor, nn

from configs.errors import UserError
from pipeline.frontends import lengthen, resample
from pipeline.store import Store
from preprocess.files import file_sha256

PICTURE_PX = 224
SOUND_S = 10.0
_BATCH = 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Report = Callable[[int], None]


def embeddings(
    store: Store, kind: str, encoder: str, weights: Path | None, rate_hz: int, device: torch.device, report: Report
) -> tuple[np.ndarray, dict[str, Any]]:
    """`(n, d)` float32, a row for each clip of the store, and what `neighbours.json` says of the encoder.

    kind: "image" or "audio". encoder: a file of embeddings (`.npy`, a row a clip in the order of the sorted clip ids),
    TorchScript file (`.pt`, `.pth`, `.ts`; it is code, so trust it), or a name with a file of weights: a classifier
    of torchvision without its last linear layer, or a pipeline of torchaudio such as WAV2VEC2_BASE, averaged over time.
    Pictures come as (B, 3, 224, 224) with ImageNet's mean and deviation, sounds as (B, n) in [-1, 1]: the middle 10 s
    at `rate_hz` or the pipeline's own rate; a shorter one is repeated. report: called with so many clips done.
    Raises: UserError if the encoder or its weights are not there or do not fit.
    """
    path = Path(encoder)
    if path.suffix == ".npy":
        return _ready(store, path), {"encoder": "embeddings", "file": path.name, "sha256": file_sha256(path)}
    if path.suffix in (".pt", ".pth", ".ts"):
        model, said = _scripted(path), {"encoder": "torchscript", "file": path.name, "sha256": file_sha256(path)}
    else:
        if weights is None:
            raise UserError(
                f"{kind} encoder {encoder} needs weights: nothing is downloaded. Name their file with --{kind}-weights"
            )
        if kind == "image":
            model = _classifier(encoder, weights)
        else:
            model, rate_hz = _pipeline(encoder, weights)
        said = {"encoder": encoder, "file": weights.name, "sha256": file_sha256(weights)}
    model = model.eval().to(device)
    batches = _pictures(store) if kind == "image" else _sounds(store, rate_hz)
    rows: list[np.ndarray] = []
    with torch.inference_mode():
        for batch in batches:
            try:
                found = model(batch.to(device))
            except (RuntimeError, TypeError, ValueError) as error:
                raise UserError(f"{kind} encoder {encoder} fails on {tuple(batch.shape)}: {error}") from error
            if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(batch):
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(f"{kind} encoder {encoder} must give a vector a clip, (B, d); it gives {shape}")
            rows.append(found.float().cpu().numpy())
            report(len(batch))
    return np.concatenate(rows), said


def _ready(store: Store, path: Path) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read embeddings from {path}: {error}") from error
    if rows.ndim != 2 or len(rows) != len(store) or rows.dtype.kind != "f":
        raise UserError(
            f"{path} must hold a row of floats for each of the {len(store)} clips of {store.path}, in the order of "
            f"their sorted ids; it holds {rows.dtype} {rows.shape}"
        )
    order = np.argsort(np.array(store.index["clip_id"]), kind="stable")
    found = np.empty(rows.shape, np.float32)
    found[order] = rows
    return found


def _scripted(path: Path) -> nn.Module:
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # torch prefers export; such files are there all the same
            return torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is no TorchScript file ({str(error).splitlines()[0]}). A state dict is given as weights: "
            "--image resnet18 --image-weights FILE"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no file of tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is no state dict: a mapping from names to tensors was expected")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], name: str, weights: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {name}: {' '.join(str(error).split())[:300]}") from error


def _classifier(name: str, weights: Path) -> nn.Module:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no classifier '{name}'; `torchvision.models.list_models()` lists them")
    model = torchvision.models.get_model(name, weights=None)
    last = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, leaf = last.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    # Whatever classes the weights were trained for, the layer that tells them is not used.
    state = {key: value for key, value in _tensors(weights).items() if not key.startswith(f"{last}.")}
    _load(model, state, name, weights)
    return model


class _Mean(nn.Module):
    """The last layer of a speech model, averaged over time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sound: Tensor) -> Tensor:
        features, _ = self.model.extract_features(sound)  # type: ignore[operator]
        return features[-1].mean(1)


def _pipeline(name: str, weights: Path) -> tuple[nn.Module, int]:
    bundle = getattr(torchaudio.pipelines, name, None)
    if not isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle):
        known = [key for key, value in vars(torchaudio.pipelines).items() if _plain_bundle(value)]
        raise UserError(f"torchaudio has no such pipeline '{name}'; there are: {', '.join(sorted(known))}")
    if not weights.is_file():
        raise UserError(f"no file {weights}")
    try:
        # A file that is there is not downloaded.
        where = {
            "model_dir": str(weights.parent),
            "file_name": weights.name,
            "weights_only": True,
            "map_location": "cpu",
        }
        model = bundle.get_model(dl_kwargs=where)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{weights} does not fit {name}: {' '.join(str(error).split())[:300]}") from error
    return _Mean(model), int(bundle.sample_rate)


def _plain_bundle(value: Any) -> bool:
    return isinstance(value, torchaudio.pipelines.Wav2Vec2Bundle)


def _pictures(store: Store) -> Iterator[Tensor]:
    """Batches of (B, 3, 224, 224): the middle square of the picture at the annotated instant."""
    mean, std = torch.tensor(_MEAN).view(3, 1, 1), torch.tensor(_STD).view(3, 1, 1)
    waiting: list[Tensor] = []
    for number in range(len(store)):
        instant_s = store.index["annotated_s"][number] or 0.0
        times_s = [time_s for time_s, _, _ in store.index["frames"][number]]
        if not times_s:
            raise UserError(f"clip {store.index['clip_id'][number]} of {store.path} has no picture")
        nearest = min(range(len(times_s)), key=lambda place: abs(times_s[place] - instant_s))
        view = store.view(number)
        pixels = view.get(f"raw/{nearest}")
        if pixels is None:
            decoded = cv2.imdecode(view.blob(f"frames/{nearest}"), cv2.IMREAD_COLOR_RGB)
            if decoded is None:
                raise UserError(f"a picture of {store.index['clip_id'][number]} in {store.path} cannot be decoded")
            pixels = decoded
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        square = cv2.resize(
            pixels[top : top + side, left : left + side], (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA
        )
        waiting.append((torch.from_numpy(square).permute(2, 0, 1).float() / 255 - mean) / std)
        if len(waiting) == _BATCH or number == len(store) - 1:
            yield torch.stack(waiting)
            waiting = []


def _sounds(store: Store, rate_hz: int) -> Iterator[Tensor]:
    """Batches of (B, n): the middle 10 s of the waveform."""
    samples = round(SOUND_S * rate_hz)
    waiting: list[Tensor] = []
    for number in range(len(store)):
        own_hz = store.index["sample_rate_hz"][number]
        if not store.index["waveform_samples"][number]:
            raise UserError(
                f"clip {store.index['clip_id'][number]} of {store.path} has no waveform for the audio encoder"
            )
        stored = torch.from_numpy(store.view(number).blob("waveform").astype(np.float32)) / 32767
        sound = lengthen(resample(stored, own_hz, rate_hz), samples, "tile")
        start = (len(sound) - samples) // 2
        waiting.append(sound[start : start + samples])
        if len(waiting) == _BATCH or number == len(store) - 1:
            yield torch.stack(waiting)
            waiting = []
