"""What a training step at a large batch must not hold, found without computing it."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from small_methods import build, make_batch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configs.resolve import names
from model.similarity import choose_fused_pairs

CLIPS = 4093  # a prime, so that only what pairs the clips of the batch has a multiple of its square as size
CELLS = 49


class AllPairsMaps(TorchDispatchMode):
    """Notes each tensor with a value for every image, sound and cell, and the operation that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and each.numel() >= CELLS * CLIPS**2 and each.numel() % CLIPS**2 == 0:
                self.met.append((str(func), tuple(each.shape)))
        return found


def grown(value: Any) -> Any:
    """A part of a batch with so many clips, without content."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(grown(each) for each in value)
    if isinstance(value, list):
        return [str(number) for number in range(CLIPS)]
    strides = (value[0].numel(), *value.stride()[1:])
    return torch.empty_strided((CLIPS, *value.shape[1:]), strides, dtype=value.dtype)


def maps_of_a_step(name: str) -> list[tuple[str, tuple[int, ...]]]:
    objective = build(name).train()
    asked = objective.model.inputs
    few = make_batch(2, size=224, views=max(asked.image_views, asked.audio_views) + asked.neighbours)
    # Constants that a method makes for itself are real; all else has sizes only.
    with FakeTensorMode(allow_non_fake_inputs=True) as sizes_only:
        state = {
            key: sizes_only.from_tensor(value)
            for key, value in (*objective.named_parameters(), *objective.named_buffers())
        }
        clips = replace(few, **{item.name: grown(getattr(few, item.name)) for item in fields(few)})
        with AllPairsMaps() as maps:
            functional_call(objective, state, (clips, torch.ones(len(objective.losses)))).total.backward()
    assert any(value.grad is not None for value in state.values())
    return maps.met


@pytest.mark.parametrize("name", names("model.methods"))
def test_a_step_holds_no_map_of_all_pairs(name: str):
    assert maps_of_a_step(name) == []


def test_a_map_of_all_pairs_is_noticed():
    choose_fused_pairs("never", torch.device("cpu"))
    try:
        assert ("aten.mm.default", (CELLS * CLIPS, CLIPS)) in maps_of_a_step("ez_vsl")
    finally:
        choose_fused_pairs("auto", torch.device("cpu"))
