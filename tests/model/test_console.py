"""Tables in a terminal: what does not fit is named, not cut."""

import io
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from configs.load import check
from configs.schema import EvaluateConfig
from model.base import Localization
from model.console import print_result
from model.results import SetResult
from model.scoring import build_scoreboard
from pipeline.batch import Truth

MANY = {"ciou": {}, "pointing": {}, "ciou_adaptive": {}, "detection": {}, "miou": {}}


@pytest.mark.parametrize("width", [60, 80, 160, 400])
@pytest.mark.parametrize("metrics", [{"ciou": {}}, MANY])
def test_numbers_of_all_protocols_are_shown_whole(width: int, metrics: dict[str, dict]):
    config = check(EvaluateConfig, {"metrics": metrics, "bootstrap": 2}, "test")
    board = build_scoreboard(config, protocols=["fnac", "fnac_bicubic", "ssl_align"])
    maps = torch.rand(5, 7, 7, generator=torch.Generator().manual_seed(0))
    truths = [Truth(boxes=np.array([[0.1, 0.1, 0.6, 0.7, 0]])) for _ in maps]
    board.add_maps(list("abcde"), torch.ones(5, dtype=torch.bool), Localization(map=maps, bounds=(0, 1)), truths)
    tables = list(board.tables(id_hash=lambda ids: "none").values())
    console = Console(width=width, highlight=False, file=io.StringIO())
    print_result(console, "test", SetResult(of="test", about="", tables=tables, leak=None))
    shown = console.file.getvalue().partition("other ways")[2]  # type: ignore[attr-defined]
    for name in ("ez_vsl", "fnac", "fnac_bicubic", "ssl_align"):
        (line,) = re.findall(rf"^ *{name} +(.*)$", shown, re.MULTILINE)
        assert re.match(r"\d\.\d{4} ", line), line
    assert "…" not in shown
    scores = list(tables[0].scores)
    named = re.search(r"and, in the report: (.*)", shown)
    left = named[1].split(", ") if named else []
    assert left == scores[len(scores) - len(left) :] and len(left) < len(scores) and (width < 400 or not left)
