"""From what a unit names to what its network is shown: image or init image, mask, module, size.

A control image is (h, w, 3) uint8; with a mask for inpainting (h, w, 4) float32 in 0..255, the mask last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import maximum_filter, uniform_filter
from torch import Tensor

from ..coerce import given_pictures
from ..fit import fit_picture
from ..masks import MaskArea
from .fit import fit_hint, perfect_resolution
from .modules import find_module


# A unit's resize mode as img2img's own, and the other way round.
_JOB_MODES = {"Just Resize": "stretch", "Crop and Resize": "crop", "Resize and Fill": "fill"}
_UNIT_MODES = {"stretch": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill", "latent": "Just Resize"}
_NEARLY_BLACK, _NEARLY_WHITE = 5, 250  # masks that are so all over were not drawn


class InitHint(NamedTuple):
    """What img2img offers to units: its images on white, its mask, and what of it is drawn.

    images: RGB, as given. mask: "L" of the size of the images, blurred and inverted as asked for; None without one.
    area: the part that is drawn alone. resize_mode: of the job.
    """

    images: Sequence[Image.Image]
    mask: Image.Image | None = None
    area: MaskArea | None = None
    resize_mode: str = "stretch"


@dataclass(frozen=True)
class ControlImage:
    """A unit's image after its module, not yet of a pass's size."""

    image: np.ndarray
    resize_mode: str

    def fitted(self, size: tuple[int, int]) -> np.ndarray:
        """The image at (width, height) in pixels."""
        return fit_hint(self.image, size, self.resize_mode)


def control_images(
    unit: Any,
    init: InitHint | None,
    size: tuple[int, int],
    *,
    ignore_mask: bool = False,
) -> list[ControlImage]:
    """The images of a unit, one, or one for each init image where it has none of its own.

    unit: has the fields of a ControlUnit. size: (width, height) of the first pass. ignore_mask: the option
    `controlnet_ignore_noninpaint_mask`. Raises ValueError where there is no image, or more than one.
    """
    where = f"`control_units[{unit.place}]`"
    own = _own_image(unit, where)
    if own is not None:
        sources, resize_mode = [own], unit.resize_mode
    elif init is not None and init.images:
        sources, resize_mode = [np.asarray(image) for image in init.images], _UNIT_MODES[init.resize_mode]
    else:
        raise ValueError(
            f"{where} has no `image`. Give one; only img2img has an init image that can stand in for it, and only as "
            "pixels."
        )
    inpaints = unit.module_name in ("inpaint", "inpaint_only")
    mask = _own_mask(unit, where, sources[0].shape[:2])
    if mask is not None and not inpaints:
        if not ignore_mask and not (mask.max() <= _NEARLY_BLACK or mask.min() >= _NEARLY_WHITE):
            sources = [np.repeat(mask[..., None], 3, axis=2)]
        mask = None
    if inpaints and mask is None:
        mask = _job_mask(own, init, sources[0].shape[:2])
    if init is not None and init.area is not None and unit.inpaint_crop_input_image:
        sources = [_cut(image, init, size, resize_mode) for image in sources]
        mask = None if mask is None else _cut(mask, init, size, resize_mode)
    return [_after_module(unit, image, mask, size, resize_mode) for image in sources]


def _own_image(unit: Any, where: str) -> np.ndarray | None:
    """(h, w, 3) uint8; what is transparent shows white, and is cut off to 8 bits."""
    if unit.image is None:
        return None
    rgb, alpha, _ = _one_picture(unit.image, where, "image")
    if alpha is None:
        return rgb
    share = alpha[..., None].astype(np.float32) / np.float32(255)
    return (rgb.astype(np.float32) * share + np.float32(255) * (1 - share)).clip(0, 255).astype(np.uint8)


def _own_mask(unit: Any, where: str, shape: tuple[int, int]) -> np.ndarray | None:
    """(h, w) uint8, stretched to the image where it has another size."""
    if unit.mask is None:
        return None
    mask = np.ascontiguousarray(_one_picture(unit.mask, where, "mask").rgb[..., 0])
    if mask.shape == tuple(shape):
        return mask
    return np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST))


def _one_picture(image: Any, where: str, key: str) -> Any:
    try:
        pictures = given_pictures(image)
    except ValueError as error:
        raise ValueError(f"{where}: `{key}`: {error}") from error
    if len(pictures) != 1:
        raise ValueError(f"{where}: `{key}` holds {len(pictures)} images: a unit has one. Use a unit for each.")
    return pictures[0]


def _job_mask(own: np.ndarray | None, init: InitHint | None, shape: tuple[int, int]) -> np.ndarray:
    """Where an inpaint module draws anew without a mask of its own: the job's mask, or nowhere."""
    if own is None and init is not None and init.mask is not None:
        return np.asarray(init.mask)
    return np.zeros(shape, np.uint8)


