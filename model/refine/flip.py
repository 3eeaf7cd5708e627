"""Flip averaging: the mean of the map and of the mirrored picture's map, mirrored back."""

from dataclasses import replace

from configs.errors import UserError
from configs.schema import ComponentConfig
from model.base import Localization
from model.protocol import Protocol
from model.refinement import Localize, Mixtures, Refinement
from pipeline.batch import Batch


class Flip(Refinement):
    """Takes the place of the method's own map, and costs a second pass; the sound is the same in both."""

    class Config(ComponentConfig):
        pass

    def localize(self, localize: Localize, batch: Batch) -> Localization:
        if batch.flow is not None:
            raise UserError(
                "evaluate.refine.flip is for methods that see no flow: a batch does not say whether its flow has a "
                "sign to turn round. Remove it with evaluate.refine.flip=null"
            )
        straight, flipped = localize(batch), localize(replace(batch, image=batch.image.flip(3)))
        extra = {name: (each + flipped.extra[name].flip(2)) / 2 for name, each in straight.extra.items()}
        return replace(straight, map=(straight.map + flipped.map.flip(2)) / 2, extra=extra)

    def mixtures(self, protocol: Protocol) -> Mixtures:
        return {}

    def settings(self) -> str:
        return "the map is the mean over the picture and its mirror image"
