"""How outputs of the UNet make one estimate: negative prompts and several texts, rescaling, PAG."""

from collections.abc import Sequence

from torch import Tensor


def combine_conds(uncond: Tensor, conds: Tensor, images: list[int], scales: list[float]) -> Tensor:
    """u + sum_i s_i (c_i - u): guidance with any number of texts an image (AND), Liu et al. (2022), arXiv:2206.01714.

    uncond: (b, c, h, w); conds: (rows, c, h, w), row r belongs to image images[r] and counts scales[r] times.
    """
    if images == list(range(len(uncond))) and len(set(scales)) == 1:
        return uncond + (conds - uncond) * scales[0]
    guided = uncond.clone()
    for row, (image, scale) in enumerate(zip(images, scales, strict=True)):
        guided[image] += (conds[row] - uncond[image]) * scale
    return guided


def rescale_guidance(guided: Tensor, cond: Tensor, guidance_rescale: float) -> Tensor:
    """Give the guided estimate the conditional one's deviation: section 3.4 of arXiv:2305.08891."""
    axes = list(range(1, guided.ndim))
    rescaled = guided * (cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guidance_rescale * rescaled + (1 - guidance_rescale) * guided


def pushed_away(
    guided: Tensor, cond: Tensor, perturbed: Tensor, images: Sequence[int], weights: Sequence[float], scale: float
) -> Tensor:
    """guided (b, c, h, w) with `scale` times what cond is beside the perturbed.

    cond, perturbed: (rows, c, h, w); row r is for image images[r] and counts weights[r] times.
    """
    push = (cond - perturbed) * scale
    if list(images) == list(range(len(guided))) and len(set(weights)) == 1:
        return guided + push * weights[0]
    pushed = guided.clone()
    for row, (image, weight) in enumerate(zip(images, weights, strict=True)):
        pushed[image] += push[row] * weight
    return pushed
