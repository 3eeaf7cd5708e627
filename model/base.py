"""What a method is to the rest of the project."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from configs.schema import ComponentConfig, named_parts
from pipeline.batch import Batch, InputSpec


@dataclass(frozen=True)
class Progress:
    """Where training is: optimizer steps done, epochs done (with fraction), and steps of the whole run."""

    step: int
    epoch: float
    total_steps: int


@dataclass(kw_only=True)
class Localization:
    """Where the sound is.

    map: `(B, h, w)` at the method's own resolution, unscaled; higher means source.
    bounds: the range that the map can take, for confidence scores; infinite for logits. extra: other named maps
    `(B, h, w)`. embeddings: of the picture and of the sound, `(B, D)` each, for retrieval by cosine; None: the method
    has none that are meant to be compared.
    """

    map: Tensor
    bounds: tuple[float, float]
    extra: dict[str, Tensor] = field(default_factory=dict)
    embeddings: tuple[Tensor, Tensor] | None = None


class MethodConfig(ComponentConfig):
    """Base of every method's `Config`: which losses train it, and its own numbers beside them."""

    losses: named_parts("model.losses")  # type: ignore[valid-type]

    @property
    def inputs(self) -> InputSpec:
        """What the method asks of the pipeline."""
        return InputSpec()


class LocalizationModel(nn.Module, ABC):
    """A method: `forward` for training, `localize` for inference, no mode flag that changes what comes back."""

    Config: ClassVar[type[MethodConfig]]
    inputs: InputSpec
    outputs: frozenset[str]
    """Names that `forward` returns; what the losses need is checked against them at start."""
    published_names: ClassVar[dict[str, str]] = {}
    """Beginnings of names in the authors' state dict and ours; the longest that fits is replaced, both ways."""
    published_unused: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names in the authors' state dict that nothing uses."""
    published_absent: ClassVar[tuple[str, ...]] = ()
    """Beginnings of our names that the authors' files need not have, as no map needs them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.inputs = config.inputs

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named tensors for the losses."""

    @abstractmethod
    def localize(self, batch: Batch) -> Localization:
        """Maps; no clip's map depends on another clip of the batch."""

    def before_step(self, progress: Progress) -> None:
        """Called before each forward pass in training; momentum encoders move here."""

    def after_step(self, progress: Progress) -> None:
        """Called after each optimizer step."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: `{"params": [...], "lr_scale": 1.0, ...}`; freezing is said here."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]


class LossConfig(ComponentConfig):
    """Base of every loss's `Config`."""

    weight: float = 1.0
    start_epoch: float = 0.0


class Loss(nn.Module, ABC):
    """One objective over named outputs: `needs` names them, `forward` receives them by keyword."""

    Config: ClassVar[type[LossConfig]]
    needs: tuple[str, ...]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, **outputs: Tensor) -> Tensor:
        """A scalar."""
