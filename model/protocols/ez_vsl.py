"""The test of EZ-VSL: bilinear with aligned corners, top half of the pixels."""

from model.protocol import MedianProtocol, ProtocolConfig


class EzVsl(MedianProtocol):
    """Median of the 0 .. 1 map, inclusive: a constant map is all foreground.

    Source: Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022), released test script. While training,
    that code selects checkpoints with bicubic resizing (`ez_vsl_train`), which scores some five points less on VGG-SS.
    SLAVC's test resizes otherwise: `slavc_rel`.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = True
    strict = False
