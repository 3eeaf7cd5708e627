"""The models of a whole run. Frozen, no unknown keys, units in the names, ranges checked on construction.

Parts that a name selects (methods, encoders, losses, loaders, augmentations, metrics, ...) are declared with `named`
(one part, chosen by its `name` key) or `named_parts` (several, keyed by name); their options are the nested `Config`
of the class that the name resolves to.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from configs.resolve import nearest, resolve


class Config(BaseModel):
    """Base of every config model."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = list(cls.model_fields)
            unknown = [key for key in value if key not in known]
            if unknown:
                hints = [f"unknown key '{key}'.{nearest(str(key), known)}" for key in unknown]
                raise ValueError(f"{' '.join(hints)} Known keys: {', '.join(known)}")
        return value


class ComponentConfig(Config):
    """Base of the nested `Config` of an extension; `name` is the name of its file."""

    name: str = ""


def component_config(package: str, name: str, options: Any) -> ComponentConfig:
    """Validate `options` against the `Config` of `package`.`name`."""
    if isinstance(options, ComponentConfig):
        return options
    given = dict(options or {})
    if given.get("name", name) != name:
        raise ValueError(f"the key is '{name}' but its name says '{given['name']}'")
    return resolve(package, name).Config.model_validate({**given, "name": name})


def named(package: str) -> Any:
    """Type of a field that holds one part of `package`: `{name: X, option: value}`, or just the name."""

    def validate(value: Any) -> ComponentConfig:
        if isinstance(value, ComponentConfig):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("needs a mapping with a 'name'")
        return component_config(package, value["name"], value)

    return Annotated[Any, PlainValidator(validate)]


def named_parts(package: str) -> Any:
    """Type of a field that holds several parts of `package`: `{X: {option: value}, Y: {}}`; null removes one."""

    def validate(value: Any) -> dict[str, ComponentConfig]:
        if not isinstance(value, dict):
            raise ValueError("needs a mapping from names to options")
        return {
            name: component_config(package, name, options) for name, options in value.items() if options is not None
        }

    return Annotated[Any, PlainValidator(validate)]


