"""The same few batches over and over: what a model could do if loading took no time."""

from typing import Any

import numpy as np
import torch
from pydantic import Field

from configs.schema import ComponentConfig
from pipeline.batch import Batch
from pipeline.loader import PlannedLoader
from pipeline.loaders.reference import ReferenceLoader
from pipeline.sampler import Plan
from pipeline.source import LoaderRequest


class SyntheticLoader(PlannedLoader):
    """Replays tensors without a copy; who writes to a batch finds that in its next turn.

    With a store: its first batches, and as many steps an epoch as its split has. Without: noise.
    """

    class Config(ComponentConfig):
        batches: int = Field(4, ge=1, description="different batches at most")
        steps: int = Field(100, ge=1, description="batches an epoch, if there is no store")

    def __init__(self, config: Config, request: LoaderRequest) -> None:
        if request.data.store is None:
            clips = config.steps * request.batch_size * request.world_size
            plan = Plan(clips, request.batch_size, request.train, request.rank, request.world_size)
            self._kept = [noise(request, index) for index in range(min(config.batches, config.steps))]
        else:
            real = ReferenceLoader(ReferenceLoader.Config(name="reference", workers=1, prefetch=1), request)
            try:
                plan = real.plan
                self._kept = [batch for _, batch in zip(range(config.batches), real)]
            finally:
                real.close()
        self._step = 0
        super().__init__(plan, ahead=1)

    def _begin(self, epoch: int, first: int, steps: int) -> None:
        self._step = first // self.plan.global_batch

    def _next(self) -> Batch:
        self._step += 1
        return self._kept[(self._step - 1) % len(self._kept)]

    def _release(self) -> None:
        self._kept = []

    def describe(self) -> dict[str, Any]:
        return {"loader": "synthetic", "pictures": f"{len(self._kept)} batches over and over", "decodes": "nothing"}


def noise(request: LoaderRequest, index: int) -> Batch:
    """Batch number `index` of random numbers, of the shapes and types of real ones; no truth."""
    random = np.random.default_rng((request.seed, request.rank, index))
    frontend, spec = request.data.audio.frontend, request.spec
    frames = frontend.window_frames(request.data.audio.duration_s)
    count, size_px = request.batch_size, request.size_px

    def picture() -> torch.Tensor:
        return torch.from_numpy(random.integers(0, 256, (count, size_px, size_px, 3), np.uint8)).permute(0, 3, 1, 2)

    def sound() -> torch.Tensor:
        values = random.standard_normal((count, frames, frontend.bins), np.float32)
        return torch.from_numpy(values).transpose(1, 2).unsqueeze(1)

    more = spec.neighbours - 1
    views = (spec.image_views + more, spec.audio_views + more) if request.train else (0, 0)
    motion = random.standard_normal((count, 2, size_px, size_px), np.float32) if "flow" in spec.fields else None
    batch = Batch(
        clip_id=[f"noise-{request.rank}-{index}-{row}" for row in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=picture(),
        spectrogram=sound(),
        flow=None if motion is None else torch.from_numpy(motion),
        more_images=tuple(picture() for _ in range(views[0])),
        more_spectrograms=tuple(sound() for _ in range(views[1])),
    )
    return batch.to(request.device)
