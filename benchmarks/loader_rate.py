"""Question: what does a training batch cost on this machine, from this store, and how far is that from the floor?

Method: every loader delivers the same clips with the same draws (random resized crop, flip; uint8 out) from a warm page
cache, on one thread each. The floor is the bare JPEG decode of the same pictures in the same run.
A good answer: the reference loader within 1.5 times the bare decode, DALI on the CPU within 3 times.
"""

from pathlib import Path

import cv2

from benchmarks.harness import measure, report
from configs.errors import UserError
from configs.load import check
from configs.schema import DataConfig
from pipeline.batch import InputSpec
from pipeline.loader import build_loader
from pipeline.store import Store

LOADERS = {"dali": {"threads": 1}, "reference": {"workers": 1}, "synthetic": {}}


def run(store: Path, rounds: int, out: Path | None) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    with Store(store) as opened:
        if not opened.manifest["frontends"]:
            raise UserError(f"{store} holds no spectrogram; pack one with --frontend NAME")
        frontend = opened.manifest["frontends"][sorted(opened.manifest["frontends"])[0]]
        split = "train" if "train" in opened.splits else opened.splits[0]
        numbers = opened.select(split)
        jpegs = [opened.view(int(number)).blob("frames/0") for number in numbers]
        batch_size = min(64, len(numbers))
        batches = max(1, 256 // batch_size)
        loaders = {
            name: build_loader(
                check(
                    DataConfig,
                    {
                        "store": str(store),
                        "batch_size": batch_size,
                        "audio": {"frontend": frontend},
                        "augment": {"random_resized_crop": {}, "flip": {}},
                        "loader": {"name": name, **options},
                    },
                    "loader_rate",
                ),
                InputSpec(),
                split,
                train=True,
            )
            for name, options in LOADERS.items()
        }
        try:
            variants = {name: _endless(loader, batches) for name, loader in loaders.items()}

            def decode() -> int:
                for index in range(batches * batch_size):
                    cv2.imdecode(jpegs[index % len(jpegs)], cv2.IMREAD_COLOR)
                return batches * batch_size

            cv2.setNumThreads(1)
            figures = measure("loader_rate", {"bare decode": decode, **variants}, rounds, {"bare decode": "the floor"})
        finally:
            for loader in loaders.values():
                loader.close()
        facts = {
            "clips": len(numbers),
            "kB a picture": round(sum(map(len, jpegs)) / len(jpegs) / 1000, 1),
            "batch": batch_size,
            "size_px": 224,
            "frontend": frontend["name"],
        }
    report(figures, "bare decode", out, facts)


def _endless(loader, batches: int):
    """A variant that takes so many batches at a call, across epochs."""

    def stream():
        epoch = 0
        while True:
            yield from loader
            epoch += 1
            loader.set_epoch(epoch)

    iterator = stream()

    def take() -> int:
        return sum(len(next(iterator).clip_id) for _ in range(batches))

    return take
