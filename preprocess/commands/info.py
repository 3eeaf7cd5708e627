"""`python -m preprocess info STORE`: what a store holds."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.store import Store, read_manifest


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser("info", help="what a store holds")
    command.set_defaults(run=_info)
    command.add_argument("store", metavar="STORE", type=Path)
    command.add_argument("--json", action="store_true", help="for programs")


def _info(options: argparse.Namespace, rest: list[str]) -> int:
    manifest = read_manifest(options.store)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    if options.json:
        print(json.dumps({**manifest, "path": str(options.store), "bytes": size}, indent=1, ensure_ascii=False))
        return 0
    table = Table(title=f"{options.store}: {manifest['dataset']}", show_header=False)
    table.add_row("clips", f"{manifest['packed']} of {manifest['expected']}")
    refused = ", ".join(f"{reason} {count}" for reason, count in manifest["refused"].items())
    table.add_row("refused", refused or "none")
    for split, said in manifest["splits"].items():
        table.add_row(f"split {split}", f"{said['clips']} of {said['expected']}, ids {said['id_hash']}")
    for item in manifest.get("lists", []):
        counts = ", ".join(f"{item[key]:,} {key}" for key in ("expected", "found", "missing", "duplicates"))
        table.add_row(f"list {item['list']}", f"for split {item['split']}: {counts}; ids {item['id_hash']}")
    for split, tests in manifest.get("leaks", {}).items():
        said = [f"{said['by_id']:,} ({said['by_source']:,}) of {said['of']:,} {test}" for test, said in tests.items()]
        table.add_row(f"leak to {split}", f"by id (by recording): {'; '.join(said)}")
    for split, said in manifest.get("truth", {}).items():
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in said.items() if count)
        table.add_row(f"truth of {split}", counts)
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in manifest.get("left_out", {}).items())
    table.add_row("left out", left_out or "none")
    table.add_row("ids", manifest["id_hash"])
    clip_kib = size / manifest["packed"] / 1024
    table.add_row("size", f"{size / 2**20:.1f} MiB in {len(manifest['shards'])} shards, {clip_kib:.0f} KiB a clip")
    frames = manifest["frames"]
    size_text = f"short side at most {frames['short_side_px']} px, JPEG quality {frames['quality']}"
    size_text += {"jpeg": "", "raw": ", decoded", "both": ", and decoded"}[frames["pixels"]]
    table.add_row("pictures", f"{', '.join(frames['frames'])}; {size_text}")
    flow = manifest["flow"]
    if flow is not None:
        scale = f", {flow['px_per_code']:g} px a code" if flow["encoding"] == "signed" else ""
        with Store(options.store) as store:
            flowing = sum(store.index["flow"])
        table.add_row("flow", f"{flow['encoding']}{scale}; {flowing} of {manifest['packed']} clips have it")
    for name, item in manifest["frontends"].items():
        bins = f"{item['mel_bins']} mel" if item["mel_bins"] else f"{item['n_fft'] // 2 + 1} linear"
        stored = manifest["spectrogram_storage"][name]
        bits = "16 bits" if stored["dtype"] == "float16" else f"8 bits, off by {stored['max_error']:.3g} at most"
        every = f"every {1000 * item['hop'] / item['sample_rate_hz']:.4g} ms"
        table.add_row(f"front-end {name}", f"{bins} bins {every}, {bits}")
    waveform = manifest["waveform"]
    table.add_row("waveform", f"16 bit at {waveform['sample_rate_hz']} Hz" if waveform else "none")
    table.add_row("versions", ", ".join(f"{name} {text}" for name, text in manifest["versions"].items()))
    Console().print(table)
    return 0
