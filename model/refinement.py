"""Refinements: further maps to score, made at test time from the method's map and others of the same clip."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from configs.errors import UserError
from configs.schema import ComponentConfig
from model.base import Localization
from model.protocol import Protocol, Source
from pipeline.batch import Batch

PRIOR = "object"
"""Name of the object prior, as a source and as a map alone."""
Share = Annotated[float, Field(ge=0, le=1)]
Localize = Callable[[Batch], Localization]
Mixtures = dict[str, dict[str, float]]
"""Name of a further map -> the shares of the sources that it is mixed from; `map` is the method's own."""


class Refinement(nn.Module, ABC):
    """Gives named sources for a batch, and says how the protocol is to mix them, after its own resizing and scaling."""

    Config: ClassVar[type[ComponentConfig]]
    provides: ClassVar[tuple[str, ...]] = ()
    """Names of what `sources` returns."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def localize(self, localize: Localize, batch: Batch) -> Localization:
        """In place of the method's `localize`."""
        return localize(batch)

    def sources(self, batch: Batch, localization: Localization) -> dict[str, Source]:
        """What `provides` names, for all clips of the batch."""
        return {}

    @abstractmethod
    def mixtures(self, protocol: Protocol) -> Mixtures:
        """The further maps under this protocol."""

    @abstractmethod
    def settings(self) -> str:
        """What is mixed in, in words, for reports."""


def share_name(name: str, share: float) -> str:
    """The name of a mixture with this share: `ogl_60` for 0.6."""
    return f"{name}_{100 * share:g}".replace(".", "_")


def extra_source(localization: Localization, name: str, wanted_by: str) -> Source:
    """A further map of the method as a source. Raises: UserError if the method has none of that name."""
    if name not in localization.extra:
        has = ", ".join(sorted(localization.extra)) or "none"
        raise UserError(
            f"evaluate.refine.{wanted_by} needs a map '{name}' from the method, which gives further maps: {has}. "
            f"Remove it with evaluate.refine.{wanted_by}=null"
        )
    return Source(localization.extra[name], localization.bounds)
