"""Pictures made larger the webui's way (version 1.10.1), so that its hires pictures come out equal.

    upscaler              what happens
    None, "None"          Lanczos straight to the size
    "Lanczos", "Nearest"  that filter, then as below
    a model               up to three passes in tiles, until large enough, then Lanczos down

Outside of this parity use `upscale_image` (upscale_tiles.py), which has none of the quirks kept here: blue and red
swapped before the model, black left and above of a small picture, seams blended with 8-bit weights.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..options import WEBUI_OPTIONS
from .tile_grid import webui_tile_starts


# The webui's options ESRGAN_tile and ESRGAN_tile_overlap, in pixels of the model's input; tile 0 is the whole picture.
WEBUI_TILE = WEBUI_OPTIONS["ESRGAN_tile"]
WEBUI_TILE_OVERLAP = WEBUI_OPTIONS["ESRGAN_tile_overlap"]

# The webui's upscalers that are a filter and no model. "None" is Lanczos straight to the size.
PIXEL_FILTERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}

# A model is applied again while its output is too small, but no more often than this.
WEBUI_MAX_PASSES = 3

TileProgress = Callable[[int, int], None]  # (tiles done, tiles in all); may raise to interrupt


class UpscalerModel(Protocol):
    """What an upscaling model must be: `load_upscaler` gives one, and any module with a `scale` will do."""

    scale: int
    device: torch.device

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (b, 3, h, w) in [0, 1] to (b, 3, h * scale, w * scale); not necessarily clamped."""
        ...


def enlarge_picture(
    picture: Image.Image,
    width: int,
    height: int,
    upscaler: UpscalerModel | str | None = None,
    *,
    tile: int = WEBUI_TILE,
    overlap: int = WEBUI_TILE_OVERLAP,
    progress: TileProgress | None = None,
    generator: torch.Generator | None = None,
) -> Image.Image:
    """An RGB picture resized to exactly (width, height), as the webui does between the passes of hires fix.

    An upscaler runs only where a side grows. Its target is the picture times the larger of the two ratios, cut off to
    multiples of 8; what it made goes to that target and from there to (width, height), by Lanczos each time.

    generator: the one that later draws the noise of the VAE's encoding. It is advanced by what the webui draws from
    it here: each pass loads the model anew, and making a network draws its first weights, before the file's replace
    them. See `draw_as_constructed` of loaders/upscaler.py; without it that noise differs.
    """
    scale = max(width / picture.width, height / picture.height)
    if scale > 1:
        picture = enlarge_by(
            picture, scale, upscaler, tile=tile, overlap=overlap, progress=progress, generator=generator
        )
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def enlarge_by(
    picture: Image.Image,
    scale: float,
    upscaler: UpscalerModel | str | None,
    *,
    tile: int = WEBUI_TILE,
    overlap: int = WEBUI_TILE_OVERLAP,
    progress: TileProgress | None = None,
    generator: torch.Generator | None = None,
) -> Image.Image:
    """An RGB picture `scale` times as large, its sides cut off to multiples of 8; as it is for None and "None".

    Arguments are those of `enlarge_picture`.
    """
    if upscaler is None or upscaler == "None":
        return picture
    if isinstance(upscaler, str):
        return _webui_upscale(picture, scale, _filter_pass(scale, upscaler))
    return _webui_upscale(picture, scale, _model_pass(upscaler, tile, overlap, progress, generator))


