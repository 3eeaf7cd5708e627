"""The README's figure, and the gallery: what models say of the clips of a store.

    python examples/figure.py STORE OUT CHECKPOINT [CHECKPOINT ...] [--clips ID,ID,...]

OUT with a suffix is one picture with a column a clip; without, a folder that gets a picture a clip. After the frame
with its annotated boxes come the sound as a log-spectrogram, as the first checkpoint hears it, and the map of each
checkpoint over the frame, with its maximum and the edge of what the first checkpoint's protocol counts as source.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.errors import UserError, run_command
from configs.schema import RunConfig
from model.build import restored_model
from model.checkpoint import find_checkpoint, load_checkpoint
from model.gallery import KeptMaps, Picture, build_gallery, safe_name
from model.scoring import build_scorer
from pipeline.excerpts import Excerpts
from pipeline.loader import build_loader
from pipeline.store import Store

SUFFIXES = (".jpg", ".jpeg", ".png")
LEAST_PX = 224
"""Sides of the pictures that a model gets, if it was not trained on larger ones: small ones make coarse maps."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "examples/figure.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("store", metavar="STORE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", type=Path, help="a file or a run folder")
    parser.add_argument("--clips", help="ids with commas; default: all clips of the store")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    if out.suffix and out.suffix not in SUFFIXES:
        raise UserError(f"{out} is neither a folder nor a picture: end it with {', '.join(SUFFIXES)}, or with nothing")
    with Store(arguments.store) as store:
        clip_ids = chosen(store, arguments.clips)
        labels, pictures, sounds = picture_clips(store, clip_ids, arguments.checkpoints)
    try:
        if out.suffix:
            out.parent.mkdir(parents=True, exist_ok=True)
            draw(pictures, sounds, labels, upright=True).savefig(out, dpi=100, pil_kwargs=saving(out))
        else:
            out.mkdir(parents=True, exist_ok=True)
            for picture in pictures:
                path = out / f"{safe_name(picture.clip_id)}.jpg"
                draw([picture], sounds, labels, upright=False).savefig(path, dpi=100, pil_kwargs=saving(path))
    except OSError as error:
        raise UserError(f"cannot write the figure to {out}: {error.strerror or error}") from error
    return 0


def chosen(store: Store, wanted: str | None) -> list[str]:
    """The ids to show: those named, in their order, or all. Raises: UserError if the store lacks one."""
    stored = sorted(store.index["clip_id"])
    clip_ids = wanted.split(",") if wanted else stored
    missing = [clip_id for clip_id in clip_ids if clip_id not in stored]
    if missing:
        raise UserError(f"{store.path} has no clip {', '.join(missing)}; it has {', '.join(stored)}")
    return clip_ids


def picture_clips(
    store: Store, clip_ids: Sequence[str], checkpoints: Sequence[Path]
) -> tuple[list[str], list[Picture], dict[str, Tensor]]:
    """A label a checkpoint, a picture a clip with a layer a checkpoint, and clip id -> spectrogram (F, T) as the first
    checkpoint hears it. Raises: UserError if a checkpoint or the store is not fit.
    """
    labels, systems, configs, sounds = [], {}, [], {}
    for number, path in enumerate(checkpoints):
        label, config, maps, heard = localize(path, store, clip_ids)
        labels.append(label)
        configs.append(config)
        systems[str(number)] = (maps, {"clip_id": np.array(clip_ids)})
        sounds = sounds or heard
    rule = build_scorer(configs[0].evaluate, blind=False).protocol
    gallery = build_gallery({"": clip_ids}, rule, systems, Excerpts(store, configs[0].data.image).of)
    return labels, gallery[""], sounds


def localize(path: Path, store: Store, clip_ids: Sequence[str]) -> tuple[str, RunConfig, KeptMaps, dict[str, Tensor]]:
    """What the checkpoint is, its config, and the maps and the spectrograms that it hears of all the clips' splits."""
    found = find_checkpoint(path)
    checkpoint = load_checkpoint(found)
    config = checkpoint.config
    model = restored_model(config.model, checkpoint, found).eval()
    maps, sounds = KeptMaps(), {}
    data = config.data.model_copy(update={"store": store.path})
    split_of = dict(zip(store.index["clip_id"], store.index["split"]))
    for split in sorted({split_of[clip_id] for clip_id in clip_ids}):
        size_px = max(LEAST_PX, data.image.size_px)
        loader = build_loader(data, model.inputs, split, train=False, seed=config.seed, size_px=size_px)
        try:
            for batch in loader:
                with torch.inference_mode():
                    maps.add(batch.clip_id, batch.valid.tolist(), model.localize(batch))
                sounds |= dict(zip(batch.clip_id, batch.spectrogram[:, 0]))
        finally:
            loader.close()
    age = f"epoch {len(checkpoint.history)}" if checkpoint.history else f"step {checkpoint.step}"
    return f"{config.model.name}, {age}", config, maps, sounds


def draw(pictures: Sequence[Picture], sounds: dict[str, Tensor], labels: Sequence[str], *, upright: bool) -> Figure:
    """Frame, sound and maps of each clip, one below the other (upright) or side by side."""
    titles = ["frame", "log-mel" if next(iter(sounds.values())).shape[0] <= 128 else "log-spectrogram", *labels]
    shares, longest = [1, 0.5, *(1 for _ in labels)], max(1, len(pictures))
    if upright:
        figure = Figure(figsize=(2.6 * longest, 1.6 * sum(shares)), layout="constrained")
        axes = figure.subplots(len(titles), longest, squeeze=False, height_ratios=shares)
    else:
        figure = Figure(figsize=(2.9 * sum(shares), 2.1 * longest), layout="constrained")
        axes = figure.subplots(longest, len(titles), squeeze=False, width_ratios=shares).T
    for column, picture in enumerate(pictures):
        places = axes[:, column]
        places[0].imshow(picture.plain()[:, :, ::-1])
        places[1].imshow(sounds[picture.clip_id].numpy(), origin="lower", aspect="auto", cmap="magma")
        for place, layer in zip(places[2:], picture.layers):
            place.imshow(picture.overlay(layer)[:, :, ::-1])
        (places[0].set_title if upright else places[0].set_ylabel)(picture.clip_id, fontsize=9)
        for place in places:
            place.set_xticks([])
            place.set_yticks([])
    for place, title in zip(axes[:, 0], titles):
        (place.set_ylabel if upright else place.set_title)(title, fontsize=9)
    return figure


def saving(path: Path) -> dict[str, int]:
    """Options of Pillow for a picture of this kind."""
    return {} if path.suffix == ".png" else {"quality": 86}


if __name__ == "__main__":
    run_command(main)