class FrontendConfig(Config):
    """How a waveform becomes a log-spectrogram. Data, not code: one implementation serves all (`pipeline.frontends`).

    Stored spectrograms hold `ln(power + floor)`, time-major, of the whole clip; `offset` and `divisor` are applied
    when a batch is made: `(value + offset) / divisor`.
    """

    name: str
    sample_rate_hz: int = Field(gt=0)
    channel: Literal["mean", "first"] = Field(default="mean", description="what is heard of several channels")
    window: Literal["hann", "tukey"] = Field(description="periodic")
    tukey_alpha: float = Field(default=0.25, ge=0, le=1)
    n_fft: int = Field(gt=0)
    hop: int = Field(gt=0)
    centered: bool = Field(description="pad both ends by n_fft / 2, reflecting, so that frame k is centred on k * hop")
    remove_mean: bool = Field(description="subtract each segment's mean before the window, as scipy does by default")
    scaling: Literal["power", "density"] = Field(description="density: one-sided, over rate times window energy")
    mel_bins: int | None = Field(default=None, gt=0, description="null: linear bins, n_fft / 2 + 1 of them")
    mel_min_hz: float = Field(default=0.0, ge=0)
    mel_max_hz: float | None = Field(default=None, gt=0, description="null: half the sample rate")
    mel_scale: Literal["htk", "slaney"] = "htk"
    mel_norm: Literal["none", "slaney"] = "none"
    floor: float = Field(gt=0)
    floor_rule: Literal["add", "clamp"] = "add"
    offset: float = 0.0
    divisor: float = Field(default=1.0, gt=0)
    short: Literal["tile", "pad"] = Field(default="tile", description="what fills a window that the clip does not")

    @model_validator(mode="after")
    def _check(self) -> "FrontendConfig":
        top = self.mel_max_hz or self.sample_rate_hz / 2
        if self.mel_bins and not self.mel_min_hz < top <= self.sample_rate_hz / 2:
            raise ValueError(f"mel range {self.mel_min_hz} to {top} Hz must lie within 0 to {self.sample_rate_hz / 2}")
        return self

    @property
    def bins(self) -> int:
        """Frequency bins F of the log-spectrogram."""
        return self.mel_bins or self.n_fft // 2 + 1

    def frames(self, samples: int) -> int:
        """Time frames T for a waveform of so many samples."""
        if self.centered:
            return samples // self.hop + 1
        return max(0, (samples - self.n_fft) // self.hop + 1)

    def window_frames(self, duration_s: float) -> int:
        """Time frames T of a window of so many seconds."""
        return self.frames(round(duration_s * self.sample_rate_hz))


def _frontend(value: Any) -> Any:
    if isinstance(value, str):
        from configs.load import load_frontend  # load.py imports this module

        return load_frontend(value)
    return value


Frontend = Annotated[FrontendConfig, BeforeValidator(_frontend)]


class ImageConfig(Config):
    """The picture that a method sees."""

    size_px: int = Field(default=224, ge=32, description="height and width of the model's input")
    frame: Literal["annotated", "middle", "random"] = Field(
        default="annotated",
        description="which stored frame: at the annotated instant, the middle, or (training) any",
    )
    interpolation: Literal["linear", "cubic"] = "linear"
    antialias: bool = Field(default=False, description="widen the filter when shrinking, as PIL always does")
    pixels: Literal["any", "jpeg", "raw"] = Field(
        default="any", description="which stored form of the pictures to read; any: raw pixels where there are some"
    )
    test_fit: Literal["whole", "middle"] = Field(
        default="whole",
        description="in tests: the whole picture squeezed to a square, or the square in its middle; the truth stays "
        "that of the whole picture, as LVS scores",
    )


class AudioConfig(Config):
    """The sound that a method hears: a window of `duration_s`, in the middle unless `time_crop` draws it."""

    frontend: Frontend = Field(description="a file name in configs/frontends, or all parameters")
    duration_s: float = Field(default=3.0, gt=0)


class DataConfig(Config):
    store: Path | None = Field(default=None, description="folder written by `python -m preprocess pack`")
    train_split: str = "train"
    warm_up: bool = Field(
        default=False, description="read the store from end to end before training: for slow disks, if memory holds it"
    )
    exclude: str | None = Field(
        default=None, description="clips not to train on: a bundled list (configs/lists) or a file with one id a line"
    )
    batch_size: int = Field(default=128, ge=1, description="clips a step on each rank")
    image: ImageConfig = ImageConfig()
    audio: AudioConfig = Field(default_factory=lambda: AudioConfig.model_validate({"frontend": "ez_vsl"}))
    augment: named_parts("pipeline.augment") = {}  # type: ignore[valid-type]
    views: list[named_parts("pipeline.augment")] = Field(  # type: ignore[valid-type]
        default=[], description="augmentations of a clip's second, third, ... view; missing ones: as `augment`"
    )
    loader: named("pipeline.loaders") = "dali"  # type: ignore[valid-type]


class OptimConfig(Config):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    warmup_share: float = Field(default=0.0, ge=0, lt=1, description="share of all steps with a rising rate")
    clip_norm: float | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, ge=1, description="batches per optimizer step")


class SelectionConfig(Config):
    """Which epoch's weights are kept as `checkpoints/best.pt`, beside the newest ones that are the run's result."""

    by: Literal["last", "held_out", "test_set"] = Field(
        default="last",
        description="last: none; held_out: the best on clips of the training split that are not trained on; test_set: "
        "the best on a set that is scored, whose scores are then too good, and every report of them says so",
    )
    share: float = Field(default=0.05, ge=0.0001, le=0.5, description="of the training split, for held_out")
    metric: str = Field(default="loss", description="the lowest loss (held_out only), or the highest value of a metric")
    set: str | None = Field(default=None, description="of evaluate.sets, for test_set")

    @model_validator(mode="after")
    def _check(self) -> "SelectionConfig":
        if (self.by == "test_set") != (self.set is not None):
            raise ValueError("by=test_set needs a set, and nothing else takes one")
        if self.by == "test_set" and self.metric == "loss":
            raise ValueError("by=test_set needs a metric of the set, for example metric=ciou_50")
        return self


