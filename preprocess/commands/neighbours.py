"""`python -m preprocess neighbours STORE`: the nearest clips of every clip, by picture and by sound."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from configs.errors import UserError
from pipeline.store import Store

_HELP = """encoders, for --image and --audio:
  FILE.npy         embeddings of your own: a row a clip, in the order of the sorted clip ids
  FILE.pt          TorchScript: pictures (B, 3, 224, 224) or sounds (B, n) in, (B, d) out; it is code, so trust it
  NAME             with --image-weights: a classifier of torchvision without its last layer, such as resnet18
                   with --audio-weights: a pipeline of torchaudio, such as WAV2VEC2_BASE
Nothing is downloaded."""


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser(
        "neighbours",
        help="find the nearest clips of every clip, for methods that learn from them (SSL-Align)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_HELP,
    )
    command.set_defaults(run=_neighbours)
    command.add_argument("store", metavar="STORE", type=Path)
    for kind in ("image", "audio"):
        command.add_argument(f"--{kind}", metavar="ENCODER", required=True)
        command.add_argument(f"--{kind}-weights", metavar="FILE", type=Path)
    command.add_argument(
        "--audio-rate", metavar="HZ", type=int, default=16000, help="of a TorchScript encoder's sounds"
    )
    command.add_argument("--k", type=int, default=128, help="neighbours a clip; default 128")
    command.add_argument("--device", default="cpu", help="cpu (default), or cuda")


def _neighbours(options: argparse.Namespace, rest: list[str]) -> int:
    # Here, because `preprocess --help` needs neither torch nor torchvision.
    import torch

    from preprocess.embed import embeddings
    from preprocess.neighbours import neighbours, write_neighbours

    if options.k < 1:
        raise UserError(f"--k must be at least 1, found {options.k}")
    if options.audio_rate < 1000 or options.audio_rate % 25:
        raise UserError(f"--audio-rate is in Hz, at least 1000 and a multiple of 25; found {options.audio_rate}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    device = torch.device(options.device)
    console = Console()
    tables, encoders = {}, {}
    with Store(options.store) as store:
        for kind in ("image", "audio"):
            with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
                task = bar.add_task(kind, total=len(store))
                vectors, encoders[kind] = embeddings(
                    store,
                    kind,
                    getattr(options, kind),
                    getattr(options, f"{kind}_weights"),
                    options.audio_rate,
                    device,
                    lambda done, bar=bar, task=task: bar.advance(task, done),
                )
            encoders[kind]["dimensions"] = vectors.shape[1]
            tables[kind] = neighbours(vectors, store, options.k, device)
        folder = write_neighbours(store, tables, options.k, encoders)
        for kind, table in tables.items():
            counts = (table >= 0).sum(1)
            few = int((counts < options.k).sum())
            short = f"; {few} clips have fewer, {counts.min()} at least" if few else ""
            console.print(f"{kind}: {options.k} neighbours of {len(store)} clips{short}", soft_wrap=True)
    console.print(f"wrote {folder}", soft_wrap=True)
    return 0
