"""Everything a run needs to go on, or a checkpoint needs to be scored, in one file of tensors and plain values."""

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError
from configs.load import as_mapping, check, refuse_other_config
from configs.schema import RunConfig
from model.distributed import Ranks
from model.weights import read_tensors

FORMAT = "whence-checkpoint"
VERSION = 2
BEST = "best.pt"
FREE_ON_RESUME = (
    *("out", "evaluate", "data.loader", "data.store", "train.device", "train.max_steps", "train.cpu_threads"),
    *("train.log_every_steps", "train.keep_checkpoints", "train.checkpoint_every_steps", "data.batch_size"),
    *("train.boards", "data.warm_up", "train.compile", "train.cuda_graphs", "train.fused_pairs"),
)
"""What may differ when a run goes on. Another loader, store, device, compiler, or number of threads or processes feeds
the same clips with the same draws and moves the weights by rounding only; another training list or step size is
refused."""
_NAME = re.compile(r"step-(\d{8})\.pt")


@dataclass(kw_only=True)
class Checkpoint:
    """model: the state dict to score, averaged if the run averages its weights; trained: then the one that training
    goes on with, else empty. optimizer: its state dict. step: optimizer steps done. loader: its `state_dict()`. rng:
    torch's generators.

    record: what the run knew of itself (versions, lists' hashes, selection rule, `finished`). history: one entry an
    epoch, as in the log.
    """

    config: RunConfig
    model: dict[str, Any]
    optimizer: dict[str, Any]
    step: int
    loader: dict[str, Any]
    rng: dict[str, Any]
    record: dict[str, Any]
    history: list[dict[str, Any]]
    trained: dict[str, Any] = field(default_factory=dict)


def capture_rng(ranks: Ranks | None = None) -> dict[str, list[torch.Tensor]]:
    """The state of torch's generators on every rank. Dropout draws from them; data needs none (`pipeline.sampler`)."""
    each = ranks.each if ranks else lambda state: [state]
    cuda = each(torch.cuda.get_rng_state()) if torch.cuda.is_available() else []
    return {"cpu": each(torch.get_rng_state()), "cuda": cuda}


