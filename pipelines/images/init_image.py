"""What img2img and inpainting begin with: the pictures and the mask as the VAE is to see them, and what is laid over
the finished picture. The order of steps is that of images/masks.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...loaders.utils import unknown_choice
from ..options import WEBUI_OPTIONS
from ..script_settings import SoftInpainting, read_soft_inpainting
from .coerce import eight_bit_levels
from .color_match import match_colors
from .fit import RESIZE_MODES, fill_masked, fit_picture, flatten_picture, resize_latents
from .masks import MaskArea, composite_overlay, doubled_mask, masked_area, overlay_picture, prepare_mask


MASKED_CONTENTS = ("fill", "original", "latent noise", "latent nothing")  # the webui's numbers 0 to 3
PAINTED_AREAS = ("whole", "masked")


@dataclass(frozen=True)
class InitArguments:
    """The arguments of the call about picture and mask, as given."""

    resize_mode: str = "stretch"
    mask_blur: float | tuple[float, float] = 4
    masked_content: str = "original"
    inpaint_area: str = "whole"
    masked_padding: int = 32
    invert_mask: bool = False
    soft_mask: bool = False
    soft: SoftInpainting | None = None

    @property
    def keeps_greys(self) -> bool:
        """Whether a mask keeps its greys, in pixels and latents: cells may be drawn anew in part."""
        return self.soft_mask or self.soft is not None

    @property
    def blur(self) -> tuple[float, float]:
        """Standard deviation along x and y in pixels."""
        return (self.mask_blur, self.mask_blur) if np.isscalar(self.mask_blur) else tuple(self.mask_blur)

    def written(self, *, masked: bool) -> dict[str, Any]:
        """The arguments as a text has them: nothing of a mask that is not there, and one blur."""
        names = ("mask_blur", "masked_content", "inpaint_area", "masked_padding", "invert_mask")
        if not masked:
            return {**dict.fromkeys(names), "inpaint_area": "whole"}
        x, y = self.blur
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found["masked_padding"] = self.masked_padding if self.inpaint_area == "masked" else None
        return {**found, "mask_blur": x if x == y and x > 0 else None}


class GivenImages(NamedTuple):
    """The argument `image`: pictures, or latents (n, c, h, w) that are taken as they are."""

    pictures: list[Image.Image]
    latents: Tensor | None = None

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.pictures) if self.latents is None else len(self.latents)

    def job_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """(width, height) in pixels of what is drawn: as asked for, else the first picture's, cut to cells of 8."""
        if self.latents is None:
            own = self.pictures[0].size
        else:
            own = (self.latents.shape[-1] * 8, self.latents.shape[-2] * 8)
        return width or max(own[0] // 8 * 8, 8), height or max(own[1] // 8 * 8, 8)


@dataclass(frozen=True)
class InitPictures:
    """Pictures ready for the VAE. Lists have one entry a given picture.

    pictures: RGB, of the job's size; with resize mode "latent" of their own. mask: "L", of the job's size, white where
    the picture is drawn anew; None for plain img2img. overlays: RGBA, what is laid over the finished picture, which is
    put into `area` first where only that was drawn. latents: (n, c, h, w) given in place of pictures. originals: what
    the overlays are cut from.
    """

    pictures: list[Image.Image]
    mask: Image.Image | None = None
    overlays: Sequence[Image.Image] = ()
    area: MaskArea | None = None
    latents: Tensor | None = None
    originals: Sequence[Image.Image] = ()


# --- reading the arguments


def init_arguments(given: Mapping[str, Any]) -> InitArguments:
    """The arguments about picture and mask of a call, checked. given: the call's arguments by name.

    `padding_mask_crop` is diffusers' name for an area that is drawn alone, around a mask that it does not blur.
    """
    crop, blur = given.get("padding_mask_crop"), given["mask_blur"]
    area, padding = given["inpaint_area"], given["masked_padding"]
    if crop is not None:
        if given["mask_image"] is None:
            raise ValueError(f"`padding_mask_crop` is {crop} without a `mask_image`, around which to crop: pass one.")
        if padding not in (crop, InitArguments.masked_padding):
            raise ValueError(
                f"`padding_mask_crop` is {crop} and `masked_padding` {padding}: they say the same thing. Pass one."
            )
        area, padding = "masked", crop
    if blur is None:
        blur = InitArguments.mask_blur if crop is None else 0
    asked = InitArguments(
        resize_mode=given["resize_mode"],
        mask_blur=blur,
        masked_content=given["masked_content"],
        inpaint_area=area,
        masked_padding=padding,
        invert_mask=given["invert_mask"],
        soft_mask=given["soft_mask"],
        soft=read_soft_inpainting(given["soft_inpainting"]),
    )
    check_init_arguments(asked)
    return asked


def check_init_arguments(asked: InitArguments) -> None:
    """Raise ValueError for unknown names and bad numbers."""
    for name, value, known in (
        ("resize_mode", asked.resize_mode, RESIZE_MODES),
        ("masked_content", asked.masked_content, MASKED_CONTENTS),
        ("inpaint_area", asked.inpaint_area, PAINTED_AREAS),
    ):
        if value not in known:
            raise ValueError(unknown_choice(f"`{name}`:", value, known))
    if len(asked.blur) != 2 or not all(0 <= blur < 1e6 for blur in asked.blur):
        raise ValueError(
            f"`mask_blur` is {asked.mask_blur!r}. It is the standard deviation of a blur in pixels, 0 or more: a "
            "number, or a pair (x, y)."
        )
    if asked.masked_padding < 0:
        raise ValueError(
            f"`masked_padding` (`padding_mask_crop`) must be 0 or more pixels; got {asked.masked_padding}."
        )


def given_images(image: Any, channels: int) -> GivenImages:
    """Pictures or latents from the argument `image`. channels: those of the VAE's latents.

    Tensors with as many channels as latents have are latents, as in diffusers: transparent pictures come as PIL.
    Raises ValueError for anything that is neither.
    """
    tensors = list(image) if isinstance(image, (list, tuple)) else [image]
    if tensors and all(isinstance(t, Tensor) and t.ndim in (3, 4) and t.shape[-3] == channels for t in tensors):
        return GivenImages([], torch.cat([t if t.ndim == 4 else t[None] for t in tensors]))
    return GivenImages(pictures_to_start_from(image, "image"))


def opaque_images(image: Any, background: str) -> Any:
    """The argument `image` with PIL pictures of other modes made RGB: diffusers would take RGBA for latents."""
    if isinstance(image, (list, tuple)):
        return [opaque_images(each, background) for each in image]
    return flatten_picture(image, background) if isinstance(image, Image.Image) and image.mode != "RGB" else image


def given_mask(mask_image: Any) -> Image.Image | None:
    """The argument `mask_image` as a picture. Raises ValueError for more than one."""
    if mask_image is None:
        return None
    masks = pictures_to_start_from(mask_image, "mask_image")
    if len(masks) > 1:
        raise ValueError(f"`mask_image` has {len(masks)} pictures: one mask holds for the whole batch. Call for each.")
    return masks[0]


def pictures_to_start_from(image: Any, argument: str) -> list[Image.Image]:
    """PIL pictures from a PIL picture, an array (h, w[, c]) or (n, h, w, c), a tensor ([n,] c, h, w), or a list of
    these. Numbers are 8-bit, or floats in [0, 1], which are rounded to 8 bits as the webui knows only those.

    Raises ValueError for anything else, naming `argument`.
    """
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    pictures = [picture for item in items for picture in _pictures_of_item(item, argument)]
    if not pictures:
        raise ValueError(f"`{argument}` is empty: pass a picture, or a list of pictures.")
    return pictures


def _pictures_of_item(item: Any, argument: str) -> list[Image.Image]:
    if isinstance(item, Image.Image):
        return [item]
    if isinstance(item, Tensor) and item.ndim in (2, 3, 4):
        item = item.detach().cpu()
        item = item.float() if item.is_floating_point() else item
        item = (item.movedim(-3, -1) if item.ndim > 2 else item).numpy()
    if not isinstance(item, np.ndarray) or item.ndim not in (2, 3, 4):
        raise ValueError(
            f"`{argument}` must be a PIL picture, an array (h, w, 3), a tensor (3, h, w), or a list of these; got "
            f"{type(item).__name__}. Open a file with `PIL.Image.open(path)` first."
        )
    arrays = list(item) if item.ndim == 4 else [item]
    return [Image.fromarray(_levels_of_array(array, argument)) for array in arrays]


def _levels_of_array(array: np.ndarray, argument: str) -> np.ndarray:
    """(h, w) or (h, w, 3 or 4) uint8."""
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(
            f"`{argument}` has the shape {array.shape} as (height, width, channels), which is no picture. 1, 3 or 4 "
            "channels are expected, last in arrays and first in tensors."
        )
    try:
        return np.ascontiguousarray(eight_bit_levels(array))
    except ValueError as error:
        raise ValueError(f"`{argument}`: {error}") from None


def batch_rows(pictures: int, prompts: int, images_per_prompt: int) -> list[int]:
    """Which picture each image of the batch begins with: one for all, one a prompt, or one an image.

    >>> batch_rows(1, 2, 2), batch_rows(2, 2, 2), batch_rows(4, 2, 2)
    ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3])
    """
    count = prompts * images_per_prompt
    if pictures == 1:
        return [0] * count
    if pictures == prompts:
        return [i for i in range(prompts) for _ in range(images_per_prompt)]
    if pictures == count:
        return list(range(count))
    raise ValueError(
        f"`image` has {pictures} pictures for {prompts} prompts with {images_per_prompt} images each. Give one for "
        "all, one a prompt, or one an image."
    )


# --- before the VAE


def prepare_init(
    images: GivenImages,
    mask: Image.Image | None,
    size: tuple[int, int],
    asked: InitArguments,
    background: str = WEBUI_OPTIONS["img2img_background_color"],
) -> InitPictures:
    """Steps 1 to 7 of images/masks.py. size: (width, height) of the job; background: what transparent parts show.

    A mask of another size than the picture is fitted like it ("whole"), or stretched to it ("masked"). A mask that is
    black all over draws nothing; with inpaint area "masked" there is then plain img2img, as in the webui.
    """
    if images.latents is not None:
        return InitPictures([], latents=_prepared_latents(images.latents, mask, size, asked))
    flat = [flatten_picture(picture, background) for picture in images.pictures]
    if mask is None:
        return InitPictures(_fitted_pictures(flat, size, asked.resize_mode))
    if asked.inpaint_area == "masked":
        return _masked_area_pictures(flat, mask, size, asked)
    mask = fit_picture(_blurred_mask(mask, asked), *size, asked.resize_mode)
    fitted = _fitted_pictures(flat, size, asked.resize_mode)
    originals = [stretched_picture(picture, *size) for picture in fitted]
    overlays = [overlay_picture(picture, doubled_mask(mask)) for picture in originals]
    return InitPictures(_filled_pictures(fitted, mask, asked), mask, overlays, originals=originals)


def _prepared_latents(
    latents: Tensor, mask: Image.Image | None, size: tuple[int, int], asked: InitArguments
) -> Tensor:
    if mask is not None:
        raise ValueError(
            "`image` is latents and there is a `mask_image`, but the picture is needed to lay its kept part over the "
            "finished one. Pass the picture."
        )
    if asked.resize_mode == "latent":
        return resize_latents(latents.float(), *size)
    if tuple(latents.shape[-2:]) != (size[1] // 8, size[0] // 8):
        raise ValueError(
            f"`image` is latents of {latents.shape[-1]}x{latents.shape[-2]} cells, which is no picture of "
            f'{size[0]}x{size[1]} pixels. Leave out `width` and `height`, or use resize_mode="latent".'
        )
    return latents.float()


def _masked_area_pictures(
    flat: list[Image.Image], mask: Image.Image, size: tuple[int, int], asked: InitArguments
) -> InitPictures:
    if len({picture.size for picture in flat}) > 1:
        raise ValueError(
            'With inpaint_area="masked" all pictures must have one size, since one area is cut out of them; got '
            f'{sorted({picture.size for picture in flat})}. Call for each alone, or paint the "whole" picture.'
        )
    if mask.size != flat[0].size:
        mask = mask.resize(flat[0].size, Image.Resampling.LANCZOS)
    mask = _blurred_mask(mask, asked)
    area = masked_area(mask, size, asked.masked_padding)
    if area is None:
        return InitPictures(_fitted_pictures(flat, size, asked.resize_mode))
    overlays = [overlay_picture(picture, mask) for picture in flat]
    cut = [fit_picture(picture.crop(area), *size, "fill") for picture in flat]
    mask = fit_picture(mask.crop(area), *size, "fill")
    return InitPictures(_filled_pictures(cut, mask, asked), mask, overlays, area, originals=flat)


def _blurred_mask(mask: Image.Image, asked: InitArguments) -> Image.Image:
    return prepare_mask(mask, invert=asked.invert_mask, blur=asked.blur, soft=asked.keeps_greys)


def _fitted_pictures(flat: list[Image.Image], size: tuple[int, int], mode: str) -> list[Image.Image]:
    if mode != "latent":
        return [fit_picture(picture, *size, mode) for picture in flat]
    if len({picture.size for picture in flat}) > 1 or min(flat[0].size) < 8:
        raise ValueError(
            'With resize_mode="latent" pictures go through the VAE at their own size, which must be one for all and '
            f"at least 8x8; got {sorted({picture.size for picture in flat})}. Use another resize_mode."
        )
    return flat


def _filled_pictures(pictures: list[Image.Image], mask: Image.Image, asked: InitArguments) -> list[Image.Image]:
    """All contents but the original begin with the colours around the mask, as in the webui."""
    if asked.masked_content == "original":
        return pictures
    return [fill_masked(picture, stretched_picture(mask, *picture.size)) for picture in pictures]


def stretched_picture(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at this size, itself where it has it."""
    return picture if picture.size == (width, height) else fit_picture(picture, width, height, "stretch")


# --- after the VAE


def finish_over_init(
    init: InitPictures, rows: Sequence[int], options: Mapping[str, Any]
) -> Callable[[list[Image.Image]], list[Image.Image]] | None:
    """Steps 13 and 14 of images/masks.py, for the drawn pictures: colours matched where the option says so, and the
    overlay laid over. None where nothing is to be done."""
    corrects = bool(init.pictures and options["img2img_color_correction"])
    overlays = init.overlays if options["overlay_inpaint"] else ()
    if not corrects and not overlays:
        return None

    def finish(drawn: list[Image.Image]) -> list[Image.Image]:
        finished = []
        for picture, row in zip(drawn, rows, strict=True):
            if corrects:
                picture = match_colors(picture, init.pictures[row])
            if overlays:
                overlay = overlays[row]
                if init.area is None and overlay.size != picture.size:  # sides that are no multiple of 8 were cut
                    overlay = overlay.crop((0, 0, *picture.size))
                picture = composite_overlay(picture, overlay, init.area)
            finished.append(picture)
        return finished

    return finish
