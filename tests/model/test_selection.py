"""Which epoch is the best one."""

import math

import pytest

from configs.errors import UserError
from configs.load import load_config
from model.selection import Selection

HELD_OUT = "train.selection={by: held_out, share: 0.1, metric: %s}"


def rows(key: str, *values: float) -> list[dict]:
    return [{"epoch": number + 1, key: value} for number, value in enumerate(values)]


def test_the_lowest_loss_is_the_best():
    selection = Selection(load_config(["ez_vsl_realset", HELD_OUT % "loss"]))
    found = [selection.better(row) for row in rows("held_out/loss", math.nan, 3.0, 3.5, 3.0, 2.0)]
    assert found == [False, True, False, False, True]
    assert selection.best == {"value": 2.0, "epoch": 5}
    assert selection.text == "best held_out/loss on 0.1 of the training list, not trained on, epoch 5"


def test_the_highest_score_is_the_best():
    selection = Selection(load_config(["ez_vsl_realset", HELD_OUT % "pointing"]))
    assert [selection.better(row) for row in rows("held_out/pointing", 0.3, 0.3, 0.4)] == [True, False, True]


def test_by_default_there_is_no_best():
    selection = Selection(load_config(["ez_vsl_realset"]))
    assert not selection.better({"epoch": 1, "loss": 1.0})


def test_a_set_that_chooses_is_named():
    options = "train.selection={by: test_set, set: dev, metric: pointing}"
    selection = Selection(load_config(["ez_vsl_realset", options]))
    assert not selection.better({"epoch": 1, "loss": 1.0}), "the sets were not scored after this epoch"
    assert selection.better({"epoch": 2, "dev/pointing": 0.2})
    assert selection.text == "best dev/pointing on a set that is scored (split dev), epoch 2"
    with pytest.raises(UserError, match=r"dev has no such score; it has \['auc'\]"):
        selection.better({"epoch": 3, "dev/auc": 0.2})
