"""Training lists travel with the weights, and what they leak is found."""

import io

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.id_lists import load_list
from model.honesty import TrainingList, pack_ids, unpack_ids


def test_a_list_survives_a_checkpoint_and_is_small():
    names = load_list("vggsound_10k_ezvsl")
    packed = pack_ids(names)
    assert packed.dtype == torch.uint8 and len(packed) < 12 * len(names)
    file = io.BytesIO()
    torch.save({"train_ids": packed}, file)
    file.seek(0)
    assert unpack_ids(torch.load(file, weights_only=True)["train_ids"]) == sorted(names)
    assert unpack_ids(pack_ids([])) == []


def test_a_damaged_list_is_said():
    with pytest.raises(UserError, match="training list inside the checkpoint is damaged"):
        unpack_ids(torch.arange(40, dtype=torch.uint8))


def test_leaks_are_found_by_clip_and_by_recording():
    listed = TrainingList(["abcdefghijk_000010", "-_cdefghijk_30000_40000", "12345678.wav"], "here")
    scored = [
        "abcdefghijk_000010",
        "abcdefghijk_000050",
        "-_cdefghijk_000030",
        "12345678",
        "other_12",
        "zzzzzzzzzzz_000010",
    ]
    leak = listed.leak(scored)
    assert leak.same.tolist() == [True, False, True, True, False, False]
    assert leak.related.tolist() == [True, True, True, True, False, False]
    assert leak.sentence.startswith("3 of 6 clips are in the training list; 4 come from") and "(here)" in leak.sentence
    assert not listed.leak([]).same.any()


@pytest.mark.parametrize(
    ("train", "test", "same"),
    [
        ("vggsound_144k_ezvsl", "vggss_test", 3709),
        ("vggsound_10k_ezvsl", "vggss_test", 238),
        ("flickr_144k_ezvsl", "flickr_test_slavc", 20),
        ("flickr_10k_ezvsl", "flickr_test_slavc", 1),
        ("vggsound_144k_htf", "vggss_test", 0),
        ("vggsound_144k_clean", "vggss_test", 0),
    ],
)
def test_the_leaks_of_the_published_lists(train: str, test: str, same: int):
    leak = TrainingList(load_list(train), train).leak(load_list(test))
    assert leak.same.sum() == same and np.all(leak.related >= leak.same)
