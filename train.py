"""Train any method on any store: `python train.py CONFIG [key=value ...] [--resume]`; on N GPUs of a machine
`torchrun --nproc-per-node N train.py ...`.

The loop: build, restore, step, log, evaluate, save. It names no method, data set, loss or metric.
"""

import math
import signal
import sys
from typing import Any

import torch
from rich.console import Console

from configs.errors import UserError, run_command
from configs.load import load_config, refuse_other_config
from configs.run_record import Clock, RunRecord, environment, history_table
from configs.schema import RunConfig
from evaluate import ScoringStopped, autocast, choose_device, evaluate_sets
from model.allocator import keep_freed_memory
from model.base import Progress
from model.build import build_objective, without_initial_weights
from model.checkpoint import (
    Checkpoint,
    capture_rng,
    list_checkpoints,
    load_checkpoint,
    refuse_other_steps,
    restore_parts,
    save_checkpoint,
)
from model.distributed import Ranks, keep_negatives_apart, with_synced_batchnorm
from model.honesty import TRAIN_IDS, pack_ids
from model.optim import build_optimizer, learning_rate, set_learning_rate
from model.running_loss import RunningLoss
from pipeline.loader import Loader, build_loader
from pipeline.store import training_list

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)  # a log file has no width of its own

FREE_ON_RESUME = (
    *("out", "evaluate", "data.loader", "data.store", "train.device", "train.max_steps", "train.cpu_threads"),
    *("train.log_every_steps", "train.keep_checkpoints", "train.checkpoint_every_steps", "data.batch_size"),
)
"""What may differ when a run goes on. Another loader, store, device, or number of threads or processes feeds the same
clips with the same draws and moves the weights by rounding only; another training list or step size is refused."""


