"""Inpainting masks with the arithmetic of the webui: blur, crop, latent mask, overlay.

The order in which an img2img call uses these functions and those of fit.py, for each picture:

    1  picture = flatten_picture(picture)
    2  mask    = prepare_mask(mask, invert=..., blur=(x, y), soft=...)      no mask: only steps 1, 5, 8, 9, 12, 13
    3  area    = masked_area(mask, (width, height), padding)                inpaint area "masked"; None: empty mask,
                                                                            go on as plain img2img, without it
    4  overlay = overlay_picture(picture, mask)                             inpaint area "masked"
       picture, mask = (fit_picture(p.crop(area), w, h, "fill") for p in (picture, mask))
    5  picture = fit_picture(picture, w, h, resize_mode)                    no area; "latent" leaves it as it is
    6  mask    = fit_picture(mask, w, h, resize_mode)                       inpaint area "whole"
       overlay = overlay_picture(picture, doubled_mask(mask))
    7  picture = fill_masked(picture, mask)                                 masked content other than "original"
    8  pixels_to_vae_input and encode_pictures (vae.py), one picture at a time
    9  resize_latents(latents, w, h)                                        resize mode "latent"
    10 keep, change = latent_masks(mask, latents, soft=...)
    11 latents * keep + noise * change, or latents * keep                   "latent noise", "latent nothing"
    12 sampling; at its end sampled * change + latents * keep
    13 latents_to_pixels (vae.py), then match_colors (color_match.py)       the option img2img_color_correction
    14 composite_overlay(picture, overlay, area)

Areas are (left, top, right, bottom) in pixels of the picture, right and bottom outside.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .fit import fit_picture
from .opencv import blur_mask


MASK_ALPHA_THRESHOLD = 128  # a drawn mask's alpha above this is mask, in 8-bit levels


class MaskArea(NamedTuple):
    """The part of the picture that is drawn alone, in pixels; `right` and `bottom` are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.right - self.left, self.bottom - self.top


class LatentMasks(NamedTuple):
    """Weights of latent cells, (c, h, w) float32 each, on the latents' device. They add up to 1."""

    keep: Tensor
    change: Tensor


def prepare_mask(
    mask: Image.Image, *, invert: bool = False, blur: tuple[float, float] = (4, 4), soft: bool = False
) -> Image.Image:
    """A mask as the webui sees it: mode "L", white where the picture is drawn anew.

    A picture with real transparency is a mask by its alpha (cut at 128 unless `soft`), any other by its grey value.
    blur: standard deviation in x and y, pixels; 0 leaves that direction sharp.
    """
    if min(blur) < 0:
        raise ValueError(f"`mask_blur` must be 0 or more; got {blur}. It is a standard deviation in pixels.")
    gray = mask_levels(mask, soft=soft)
    if invert:
        gray = ImageOps.invert(gray)
    return Image.fromarray(blur_mask(np.array(gray), *blur))


def mask_levels(mask: Image.Image, *, soft: bool) -> Image.Image:
    """The mask as "L": by its alpha where it has any, cut at 128 unless `soft`; else by its grey value."""
    if mask.mode == "RGBA" and mask.getextrema()[3] != (255, 255):
        alpha = mask.getchannel("A")
        return alpha if soft else alpha.point([255 if level > MASK_ALPHA_THRESHOLD else 0 for level in range(256)])
    return mask.convert("L")


def masked_area(mask: Image.Image, size: tuple[int, int], padding: int = 32) -> MaskArea | None:
    """What to draw alone: the box around all that is not black, padded, and grown to the job's aspect ratio.

    size: the job's (width, height). None for a mask that is black all over.
    """
    box = mask.getbbox()
    if box is None:
        return None
    width, height = mask.size
    left, right = max(box[0] - padding, 0), min(box[2] + padding, width)
    top, bottom = max(box[1] - padding, 0), min(box[3] + padding, height)
    ratio = size[0] / size[1]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grow_span(top, bottom, (right - left) / ratio, height)
    else:
        left, right = _grow_span(left, right, (bottom - top) * ratio, width)
    return MaskArea(left, top, right, bottom)


def _grow_span(low: int, high: int, wanted: float, limit: int) -> tuple[int, int]:
    """Grow to `wanted` pixels around the middle, then push the span back into 0 .. limit as far as it fits."""
    missing = int(wanted - (high - low))
    low, high = low - missing // 2, high + missing - missing // 2
    if high >= limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)


def doubled_mask(mask: Image.Image) -> Image.Image:
    """min(2 * level, 255): with the whole picture drawn, the webui lays less of the original's soft edge over it."""
    return mask.point([min(2 * level, 255) for level in range(256)])


def overlay_picture(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The RGB picture with what the mask shows cut out: RGBA, to be laid over the finished picture.

    Goes through premultiplied alpha and back as the webui does, which costs a level here and there at soft edges.
    """
    kept = Image.new("RGBa", picture.size)
    kept.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return kept.convert("RGBA")


def composite_overlay(picture: Image.Image, overlay: Image.Image, area: MaskArea | None = None) -> Image.Image:
    """The finished RGB picture under the overlay; with `area`, first fitted into that part of the overlay's size."""
    if area is not None:
        canvas = Image.new("RGBA", overlay.size)
        canvas.paste(fit_picture(picture, *area.size, "crop"), (area.left, area.top))
        picture = canvas
    picture = picture.convert("RGBA")
    picture.alpha_composite(overlay)
    return picture.convert("RGB")


def latent_masks(mask: Image.Image, latents: Tensor, *, soft: bool = False) -> LatentMasks:
    """What of the latents (b, c, h, w) stays and what is drawn anew, for a mask ("L") of the job's size.

    Without `soft` every cell is one or the other; half of a cell counts as kept.
    """
    channels, rows, columns = latents.shape[-3:]
    small = mask.convert("RGB").resize((columns, rows))
    change = np.asarray(small)[..., 0].astype(np.float32) / np.float32(255.0)
    if not soft:
        change = np.around(change)
    keep, change = (
        torch.from_numpy(part).to(latents.device).expand(channels, rows, columns).contiguous()
        for part in (1.0 - change, change)
    )
    return LatentMasks(keep, change)
