"""The contrastive loss between many views of two modalities."""

from torch import Tensor


def view_contrast(logits: Tensor) -> Tensor:
    """Cross-entropy in both directions, added, mean over the clips, for every pair of views: (V, W).

    Args: logits (V, B, W, B), a clip's view of the picture against a clip's view of the sound. The negatives of a pair
    of views are the other clips in these two views.
    """
    own = logits.diagonal(dim1=1, dim2=3).mean(dim=2)
    over_sounds, over_pictures = logits.logsumexp(dim=3).mean(dim=1), logits.logsumexp(dim=1).mean(dim=2)
    return over_sounds + over_pictures - 2 * own