class TrainConfig(Config):
    epochs: int = Field(default=20, ge=1)
    max_steps: int | None = Field(default=None, ge=1, description="stop early after so many optimizer steps")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    negatives: Literal["global", "shard"] = Field(
        default="global", description="on several GPUs: all ranks' clips, or as published each rank's own"
    )
    sync_batchnorm: bool = Field(default=False, description="BatchNorm over the clips of all GPUs")
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = Field(
        default=False, description="replay the compiled objective as CUDA graphs: for small batches, on one GPU"
    )
    fused_pairs: Literal["auto", "never", "always"] = Field(
        default="auto", description="losses over all pairs without the map of all pairs; auto: where it would be large"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay a step of averaged weights, which are scored; null: none"
    )
    log_every_steps: int = Field(default=10, ge=1)
    evaluate_every_epochs: int = Field(default=1, ge=0, description="0: only at the end")
    checkpoint_every_steps: int = Field(default=0, ge=0, description="beside the one at every epoch's end; 0: none")
    keep_checkpoints: int = Field(default=2, ge=1, description="the newest ones")
    selection: SelectionConfig = SelectionConfig()
    boards: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=("tensorboard",), description="where the numbers go beside log.jsonl"
    )
    cpu_threads: int | None = Field(default=None, ge=1, description="torch threads on CPU; null: as torch chooses")


class EvaluateSet(Config):
    """Clips to score together: a split of the store, or a test set of `configs/sets`, with what differs for it."""

    about: str = Field(default="", description="one line for people")
    splits: tuple[str, ...] = Field(min_length=1, description="of the store; if not given, the split of the set's name")
    ids: str | None = Field(default=None, description="only these clips: a bundled list of ids, or a file of them")
    bring: str | None = Field(default=None, description="the list to name as `ids`, where we may not bundle it")
    size_px: int | None = Field(default=None, ge=32, description="null: data.image.size_px")
    expected: int | None = Field(default=None, ge=1, description="clips that the full set has, where it is known")
    family: str = Field(default="", description="whose special rules hold: some protocols treat sets differently")
    metrics: named_parts("model.metrics") = {}  # type: ignore[valid-type]
    annotations: str | None = Field(default=None, description="bundled truth, for maps that come without a store")
    negatives: str | None = Field(default=None, description="bundled list of clips with a negative sound, likewise")


def _known_sets(value: Any) -> Any:
    from configs.test_sets import set_options  # it imports load.py, which imports this module

    if not isinstance(value, dict):
        return value
    return {name: set_options(name, options) for name, options in value.items() if options is not None}


class EvaluateConfig(Config):
    sets: Annotated[dict[str, EvaluateSet], BeforeValidator(_known_sets)] = {}
    protocol: named("model.protocols") = "ez_vsl"  # type: ignore[valid-type]
    metrics: named_parts("model.metrics") = Field(  # type: ignore[valid-type]
        default={"ciou": {}, "pointing": {}}, description="what to score beside the protocol's usual metrics"
    )
    object_prior: named("model.encoders") | None = Field(  # type: ignore[valid-type]
        default={"name": "efficientnet_lite0", "weights": "imagenet", "frozen": True},
        validate_default=True,
        description="network of the object prior, a floor that sees the picture and hears nothing; null: no such floor",
    )
    refine: named_parts("model.refine") = Field(default={}, description="further maps to score, mixed from several")  # type: ignore[valid-type]
    batch_size: int = Field(default=64, ge=1)
    bootstrap: int = Field(default=1000, ge=0, description="resamples of the clips for the 95% interval")
    gallery: int = Field(default=12, ge=0, description="clips a section of the report: best, median, worst, random")

    def for_set(self, options: EvaluateSet) -> "EvaluateConfig":
        """The same with the metrics that a set adds."""
        return self.model_copy(update={"metrics": {**self.metrics, **options.metrics}})


class RunConfig(Config):
    """Everything about a run; written resolved into the run folder and into every checkpoint."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    out: Path | None = Field(default=None, description="run folder; null: runs/<config file name>-s<seed>")
    model: named("model.methods")  # type: ignore[valid-type]
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = Field(default_factory=lambda: EvaluateConfig())

    @model_validator(mode="after")
    def _check_selection(self) -> "RunConfig":
        chosen = self.train.selection.set
        if chosen is not None and (chosen not in self.evaluate.sets or not self.train.evaluate_every_epochs):
            raise ValueError(f"train.selection.set={chosen} needs that set in evaluate.sets, scored while training")
        return self
