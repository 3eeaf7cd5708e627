"""The log of a run as a picture of curves."""

import json
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_OVER_STEPS = {"loss": "loss", "lr": "learning rate", "clips_per_s": "clips/s", "data_wait_share": "data wait, share"}


def draw_curves(log: Path, out: Path) -> None:
    """Draw `log.jsonl` into a PNG: what is logged at every interval over steps, losses and scores over epochs.

    Scores of one name on several sets, and the loss of training and of held-out clips, share a panel.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for line in lines:
        for key, value in line.items():
            if line["kind"] == "train" and key in _OVER_STEPS:
                panel, name, x = f"{_OVER_STEPS[key]} over steps", "", line["step"]
            elif line["kind"] == "epoch" and key not in ("kind", "step", "epoch"):
                where, _, metric = key.rpartition("/")
                panel, name, x = f"{metric} over epochs", where or "train", line["epoch"]
            else:
                continue
            xs, ys = panels[panel][name]
            xs.append(x)
            ys.append(value)
    columns = 3
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows))
    for number, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for name, (xs, ys) in curves.items():
            axes.plot(xs, ys, marker="." if len(xs) < 50 else "", label=name)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if any(curves):
            axes.legend(fontsize=7, loc="upper left")  # to search for the best place takes long, and then warns
    figure.subplots_adjust(0.05, 0.06, 0.99, 0.95, wspace=0.25, hspace=0.45)
    figure.savefig(out, dpi=110)