def main(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(__doc__)
        return 0
    resume = "--resume" in argv
    config = load_config([argument for argument in argv if argument != "--resume"])
    device = choose_device(config)
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.cpu_threads:
        torch.set_num_threads(config.train.cpu_threads)
    ranks = Ranks(device)
    console.quiet = not ranks.main
    keep_negatives_apart(config.train.negatives == "shard")
    try:
        with Training(config, device, ranks, resume=resume) as training:
            return training.run()
    finally:
        ranks.leave()


class Training:
    """One run: what it is made of, and where it stands."""

    def __init__(self, config: RunConfig, device: torch.device, ranks: Ranks, *, resume: bool) -> None:
        assert config.out is not None
        self.config, self.device, self.ranks, self.resume = config, device, ranks, resume
        torch.manual_seed(config.seed)
        found = list_checkpoints(config.out / "checkpoints") if resume else []
        checkpoint = load_checkpoint(found[-1]) if found else None
        if checkpoint:
            refuse_other_config(config, checkpoint.config, free=FREE_ON_RESUME, where=found[-1])
        self.objective = build_objective(without_initial_weights(config.model) if checkpoint else config.model)
        self.model = self.objective.model
        if ranks.rank:  # the weights are drawn; dropout must differ from rank to rank
            torch.manual_seed(config.seed ^ (ranks.rank << 48))
        self.loader: Loader = build_loader(
            config.data, self.model.inputs, config.data.train_split,
            train=True, seed=config.seed, rank=ranks.rank, world_size=ranks.size, device=device,
        )  # fmt: skip
        try:
            self.set_up(checkpoint, str(found[-1]) if found else "")
        except BaseException:
            self.loader.close()
            raise

    def set_up(self, checkpoint: Checkpoint | None, where: str) -> None:
        """Everything that needs the loader. Raises: UserError."""
        config, device = self.config, self.device
        self.steps_per_epoch = len(self.loader) // config.optim.accumulate
        if self.steps_per_epoch < 1:
            raise UserError(
                f"split '{config.data.train_split}' of {config.data.store} has too few clips for one step of "
                f"{config.data.batch_size} x {config.optim.accumulate} clips; lower data.batch_size"
            )
        self.step_clips = config.data.batch_size * config.optim.accumulate * self.ranks.size
        self.total_steps = config.train.epochs * self.steps_per_epoch
        self.last_step = min(self.total_steps, config.train.max_steps or sys.maxsize)
        self.objective.to(device)
        if config.train.sync_batchnorm:
            with_synced_batchnorm(self.objective, device)
        if config.train.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(config.optim, self.model.param_groups(), device)
        objective: Any = torch.compile(self.objective, fullgraph=True) if config.train.compile else self.objective
        self.forward = self.ranks.wrap(objective)
        self.step, self.history = 0, []
        self.loss = RunningLoss(self.ranks.mean)
        self.unscored: dict[str, Any] | None = None  # row of an epoch whose scores are still to come
        list_facts, train_ids = training_list(config.data.store, config.data.train_split)
        self.facts = environment() | list_facts | {"ranks": self.ranks.size, "step_clips": self.step_clips}
        self.packed_ids = pack_ids(train_ids)
        if checkpoint:
            self.restore(checkpoint, where)
        self.record = RunRecord(config, self.facts, resume=self.resume, step=self.step, writes=self.ranks.main)
        self.stop_signal: int | None = None

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        refuse_other_steps(checkpoint.record, self.facts, where)
        restore_parts(checkpoint, where, self.model, self.optimizer, self.loader, self.ranks)
        self.step, self.history = checkpoint.step, checkpoint.history
        self.loss.epoch = list(checkpoint.record["epoch_loss"])
        self.unscored = checkpoint.record["unscored"]
        if self.unscored and self.history and self.history[-1]["step"] == self.step:
            self.unscored = self.history[-1]

    def __enter__(self) -> "Training":
        self.heard = {number: signal.signal(number, self.ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.heard.items():
            signal.signal(number, handler)
        self.loader.close()
        self.record.close()

    def ask_to_stop(self, number: int, frame: object) -> None:
        if self.stop_signal is not None:
            raise KeyboardInterrupt  # asked twice: leave at once
        self.stop_signal = number

    def stopping(self) -> bool:
        """Whether a rank was asked to stop; then all of them do after the same step."""
        if self.ranks.any(self.stop_signal is not None) and self.stop_signal is None:
            self.stop_signal = signal.SIGTERM
        return self.stop_signal is not None

    @property
    def progress(self) -> Progress:
        return Progress(step=self.step, epoch=self.step / self.steps_per_epoch, total_steps=self.total_steps)

    def run(self) -> int:
        config = self.config
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        console.print(
            f"{config.model.name}: {parameters / 1e6:.1f} M trainable parameters, {self.total_steps} steps of "
            f"{self.step_clips} clips on {self.ranks.size} x {self.device}, run folder {config.out}"
        )
        if self.unscored:
            self.score_epoch()
        elif self.step >= self.last_step:
            console.print(f"already finished: {self.step} of {self.last_step} steps")
            return 0
        if self.step and self.step < self.last_step:
            console.print(f"going on at step {self.step} of {self.total_steps}")
        while self.step < self.last_step and not self.stopping():
            before = self.step
            self.train_epoch()
            if self.step == self.last_step or (self.step > before and self.step % self.steps_per_epoch == 0):
                self.finish_epoch()
            elif self.step > before:
                self.save()
        if self.stop_signal is not None and (self.step < self.last_step or self.unscored):
            console.print(f"stopped by signal {self.stop_signal} after step {self.step}; go on with --resume")
            return 128 + self.stop_signal
        console.print(history_table(str(config.out), self.history))
        console.print(f"score and picture it: python evaluate.py {config.out}")
        return 0

    def train_epoch(self) -> None:
        """Steps to the end of the loader's epoch, or of the run, or until a signal."""
        config, clock = self.config, Clock()
        self.objective.train()
        accumulate = config.optim.accumulate
        every = config.train.checkpoint_every_steps
        batches = iter(self.loader)
        boundary = (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch
        while self.step < min(boundary, self.last_step) and not self.stopping():
            set_learning_rate(self.optimizer, learning_rate(config.optim, self.step, self.total_steps))
            weights = self.objective.weights_at(self.progress, self.device)
            self.model.before_step(self.progress)
            terms: dict[str, torch.Tensor] = {}
            for part in range(accumulate):
                with clock.waiting():
                    batch = next(batches)
                with self.ranks.averaging(self.forward, now=part == accumulate - 1):
                    with autocast(config, self.device):
                        losses = self.forward(batch, weights)
                    (losses.total / accumulate).backward()
                self.loss.add(batch.clip_id, losses.total)
                terms = losses.terms
            if config.optim.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.model.after_step(self.progress)
            self.step += 1
            clock.step(self.step_clips)
            if self.step % config.train.log_every_steps == 0 or self.step in (1, self.last_step):
                self.log_interval(clock, terms)
            if every and self.step % every == 0 and self.step < boundary:
                self.save()

    def log_interval(self, clock: "Clock", terms: dict[str, torch.Tensor]) -> None:
        total = self.loss.check(self.step, self.record.folder)
        values: dict[str, Any] = {
            "epoch": round(self.progress.epoch, 3),
            "loss": total,
            **{f"loss_{name}": float(term) for name, term in terms.items()},
            "lr": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            **clock.read(),
        }
        if self.device.type == "cuda":
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.record.log("train", self.step, values)
        left = (self.last_step - self.step) * values["step_ms"] / 1000
        console.print(
            f"step {self.step:>6}/{self.total_steps}  epoch {values['epoch']:6.2f}  loss {total:8.4f}  "
            f"lr {values['lr']:.2e}  {values['clips_per_s']:7.1f} clips/s  {values['step_ms']:7.1f} ms/step  "
            f"data wait {values['data_wait_share']:4.0%}  {left / 60:5.1f} min left"
        )

    def finish_epoch(self) -> None:
        """Go to the next epoch, save, and score if it is time."""
        config = self.config
        epoch = math.ceil(self.step / self.steps_per_epoch)
        self.loss.check(self.step, self.record.folder)
        row: dict[str, Any] = {"epoch": epoch, "step": self.step, "loss": self.loss.epoch_mean}
        if self.step % self.steps_per_epoch == 0:  # else max_steps ended the run inside an epoch, and it may go on
            self.history.append(row)
            self.loss.epoch = [0.0, 0]
            self.loader.set_epoch(epoch)
        every = config.train.evaluate_every_epochs
        if config.evaluate.sets and (self.step == self.last_step or (every and epoch % every == 0)):
            self.unscored = row
            self.save()  # whatever scoring meets, the epoch is not lost
            self.score_epoch()
        else:
            self.save()
            self.record_epoch(row)

    def score_epoch(self) -> None:
        """Complete the row of the epoch that awaits its scores; a signal leaves it to --resume."""
        row = self.unscored
        assert row is not None
        try:
            tables = evaluate_sets(self.model, self.config, self.device, blind=False, stop=self.stopping)
        except ScoringStopped:
            return
        for name, table in tables.items():
            row |= {f"{name}/{metric}": value for metric, value in table.scores.items()}
        self.unscored = None
        self.save()
        self.record_epoch(row)

    def record_epoch(self, row: dict[str, Any]) -> None:
        """After the checkpoint that holds it, so that a run that goes on from there writes no row twice."""
        self.record.log("epoch", self.step, row)
        console.print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def save(self) -> None:
        self.loss.check(self.step, self.record.folder)
        progress = {"epoch_loss": self.loss.epoch, "unscored": self.unscored}
        progress["finished"] = self.step >= self.total_steps and not self.unscored
        checkpoint = Checkpoint(
            config=self.config,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            loader=self.loader.state_dict(),
            rng=capture_rng(self.ranks),
            record={**self.facts, TRAIN_IDS: self.packed_ids, "selection": "last epoch", **progress},
            history=self.history,
        )
        if self.ranks.main:
            save_checkpoint(self.record.checkpoints, checkpoint, self.config.train.keep_checkpoints)


if __name__ == "__main__":
    run_command(main)