def _cut(image: np.ndarray, init: InitHint, size: tuple[int, int], resize_mode: str) -> np.ndarray:
    """The part of a control image that "only masked" draws, at the size of the job."""
    picture, whole = Image.fromarray(image), init.mask.size
    if picture.size != whole:
        picture = fit_picture(picture, *whole, _JOB_MODES[resize_mode])
    return np.asarray(fit_picture(picture.crop(init.area), *size, "fill"))


def _after_module(
    unit: Any, image: np.ndarray, mask: np.ndarray | None, size: tuple[int, int], resize_mode: str
) -> ControlImage:
    if mask is not None:
        if mask.shape != image.shape[:2]:  # several init images, each of its own size
            mask = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
        both = np.concatenate([image, mask[..., None]], axis=2).astype(np.float32)
        return ControlImage(both, resize_mode)
    resolution = perfect_resolution(image, size, resize_mode) if unit.pixel_perfect else unit.processor_res
    module = find_module(unit.module_name)
    return ControlImage(module(image, resolution, unit.threshold_a, unit.threshold_b), resize_mode)


# --- what a network is shown, and what inpaint_only keeps


def hint_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """(n, 3, h, w) float32 in 0..1 of control images of one size; -1 where a mask shows what is drawn anew."""
    hints = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 255.0
    if hints.shape[1] == 3:
        return hints
    return torch.where(hints[:, 3:] > 0.5, torch.tensor(-1.0), hints[:, :3])


def picture_to_show(image: np.ndarray) -> Image.Image:
    """A control image (h, w, 3 or 4) as a picture: black where a mask shows what is drawn anew."""
    colours = image if image.shape[2] == 3 else np.where(image[..., 3:] > 127.5, 0, image[..., :3])
    return Image.fromarray(np.rint(colours).clip(0, 255).astype(np.uint8))


def region_tensor(mask: Any, place: int) -> Tensor:
    """(1, 1, h, w) float32 in 0..1 of the image `effective_region_mask`: its first channel."""
    values = _one_picture(mask, f"`control_units[{place}]`", "effective_region_mask").rgb[..., 0]
    return torch.from_numpy(np.ascontiguousarray(values)).float()[None, None] / 255.0


def drawn_cells(image: np.ndarray) -> Tensor:
    """(1, 1, h // 8, w // 8): 1 for latent cells that the mask of a control image (h, w, 4) comes near."""
    mask = torch.from_numpy(np.ascontiguousarray(image[..., 3])).float()[None, None] / 255.0
    return F.max_pool2d((mask > 0.5).float(), (10, 10), stride=8, padding=1)


def lay_kept_over(drawn: Sequence[Image.Image], image: np.ndarray) -> list[Image.Image]:
    """The finished images with what the mask of a control image (h, w, 4) leaves out put back, softly."""
    mask = np.where(image[..., 3] > 127.5, np.float32(1), np.float32(0))
    mask = uniform_filter(maximum_filter(mask, 7, mode="constant"), 7, mode="mirror")[..., None]
    kept = image[..., :3]
    return [
        Image.fromarray((mask * np.asarray(picture, np.float32) + (1 - mask) * kept).clip(0, 255).astype(np.uint8))
        for picture in drawn
    ]
