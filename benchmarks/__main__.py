"""Measure this machine on your store: `python -m benchmarks list | NAME | all | gpu [--store STORE] [--out DIR]`.

all: every benchmark; with --quick those with small settings, in under ten minutes. gpu: those that show a GPU, in under
nine. A benchmark is a file here that opens with "Question:", a command one that opens with "No question:".
"""

import argparse
import importlib
import time
from pathlib import Path
from types import ModuleType

from rich.console import Console

from benchmarks.suite import Part, missing, run_suite
from configs.errors import UserError, run_command
from configs.resolve import check_name, names

_SUITES = ("all", "gpu")
_QUICK_S, _GPU_S = 540.0, 480.0
"""Of the ten and nine minutes; the rest is for starting and, as a part may be in the middle of a call, for ending."""
_DEMO = Path("stores/demo")


def main(argv: list[str]) -> int:
    began_s = time.monotonic()
    questions = {name: _first_line(name) for name in names("benchmarks")}
    measuring = [name for name, line in questions.items() if line.startswith("Question:")]
    known = [name for name, line in questions.items() if name in measuring or line.startswith("No question:")]
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="list, all, gpu, or one of: " + ", ".join(known))
    parser.add_argument("--store", type=Path, help="default: stores/demo; for `all` and `gpu` without it one is made")
    parser.add_argument("--rounds", type=int, default=5, help="at least 3; default 5")
    parser.add_argument("--quick", action="store_true", help="with `all`: small settings")
    parser.add_argument("--out", type=Path, help="folder for rows as CSV and JSON lines")
    named = [argument for argument in argv if argument in known]
    own = _options(named[0], parser) if named else []
    parser.add_argument("-h", "--help", action="help")
    arguments = parser.parse_args(argv)
    if arguments.name not in ("list", *_SUITES):
        check_name("benchmark", arguments.name, known)
    if arguments.quick and arguments.name != "all":
        raise UserError(f"--quick goes with `all`, not with {arguments.name}")
    if arguments.name == "list":
        for name in known:
            print(f"{name}\n    {questions[name]}")
    elif arguments.name in _SUITES:
        store = arguments.store or _demo_store()
        kind = "quick" if arguments.quick else arguments.name
        budget_s = {"quick": _QUICK_S, "gpu": _GPU_S}.get(kind)
        if kind == "gpu":
            _check_gpu()
        parts = _parts(measuring, kind)
        left_s = None if budget_s is None else budget_s - (time.monotonic() - began_s)
        run_suite(kind, parts, store, arguments.rounds, arguments.out, left_s)
    else:
        options = {key: getattr(arguments, key) for key in own}
        store = arguments.store or (_DEMO if arguments.name in measuring else None)
        _module(arguments.name).run(store, arguments.rounds, arguments.out, **options)
    return 0


def _parts(known: list[str], kind: str) -> list[Part]:
    """The benchmarks that take part in a suite; prints those that do not, and why."""
    parts: list[Part] = []
    console = Console(soft_wrap=True)
    for name in known:
        try:
            module = _module(name)
        except UserError as error:
            console.print(f"left out: {error}")
            continue
        lacking = missing(getattr(module, "NEEDS", ()))
        options = {} if kind == "all" else getattr(module, kind.upper(), None)
        if options is None:
            console.print(f"left out: {name} has no {kind} form")
        elif lacking:
            console.print(f"left out: {name} needs {', '.join(lacking)}, not installed")
        else:
            parts.append(Part(name=name, options=options))
    return parts


def _demo_store() -> Path | None:
    """The store of `make demo`; None if there is none that this code reads."""
    try:
        from pipeline.store import Store  # here: `list` needs none

        Store(_DEMO).close()
    except UserError:
        return None
    return _DEMO


def _check_gpu() -> None:
    import torch  # here: `list` and --help need none

    if not torch.cuda.is_available():
        raise UserError("`gpu` measures a CUDA GPU, and this machine has none; `all --quick` measures the rest")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (Path(__file__).parents[1] / (error.name or "").partition(".")[0]).exists():
            raise  # a module of ours
        raise UserError(f"{name} needs {error.name}, which is not installed") from error


def _first_line(name: str) -> str:
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return source.removeprefix('"""').partition("\n")[0].removesuffix('"""')


def _options(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Let a benchmark that has an `add_options` add its own; their names."""
    module = _module(name)
    if not hasattr(module, "add_options"):
        return []
    group = parser.add_argument_group(name)
    module.add_options(group)
    return [action.dest for action in group._group_actions]


if __name__ == "__main__":
    run_command(main)
