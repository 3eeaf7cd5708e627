"""Train any method on any store: `python train.py CONFIG [key=value ...] [--resume] [--plan] [--profile]`; on N GPUs of
a machine `torchrun --nproc-per-node N train.py ...`.

--resume goes on where the run folder stands, or begins. --plan trains nothing: it prints the memory and time of a run
here; --plan=h200 estimates them for a GPU by name. --profile writes a trace of some steps and prints their stages.

The loop: build, restore, step, log, evaluate, save. It names no method, data set, loss or metric.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from configs.allocator import keep_freed_memory
from configs.errors import run_command
from configs.load import load_config
from configs.run_record import Clock, RunRecord, environment, history_table, interval_line, peak_memory_gb
from configs.schema import RunConfig
from evaluate import ScoringStopped, autocast, choose_device, evaluate_sets
from model.base import Progress
from model.build import build_objective, without_initial_weights
from model.checkpoint import Checkpoint, capture_rng, refuse_other_steps, restore_parts, resumable, save_checkpoint
from model.curves import draw_curves
from model.distributed import Ranks, keep_negatives_apart, with_synced_batchnorm
from model.ema import WeightAverage
from model.honesty import TRAIN_IDS, pack_ids
from model.objective import as_configured
from model.optim import build_optimizer, learning_rate, set_learning_rate
from model.plan import print_plan
from model.profiling import StepProfile
from model.running_loss import RunningLoss
from model.selection import LAST, EpochScores, HeldOutStopped, Selection
from model.similarity import choose_fused_pairs
from model.stopping import StopSignals
from pipeline.loaders.resident import free_bytes
from pipeline.sizes import store_sizes, synthetic_batch
from pipeline.training_data import TrainingData

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)  # a log file has no width of its own

FLAGS, PLAN_FOR = ("--resume", "--plan", "--profile"), "--plan="


def main(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(__doc__)
        return 0
    asked = {flag for flag in FLAGS if flag in argv}
    named_gpu = next((argument.removeprefix(PLAN_FOR) for argument in argv if argument.startswith(PLAN_FOR)), None)
    config = load_config([each for each in argv if each not in FLAGS and not each.startswith(PLAN_FOR)])
    device = choose_device(config)
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.cpu_threads:
        torch.set_num_threads(config.train.cpu_threads)
    choose_fused_pairs(config.train.fused_pairs, device)
    if "--plan" in asked or named_gpu is not None:
        sources = {"batch_of": synthetic_batch, "sizes_of": store_sizes, "free_bytes": free_bytes}
        return print_plan(config, device, console, **sources, gpu=named_gpu)
    ranks = Ranks(device)
    console.quiet = not ranks.main
    keep_negatives_apart(config.train.negatives == "shard")
    try:
        with Training(config, device, ranks, resume="--resume" in asked, profile="--profile" in asked) as training:
            return training.run()
    finally:
        ranks.leave()


class Training:
    """One run: what it is made of, and where it stands."""

    def __init__(
        self, config: RunConfig, device: torch.device, ranks: Ranks, *, resume: bool, profile: bool = False
    ) -> None:
        assert config.out is not None
        self.config, self.device, self.ranks, self.resume = config, device, ranks, resume
        torch.manual_seed(config.seed)
        saved = resumable(config.out, config) if resume else None
        self.objective = build_objective(without_initial_weights(config.model) if saved else config.model)
        self.model = self.objective.model
        if ranks.rank:  # the weights are drawn; dropout must differ from rank to rank
            torch.manual_seed(config.seed ^ (ranks.rank << 48))
        self.data = TrainingData(config, self.model.inputs, device, ranks.rank, ranks.size)
        self.loader = self.data.loader
        self.profile = StepProfile(device, config.out / "trace.json", wanted=profile and ranks.main)
        try:
            self.set_up(saved)
        except BaseException:
            self.loader.close()
            raise

    def set_up(self, saved: tuple[Checkpoint, Path] | None) -> None:
        """Everything that needs the loader. Raises: UserError."""
        config, device = self.config, self.device
        self.steps_per_epoch = len(self.loader) // config.optim.accumulate
        self.step_clips = config.data.batch_size * config.optim.accumulate * self.ranks.size
        self.total_steps = config.train.epochs * self.steps_per_epoch
        self.last_step = min(self.total_steps, config.train.max_steps or sys.maxsize)
        self.objective.to(device)
        if config.train.sync_batchnorm:
            with_synced_batchnorm(self.objective, device)
        if config.train.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(config.optim, self.model.param_groups())
        self.forward = self.ranks.wrap(as_configured(self.objective, config, device, self.ranks.size))
        self.step, self.history = 0, []
        self.loss = RunningLoss(self.data.batch_at, self.ranks.mean, self.ranks.rank)
        self.selection = Selection(config)
        self.unscored: dict[str, Any] | None = None  # row of an epoch whose scores are still to come
        self.facts = {**environment(), **self.data.facts, "ranks": self.ranks.size, "step_clips": self.step_clips}
        self.packed_ids = pack_ids(self.data.clip_ids)
        if saved:
            self.restore(*saved)
        averaged = saved[0].model if saved else None
        self.average = WeightAverage(self.model, config.train.ema, averaged) if config.train.ema else None
        self.record = RunRecord(config, self.facts, resume=self.resume, step=self.step, writes=self.ranks.main)
        self.stop = StopSignals(self.ranks)
        self.scoring = EpochScores(
            config, self.objective, self.ranks, device, held_out=self.data.held_out, score_sets=self.score_sets,
            load_held_out=self.data.held_out_loader, asked_to_stop=self.stop.asked,
        )  # fmt: skip

    def restore(self, checkpoint: Checkpoint, where: Path) -> None:
        refuse_other_steps(checkpoint.record, self.facts, str(where))
        restore_parts(checkpoint, str(where), self.model, self.optimizer, self.loader, self.ranks)
        self.step, self.history = checkpoint.step, checkpoint.history
        self.loss.epoch = list(checkpoint.record["epoch_loss"])
        self.selection.best, self.unscored = checkpoint.record.get("best"), checkpoint.record["unscored"]
        if self.unscored and self.history and self.history[-1]["step"] == self.step:
            self.unscored = self.history[-1]

    def __enter__(self) -> "Training":
        self.stop.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.__exit__(*exc)
        self.profile.end(say=console.print)
        self.loader.close()
        self.record.close()

    @property
    def progress(self) -> Progress:
        return Progress(step=self.step, epoch=self.step / self.steps_per_epoch, total_steps=self.total_steps)

    def run(self) -> int:
        config = self.config
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        loader = ", ".join(f"{key} {value}" for key, value in self.loader.describe().items())
        console.print(
            f"{config.model.name}: {parameters / 1e6:.1f} M trainable parameters, {self.total_steps} steps of "
            f"{self.step_clips} clips on {self.ranks.size} x {self.device}, {loader}, run folder {config.out}"
        )
        if self.unscored:
            self.score_epoch()
        elif self.step >= self.last_step:
            console.print(f"already finished: {self.step} of {self.last_step} steps")
            return 0
        if self.step and self.step < self.last_step:
            console.print(f"going on at step {self.step} of {self.total_steps}")
        while self.step < self.last_step and not self.stop.asked():
            before = self.step
            self.train_epoch()
            if self.step == self.last_step or (self.step > before and self.step % self.steps_per_epoch == 0):
                self.finish_epoch()
            elif self.step > before:
                self.save()
        if self.ranks.main:
            draw_curves(self.record.folder / "log.jsonl", self.record.folder / "curves.png")
        if self.stop.number is not None and (self.step < self.last_step or self.unscored):
            console.print(f"stopped by signal {self.stop.number} after step {self.step}; go on with --resume")
            return 128 + self.stop.number
        console.print(history_table(str(config.out), self.history))
        console.print(f"score and picture it: python evaluate.py {config.out}")
        return 0

    def train_epoch(self) -> None:
        """Steps to the end of the loader's epoch, or of the run, or until a signal."""
        config, clock, profile = self.config, Clock(), self.profile
        self.objective.train()
        accumulate, every = config.optim.accumulate, config.train.checkpoint_every_steps
        batches = iter(self.loader)
        boundary = (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch
        while self.step < min(boundary, self.last_step) and not self.stop.asked():
            set_learning_rate(self.optimizer, learning_rate(config.optim, self.step, self.total_steps))
            weights = self.objective.weights_at(self.progress, self.device)
            self.model.before_step(self.progress)
            terms: dict[str, torch.Tensor] = {}
            for part in range(accumulate):
                place = self.loader.state_dict()
                with profile.stage("data"), clock.waiting():
                    batch = next(batches)
                with self.ranks.averaging(self.forward, now=part == accumulate - 1):
                    with profile.stage("forward and loss"), autocast(config, self.device):
                        losses = self.forward(batch, weights)
                    with profile.stage("backward"):
                        (losses.total / accumulate).backward()
                self.loss.add(place, batch.clip_id, losses.total)
                terms = losses.terms
            with profile.stage("optimizer"):
                if config.optim.clip_norm:
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.model.after_step(self.progress)
                self.step += 1
                if self.average:
                    self.average.update(self.model, self.step)
            clock.step(self.step_clips)
            if table := profile.step_done():
                console.print(table)
            if self.step % config.train.log_every_steps == 0 or self.step in (1, self.last_step):
                self.log_interval(clock, terms)
            if every and self.step % every == 0 and self.step < boundary:
                with clock.paused():
                    self.save()

    def log_interval(self, clock: Clock, terms: dict[str, torch.Tensor]) -> None:
        total, read = self.loss.check(self.step, self.record.folder), self.loader.stats()
        values: dict[str, Any] = {
            "epoch": round(self.progress.epoch, 3),
            "loss": total,
            **{f"loss_{name}": float(term) for name, term in terms.items()},
            "lr": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            **clock.read(),
            "batches_ready": read.ready,
            "bytes_per_clip": read.bytes_per_clip,
            "peak_memory_gb": peak_memory_gb(self.device.type),
        }
        self.record.log("train", self.step, values)
        console.print(interval_line(self.step, self.total_steps, self.last_step - self.step, values))

    def finish_epoch(self) -> None:
        """Go to the next epoch, save, and score if it is time."""
        epoch = math.ceil(self.step / self.steps_per_epoch)
        self.loss.check(self.step, self.record.folder)
        row: dict[str, Any] = {"epoch": epoch, "step": self.step, "loss": self.loss.epoch_mean}
        if self.step % self.steps_per_epoch == 0:  # else max_steps ended the run inside an epoch, and it may go on
            self.history.append(row)
            self.loss.epoch = [0.0, 0]
            self.loader.set_epoch(epoch)
        if self.scoring.due(epoch, self.step == self.last_step):
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
            row |= self.scoring.after(row["epoch"], self.step == self.last_step, self.average)
        except (ScoringStopped, HeldOutStopped):
            return
        self.unscored = None
        self.save(best=self.step % self.steps_per_epoch == 0 and self.selection.better(row))
        self.record_epoch(row)

    def score_sets(self, config: RunConfig) -> dict[str, Any]:
        share = {"rank": self.ranks.rank, "world_size": self.ranks.size}
        return evaluate_sets(self.model, config, self.device, blind=False, stop=self.stop.asked, **share)

    def record_epoch(self, row: dict[str, Any]) -> None:
        """After the checkpoint that holds it, so that a run that goes on from there writes no row twice."""
        self.record.log("epoch", self.step, row)
        console.print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def save(self, *, best: bool = False) -> None:
        """The newest checkpoint, and before it, if the epoch is the best one, the same as `best.pt`."""
        self.loss.check(self.step, self.record.folder)
        progress = {"epoch_loss": self.loss.epoch, "unscored": self.unscored, "best": self.selection.best}
        progress["finished"] = self.step >= self.total_steps and not self.unscored
        trained = self.model.state_dict()
        checkpoint = Checkpoint(
            config=self.config,
            model=self.average.state if self.average else trained,
            trained=trained if self.average else {},
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            loader=self.loader.state_dict(),
            rng=capture_rng(self.ranks),
            record={**self.facts, TRAIN_IDS: self.packed_ids, "selection": LAST, **progress},
            history=self.history,
        )
        if self.ranks.main:
            chosen_by = self.selection.text if best else None
            save_checkpoint(self.record.checkpoints, checkpoint, self.config.train.keep_checkpoints, best=chosen_by)


if __name__ == "__main__":
    run_command(main)
