"""The README's figure: `python examples/figure.py CHECKPOINT STORE OUT [CLIP_ID ...]`.

A column a clip of the store's split `test`: the frame, the window of sound as a log-spectrogram, and the map over the
frame with its maximum, the edge of what the protocol counts as source, and the annotated box.
"""

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.errors import UserError, run_command
from model.build import build_model, without_initial_weights
from model.checkpoint import load_checkpoint, restore_model
from model.gallery import KeptMaps, build_gallery
from model.scoring import build_scorer
from pipeline.excerpts import Excerpts
from pipeline.loader import build_loader
from pipeline.store import Store


def main(argv: list[str]) -> int:
    if len(argv) < 3:
        raise UserError((__doc__ or "").strip())
    path, store, out, wanted = Path(argv[0]), Path(argv[1]), Path(argv[2]), argv[3:]
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    data = config.data.model_copy(update={"store": store})
    model = build_model(without_initial_weights(config.model)).eval()
    restore_model(model, checkpoint.model, str(path))
    loader = build_loader(data, model.inputs, "test", train=False, seed=config.seed, size_px=224)
    scorer, maps = build_scorer(config.evaluate, blind=False), KeptMaps()
    sounds: dict[str, torch.Tensor] = {}
    try:
        for batch in loader:
            with torch.inference_mode():
                found = model.localize(batch)
            scorer.add(batch.clip_id, batch.valid, found, batch.truth)
            maps.add(batch.clip_id, batch.valid.tolist(), found)
            sounds |= dict(zip(batch.clip_id, batch.spectrogram[:, 0]))
    finally:
        loader.close()
    missing = [name for name in wanted if name not in maps]
    if missing:
        raise UserError(f"{store} has no test clip {', '.join(missing)}; it has {', '.join(sorted(scorer.clip_ids))}")
    chosen = {"": wanted or sorted(scorer.clip_ids)}
    with Store(store) as opened:
        systems = {"map": (maps, scorer.rows())}
        pictures = build_gallery(chosen, scorer.rule, systems, Excerpts(opened, data.image).of)[""]
    draw([(picture, sounds[picture.clip_id]) for picture in pictures], out)
    return 0


def draw(columns: list, out: Path) -> None:
    """Write the figure of (Picture, spectrogram (F, T)) columns."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(
        3,
        len(columns),
        figsize=(2.6 * len(columns), 6.2),
        squeeze=False,
        height_ratios=(1, 0.45, 1),
        layout="constrained",
    )
    for column, (picture, sound) in enumerate(columns):
        axes[0, column].imshow(picture.plain()[:, :, ::-1])
        axes[0, column].set_title(picture.clip_id, fontsize=9)
        axes[1, column].imshow(sound, origin="lower", aspect="auto", cmap="magma")
        axes[2, column].imshow(picture.overlay(picture.layers[0])[:, :, ::-1])
        for axis in axes[:, column]:
            axis.set_xticks([])
            axis.set_yticks([])
    for row, text in enumerate(("frame", "log-mel", "map")):
        axes[row, 0].set_ylabel(text, fontsize=9)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 88} if out.suffix in (".jpg", ".jpeg") else {})


if __name__ == "__main__":
    run_command(main)