def restore_rng(state: dict[str, list[torch.Tensor]], ranks: Ranks | None = None) -> None:
    """Set torch's generators to what was captured on this rank; a rank that was not there keeps its own."""
    rank = ranks.rank if ranks else 0
    if rank < len(state["cpu"]):
        torch.set_rng_state(state["cpu"][rank])
    if rank < len(state["cuda"]) and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][rank])


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to disk and rename it: all or nothing.

    Raises: UserError if the disk is full or the folder is not writable; what stood at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int, *, best: str | None = None) -> Path:
    """Write `folder/step-<step>.pt` and remove all but the newest `keep`.

    best: how it was chosen, for every report of it, if it is also to become `folder/best.pt`; that one is written
    first, so that a run that is killed in between goes on before its scoring.
    Raises: UserError as `write_atomically`, and if a weight is NaN or infinite.
    """
    if best:
        _write(folder / BEST, replace(checkpoint, record=checkpoint.record | {"selection": best}))
    path = _write(folder / f"step-{checkpoint.step:08d}.pt", checkpoint)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _write(path: Path, checkpoint: Checkpoint) -> Path:
    for state in filter(None, (checkpoint.model, checkpoint.trained)):
        _refuse_not_finite(state, checkpoint.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {**vars(checkpoint), "config": as_mapping(checkpoint.config), "format": FORMAT, "version": VERSION}
    write_atomically(path, lambda file: torch.save(values, file))
    return path


def _refuse_not_finite(state: dict[str, Any], step: int) -> None:
    """Raises: UserError naming the tensors of a state dict that hold NaN or infinity. One wait for the device."""
    names = [name for name, value in state.items() if torch.is_tensor(value) and value.is_floating_point()]
    finite = torch.stack([state[name].isfinite().all() for name in names]).cpu()
    if not finite.all():
        broken = [name for name, fine in zip(names, finite.tolist()) if not fine]
        raise UserError(
            f"{len(broken)} of {len(names)} tensors hold NaN or infinity after step {step} ({', '.join(broken[:3])}): "
            "they are not saved. Lower optim.lr, set optim.clip_norm, or go on from the last checkpoint with --resume"
        )


def resumable(folder: Path, config: RunConfig) -> tuple[Checkpoint, Path] | None:
    """The newest checkpoint of a run folder, for a run of this config to go on from; None if there is none.

    Raises: UserError as `load_checkpoint`, if it was made by another config, and if it holds imported weights alone.
    """
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        return None
    checkpoint = load_checkpoint(found[-1])
    if not checkpoint.optimizer:
        raise UserError(
            f"{found[-1]} holds the weights of {checkpoint.record.get('imported_from')}, without the optimizer and the "
            f"place in the data that training goes on from: score it with evaluate.py, or train into another folder "
            "(out=...)"
        )
    refuse_other_config(config, checkpoint.config, free=FREE_ON_RESUME, where=found[-1])
    return checkpoint, found[-1]


def refuse_other_steps(record: dict[str, Any], facts: dict[str, Any], where: str) -> None:
    """Raises: UserError if a run would go on with other clips or flow, or with another number of clips a step."""
    was, now = record["step_clips"], facts["step_clips"]
    if was != now:
        raise UserError(
            f"{where} was trained with {was} clips a step, this run has {now}: give data.batch_size x optim.accumulate "
            "x the number of processes the same product"
        )
    was, now = record.get("train_id_hash"), facts.get("train_id_hash")
    if was != now:
        raise UserError(
            f"{where} was trained on the list {was}, the training split of {facts.get('store')} is the list {now}: a "
            "run goes on with its own clips only"
        )
    refuse_other_flow(record, facts.get("flow"), where, str(facts.get("store")))


def refuse_other_flow(record: dict[str, Any], flow: str | None, where: str, store: str) -> None:
    """flow: how it is coded in the store at hand. Raises: UserError if a run was not trained on that."""
    was = record.get("flow", flow)
    if was != flow:
        raise UserError(
            f"{where} was trained on a store with flow {was or 'none'}, {store} has flow {flow or 'none'}: the same "
            "numbers would mean another motion. Use a store that was packed alike"
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first; unfinished files do not count."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def find_checkpoint(path: Path) -> Path:
    """The file itself, or the newest checkpoint of a run folder. Raises: UserError."""
    if path.is_file():
        return path
    if path.is_dir():
        found = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
        if found:
            return found[-1]
        raise UserError(
            f"no checkpoint in {path}: expected files like checkpoints/step-00000100.pt, written by train.py"
        )
    raise UserError(f"no checkpoint at {path}")


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a file or of a run folder's newest. Raises: UserError if it is missing, foreign or damaged."""
    path = find_checkpoint(path)
    values = read_tensors(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project: it does not say format '{FORMAT}'")
    if values.get("version") != VERSION:
        commit = values["record"].get("commit") if isinstance(values.get("record"), dict) else None
        raise UserError(
            f"{path} is a checkpoint of version {values.get('version')}; this code reads version {VERSION}. Use the "
            f"code that wrote it (commit {commit or 'not recorded'}), or train anew"
        )
    found: dict[str, Any] = {"trained": {}} | values
    del found["format"], found["version"]
    expected = {item.name for item in fields(Checkpoint)}
    if set(found) != expected:
        differing = ", ".join(sorted(expected ^ set(found)))
        raise UserError(f"{path} is a damaged checkpoint: these entries are missing or unknown: {differing}")
    found["config"] = check(RunConfig, found["config"], f"the config inside {path}")
    return Checkpoint(**found)


def restore_model(module: torch.nn.Module, state: dict[str, Any], where: str) -> None:
    """Load a checkpoint's state dict, strictly. Raises: UserError naming the keys that differ."""
    own, given = set(module.state_dict()), set(state)
    if own != given:
        missing, extra = sorted(own - given), sorted(given - own)
        raise UserError(
            f"{where} does not fit this method: {len(missing)} missing ({', '.join(missing[:5])}), "
            f"{len(extra)} unexpected ({', '.join(extra[:5])})"
        )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{where} does not fit this method: {str(error).splitlines()[-1].strip()}") from error


def restore_parts(
    checkpoint: Checkpoint,
    where: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    ranks: Ranks,
) -> None:
    """Bring the parts of a run to where the checkpoint left them. Raises: UserError as `restore_model`."""
    restore_model(model, checkpoint.trained or checkpoint.model, where)
    optimizer.load_state_dict(checkpoint.optimizer)
    loader.load_state_dict(checkpoint.loader)
    restore_rng(checkpoint.rng, ranks)
