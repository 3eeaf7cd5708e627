"""The losses of the published systems as their code computes them, from the descriptions of that code: for comparison.

Each takes the outputs of our methods that our loss of the same name takes, and its options; in one process only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _all_maps(image: Tensor, sound: Tensor) -> Tensor:
    """Every image against every sound, (B, M, h, w)."""
    return torch.einsum("nchw,mc->nmhw", image.float(), sound.float())


def _both_ways(logits: Tensor) -> Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)


def _one_way(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def max_mil(config: Any, image_features: Tensor, audio_features: Tensor) -> Tensor:
    """EZ-VSL: the map of all pairs, divided by tau, then its maxima."""
    maps = _all_maps(image_features, audio_features) / config.tau
    return _both_ways(maps.flatten(2).max(dim=2).values)


def trimap(config: Any, image_features: Tensor, audio_features: Tensor) -> Tensor:
    """LVS, Hear The Flow, SIRA-SSL: soft masks over the map of all pairs, sums of products over sums."""
    maps = _all_maps(image_features, audio_features)
    own = maps.diagonal(dim1=0, dim2=1).permute(2, 0, 1)[:, None]
    positive = torch.sigmoid((own - config.epsilon_p) / config.tau)
    everywhere = torch.sigmoid((maps - config.epsilon_p) / config.tau)
    negative = 1 - torch.sigmoid((own - config.epsilon_n) / config.tau)
    easy = (positive * own).sum((2, 3)) / positive.sum((2, 3))
    others = (everywhere * maps).sum((2, 3)) / everywhere.sum((2, 3))
    hard = (negative * own).sum((2, 3)) / negative.sum((2, 3))
    mask = 1 - 100 * torch.eye(len(maps), device=maps.device)
    logits = torch.cat([easy, others * mask, hard], dim=1) / config.temperature
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def trimap_gated(config: Any, gated_features: Tensor, audio_features: Tensor) -> Tensor:
    """SIRA-SSL: as `trimap`."""
    return trimap(config, gated_features, audio_features)


def trimap_recursive(config: Any, recursive_features: Tensor, audio_features: Tensor) -> Tensor:
    """SIRA-SSL: as `trimap`."""
    return trimap(config, recursive_features, audio_features)


def pair_matching(config: Any, second_look: Tensor, audio_features: Tensor) -> Tensor:
    """SIRA-SSL: a column of own logits against a row of sums, broadcast to a B x B table whose mean is taken."""
    seen = functional.normalize(second_look.float().amax((2, 3)), dim=1)
    logits = seen @ audio_features.float().T / config.tau
    return -(logits.diagonal()[:, None] - logits.logsumexp(dim=1)[None]).mean()


def scaled_mil(config: Any, image_features: Tensor, audio_features: Tensor, scale: Tensor) -> Tensor:
    """VCS: the map of all pairs times the scale, then its maxima."""
    assert config.pool == "max"
    maps = _all_maps(image_features, audio_features) * scale
    return _one_way(maps.flatten(2).max(dim=2).values)


def factorised(config: Any, **features: Tensor) -> Tensor:
    """SLAVC: two maps of all pairs, a softmax each, the logarithm of the summed products, and a softmax again."""
    total = features["image_which"].new_zeros(())
    for image, audio in (("image", "slow_audio"), ("slow_image", "audio")):
        which = _all_maps(features[f"{image}_which"], features[f"{audio}_which"]) / config.tau
        where = _all_maps(features[f"{image}_where"], features[f"{audio}_where"]) / config.tau
        shares = which.softmax(dim=1) * where.flatten(2).softmax(dim=2).view_as(where)
        total = total + _one_way(shares.sum((2, 3)).log())
    return total


def mutual_neighbour_contrast(config: Any, image_slots: Tensor, audio_slots: Tensor) -> Tensor:
    """JSA: the neighbours of one clip after the other, counted on the host."""
    image, audio = image_slots[:, 0].float(), audio_slots[:, 0].float()
    count = len(image)
    near = [(each.detach() @ each.detach().T).topk(config.neighbours, dim=1).indices for each in (image, audio)]
    rows = [torch.bincount(torch.cat([seen, heard]), minlength=count) > 1 for seen, heard in zip(*near)]
    both = torch.stack(rows)
    dropped = both & both.T
    dropped.fill_diagonal_(False)
    return _both_ways((image @ audio.T / config.tau).masked_fill(dropped, -torch.inf))


def view_localization(config: Any, image_views: Tensor, audio_views: Tensor, pair_weights: Tensor) -> Tensor:
    """SSL-Align, whose training code was never released: pair of views by pair of views, over the map of all pairs."""
    assert config.pool == "mean"
    total = image_views.new_zeros((), dtype=torch.float32)
    for v, image in enumerate(image_views):
        for w, sound in enumerate(audio_views):
            total = total + pair_weights[v, w] * _both_ways(_all_maps(image, sound).mean((2, 3)) / config.tau)
    return total


def view_alignment(config: Any, image_embeddings: Tensor, audio_embeddings: Tensor, pair_weights: Tensor) -> Tensor:
    """SSL-Align, likewise: pair of views by pair of views."""
    total = image_embeddings.new_zeros((), dtype=torch.float32)
    for v, image in enumerate(image_embeddings):
        for w, sound in enumerate(audio_embeddings):
            total = total + pair_weights[v, w] * _both_ways(image.float() @ sound.float().T / config.tau)
    return total


PUBLISHED = {
    each.__name__: each
    for each in (
        *(max_mil, trimap, trimap_gated, trimap_recursive, pair_matching, scaled_mil, factorised),
        *(mutual_neighbour_contrast, view_localization, view_alignment),
    )
}
"""Loss name -> its published form. Other losses are the same in both."""
