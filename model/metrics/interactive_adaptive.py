"""Whether all sounds of one picture are found, by foregrounds as large as the truth."""

from model.metrics.interactive import Interactive


class InteractiveAdaptive(Interactive):
    """`iiou_adaptive` and `iauc_adaptive`: as `interactive`, of `ciou_adaptive`."""

    class Config(Interactive.Config):
        pass

    needs = ("ciou_adaptive",)
    suffix = "_adaptive"