def _webui_upscale(picture: Image.Image, scale: float, one_pass: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture at int(side * scale) // 8 * 8, through up to three passes and Lanczos."""
    target = (int(picture.width * scale) // 8 * 8, int(picture.height * scale) // 8 * 8)
    for _ in range(WEBUI_MAX_PASSES):
        before = picture.size
        picture = one_pass(picture)
        large_enough = picture.width >= target[0] and picture.height >= target[1]
        if large_enough or picture.size == before:
            break
    return picture if picture.size == target else picture.resize(target, Image.Resampling.LANCZOS)


def _filter_pass(scale: float, label: str) -> Callable[[Image.Image], Image.Image]:
    """A pass that is a filter of PIL and makes the picture int(side * scale) large."""
    if label not in PIXEL_FILTERS:
        known = ", ".join(f'"{name}"' for name in ("None", *PIXEL_FILTERS))
        raise ValueError(f'"{label}" is no picture filter. Those are {known}; load a model with `load_upscaler`.')

    def one_pass(picture: Image.Image) -> Image.Image:
        size = (int(picture.width * scale), int(picture.height * scale))
        return picture.resize(size, PIXEL_FILTERS[label])

    return one_pass


def _model_pass(
    model: UpscalerModel, tile: int, overlap: int, progress: TileProgress | None, generator: torch.Generator | None
) -> Callable[[Image.Image], Image.Image]:
    """A pass that is the model, with the random numbers that the webui spends on loading it."""

    def one_pass(picture: Image.Image) -> Image.Image:
        if generator is not None and hasattr(model, "draw_as_constructed"):
            model.draw_as_constructed(generator)
        return webui_model_pass(picture, model, tile=tile, overlap=overlap, progress=progress)

    return one_pass


def webui_model_pass(
    picture: Image.Image,
    model: UpscalerModel,
    *,
    tile: int = WEBUI_TILE,
    overlap: int = WEBUI_TILE_OVERLAP,
    progress: TileProgress | None = None,
) -> Image.Image:
    """One pass of a model over an RGB picture in the webui's tiles: `model.scale` times as large.

    tile: pixels, 0 for the whole picture at once. A picture smaller than a tile is padded to it with black on the left
    and above, which darkens nothing but costs the time of a whole tile and can colour the outermost pixels.
    """
    picture = picture.convert("RGB")
    if tile == 0:
        return run_upscaler_bgr(picture, model)
    rows = webui_tile_starts(picture.height, tile, overlap)
    columns = webui_tile_starts(picture.width, tile, overlap)
    canvas = Image.new("RGB", (picture.width * model.scale, picture.height * model.scale))
    for i, top in enumerate(rows):
        band = Image.new("RGB", (canvas.width, tile * model.scale))
        for j, left in enumerate(columns):
            large = run_upscaler_bgr(picture.crop((left, top, left + tile, top + tile)), model)
            paste_with_ramp(band, large, (left * model.scale, 0), overlap * model.scale)
            if progress is not None:
                progress(i * len(columns) + j + 1, len(rows) * len(columns))
        paste_with_ramp(canvas, band, (0, top * model.scale), overlap * model.scale)
    return canvas


def run_upscaler_bgr(picture: Image.Image, model: UpscalerModel) -> Image.Image:
    """The model on a whole RGB picture, 8 bits in and out, with red and blue swapped around it.

    The webui feeds its models pictures in BGR order although they were trained on RGB. Kept: its pictures depend on
    it; see test_upscale.py, test_the_model_sees_blue_before_red.
    """
    pixels = np.array(picture)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)
    with torch.inference_mode():
        large = model(torch.from_numpy(pixels)[None].to(model.device))
        levels = (large[0].float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu()
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()[:, :, ::-1]))


def paste_with_ramp(canvas: Image.Image, piece: Image.Image, at: tuple[int, int], ramp: int) -> None:
    """Paste at (x, y), one of which is 0; along the other the first `ramp` pixels fade in over what is there.

    Weights are 8-bit: floor(255 * i / ramp). A piece at 0 begins the canvas and does not fade.
    """
    if at == (0, 0) or ramp == 0:
        canvas.paste(piece, at)
        return
    fade = Image.fromarray((np.arange(ramp) * 255 // ramp).astype(np.uint8)[None])
    opaque = Image.new("L", piece.size, 255)
    if at[0]:
        opaque.paste(fade.resize((ramp, piece.height), Image.Resampling.NEAREST), (0, 0))
    else:
        opaque.paste(fade.transpose(Image.Transpose.TRANSPOSE).resize((piece.width, ramp), Image.Resampling.NEAREST))
    canvas.paste(piece, at, opaque)
