"""Pictures in whatever form they come, as 8-bit RGB, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class GivenPicture(NamedTuple):
    """One picture of the caller's."""

    rgb: np.ndarray  # (h, w, 3) uint8
    alpha: np.ndarray | None  # (h, w) uint8
    original: Image.Image | np.ndarray  # as given, EXIF orientation applied; arrays are (h, w, c)


def given_pictures(image: Any) -> list[GivenPicture]:
    """Every picture in `image`: a PIL picture, an array (h, w[, c]) or (b, h, w, c), a tensor (c, h, w) or
    (b, c, h, w), or a list of these.

    Arrays and tensors: uint8, uint16, or float in [0, 1]; 1, 3 or 4 channels. PIL: any mode that has colours; 16-bit
    ones are rounded to 8. EXIF orientation is applied. Raises ValueError for what holds no picture.
    """
    if isinstance(image, Image.Image):
        return [_from_pil(image)]
    if isinstance(image, Tensor):
        batch = image.detach().cpu()
        batch = batch.float() if batch.dtype in (torch.float16, torch.bfloat16) else batch
        if batch.ndim not in (3, 4):
            raise ValueError(f"a tensor of pictures is (c, h, w) or (b, c, h, w); got shape {tuple(batch.shape)}.")
        batch = batch if batch.ndim == 4 else batch[None]
        return [_from_array(picture) for picture in batch.permute(0, 2, 3, 1).numpy()]
    if isinstance(image, np.ndarray):
        if image.ndim == 4:
            return [_from_array(picture) for picture in image]
        if image.ndim in (2, 3):
            return [_from_array(image if image.ndim == 3 else image[..., None])]
        raise ValueError(f"an array of pictures is (h, w), (h, w, c) or (b, h, w, c); got shape {image.shape}.")
    if isinstance(image, list | tuple):
        return [picture for item in image for picture in given_pictures(item)]
    raise ValueError(
        f"`image` must be a PIL picture, an array, a tensor or a list of them; got {type(image).__name__}. "
        "For a path or an address, use diffusers.utils.load_image first."
    )


def _from_pil(image: Image.Image) -> GivenPicture:
    if 0 in image.size:
        raise ValueError(f"the picture is {image.width}x{image.height} and has no pixels.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _with_alpha(eight_bit_levels(np.array(image)), image)
    if image.mode == "F":
        raise ValueError("a PIL picture of mode 'F' has no known range. Convert it to mode 'L' or 'RGB' first.")
    has_alpha = "A" in image.mode or "a" in image.mode or "transparency" in image.info
    try:
        plain = image.convert("RGBA" if has_alpha else "RGB")
    except ValueError as error:
        raise ValueError(f"a PIL picture of mode {image.mode!r} cannot become RGB: {error}") from error
    return _with_alpha(np.array(plain), image)


def _from_array(array: np.ndarray) -> GivenPicture:
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"a picture needs pixels and 1, 3 or 4 channels; got shape {array.shape} (h, w, c).")
    return _with_alpha(eight_bit_levels(array), array)


def eight_bit_levels(array: np.ndarray) -> np.ndarray:
    """uint8 from uint8, from 16 bits in any whole-number type, or from floats in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = (float(v) for v in (array.min(), array.max()))
    if np.issubdtype(array.dtype, np.integer):
        if low < 0 or high > 65535:
            raise ValueError(f"whole-number pictures are 8 or 16 bit; this one runs from {low:g} to {high:g}.")
        return np.rint(array / 257).astype(np.uint8)
    if not (np.isfinite(low) and np.isfinite(high)) or low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"float pictures lie in [0, 1]; this one runs from {low:g} to {high:g}. "
            "Scale it first to floats from 0 to 1, or pass uint8 for 0..255."
        )
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _with_alpha(pixels: np.ndarray, original: Image.Image | np.ndarray) -> GivenPicture:
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    rgb = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels, 3, axis=2)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return GivenPicture(np.ascontiguousarray(rgb), alpha, original)


def unchanged_picture(picture: GivenPicture, output_type: str) -> Image.Image | np.ndarray:
    """The picture as it was given, value for value, in the form that `output_type` asks for."""
    if output_type == "pil" and isinstance(picture.original, Image.Image):
        return picture.original.copy()
    if output_type != "pil" and isinstance(picture.original, np.ndarray) and picture.original.dtype.kind == "f":
        values = picture.original
        return values if values.shape[2] >= 3 else np.repeat(values, 3, axis=2)
    return finished_picture(picture.rgb, picture.alpha, output_type)


def finished_picture(rgb: np.ndarray, alpha: np.ndarray | None, output_type: str) -> Image.Image | np.ndarray:
    """(h, w, 3) uint8 with or without alpha as PIL ("pil"), or as (h, w, c) float32 in [0, 1] ("np", "pt")."""
    pixels = rgb if alpha is None else np.dstack([rgb, alpha])
    return Image.fromarray(pixels) if output_type == "pil" else pixels.astype(np.float32) / 255


def batch_of_pictures(pictures: list, output_type: str) -> list | np.ndarray | Tensor:
    """PIL pictures as a list; arrays stacked to (b, h, w, c) ("np") or a tensor (b, c, h, w) ("pt"), unless their
    shapes differ: then a list of (h, w, c) or (c, h, w)."""
    if output_type == "pil":
        return pictures
    same = len({picture.shape for picture in pictures}) == 1
    if output_type == "np":
        return np.stack(pictures) if same else pictures
    tensors = [torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).contiguous() for picture in pictures]
    return torch.stack(tensors) if same else tensors


def pictures_as(pictures: Sequence[Image.Image], output_type: str) -> list | np.ndarray | Tensor:
    """8-bit RGB pictures as "pil", as "np" (b, h, w, 3) or as "pt" (b, 3, h, w), both in [0, 1]; lists where their
    sizes differ."""
    if output_type == "pil":
        return list(pictures)
    return batch_of_pictures([finished_picture(np.asarray(p), None, output_type) for p in pictures], output_type)
