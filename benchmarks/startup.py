"""Question: how long from the command to the first training step, and what takes the time?

Method: train.py's own parts in a new process each time, from its start to the end of its first step: imports; building
the model, opening the store and building the loader; the first batch; the first step; and a second step beside it. One
run goes before, so that files are in the page cache. With --compile (on a GPU always) also compiled: cold, with an
empty cache of compiled graphs, and warm, with that of the run before. The CPU time of the first batch is counted with
that of the first step.
A good answer: 60 s on a GPU with a cold cache, 10 s with a warm one; without compiling, imports the longest stage.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.end_to_end import training_config
from benchmarks.first_step import figures_of, timed_run
from benchmarks.harness import MIN_ROUNDS, report, time_left_s
from benchmarks.options import chosen_device, device_option
from configs.errors import UserError
from configs.load import as_yaml

QUICK: dict[str, Any] = {"batch": 2, "device": "cpu"}
GPU: dict[str, Any] = {"device": "cuda"}
NEEDS = ("lmdb", "msgpack")


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--method", default="ez_vsl", help="of the preset METHOD_vggsound144k; default ez_vsl")
    parser.add_argument("--batch", type=int, help="clips; default: 128 on a GPU, 16 on a CPU")
    device_option(parser)
    parser.add_argument("--compile", action="store_true", help="compiled too on a CPU, which takes minutes")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    method: str = "ez_vsl",
    batch: int | None = None,
    device: str = "auto",
    compile: bool = False,
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    if rounds < MIN_ROUNDS:
        raise UserError(f"{rounds} rounds give no spread; use --rounds {MIN_ROUNDS} or more")
    place = chosen_device(device)
    with tempfile.TemporaryDirectory(prefix="whence-startup-") as work:
        folder = Path(work)
        config = training_config(method, store.resolve(), folder / "run", place, batch, 1, [])
        (folder / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
        started = 0

        def start(compiled: bool, cache: Path) -> dict[str, tuple[float, float]]:
            nonlocal started
            started += 1
            given = [str(folder / "config.yaml"), f"out={folder / f'run{started}'}", f"train.compile={compiled}"]
            return timed_run(given, {"TORCHINDUCTOR_CACHE_DIR": str(cache)})

        kinds: dict[str, Callable[[int], Any]] = {"eager": lambda turn: start(False, folder / "unused")}
        if compile or place.type == "cuda":
            kinds["compiled, cold"] = lambda turn: start(True, folder / f"cache{turn}")
            kinds["compiled, warm"] = lambda turn: start(True, folder / f"cache{turn}")
        start(False, folder / "unused")
        taken: dict[str, list[Any]] = {kind: [] for kind in kinds}
        for turn in range(rounds):
            if turn >= MIN_ROUNDS and time_left_s() < 0:
                break
            for kind, begin in kinds.items():
                taken[kind].append(begin(turn))
    figures = [figure for kind, runs in taken.items() for figure in figures_of("startup", kind, runs)]
    facts = {"method": method, "batch": config.data.batch_size, "device": place.type}
    report(figures, None, out, facts | {"torch_threads": torch.get_num_threads()})
    for kind in taken:
        stages = [figure for figure in figures if figure.variant.startswith(f"{kind}: ")]
        whole, longest = stages[0], max(stages[1:-1], key=lambda figure: figure.value)
        name = longest.variant.removeprefix(f"{kind}: ")
        Console().print(
            f"{kind}: {whole.value:.1f} s to the first step, of which {name} {longest.value:.1f} s", soft_wrap=True
        )
