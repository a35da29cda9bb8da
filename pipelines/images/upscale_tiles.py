"""Pictures of any size made larger in tiles, in bounded memory and without seams.

Each tile is read with a margin of the picture around it, mirrored at the picture's border, so that the model sees what
it would see in the whole picture; the margin's output is thrown away. Where tiles overlap they fade into each other in
float. What is held besides picture and result is one tile and one row of overlaps.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .tile_grid import mirrored_positions, tile_spans
from .upscale import TileProgress, UpscalerModel


UPSCALE_TILE = 256  # pixels that a tile advances at most; 0 is the whole picture at once
UPSCALE_MARGIN = 8  # pixels around a tile that the model sees besides it
UPSCALE_BLEND = 8  # pixels over which neighbours fade into each other

Picture = Image.Image | np.ndarray | Tensor


class TileBox(NamedTuple):
    """A tile in the picture, without its margin: rows top .. bottom - 1, columns left .. right - 1, pixels."""

    top: int
    bottom: int
    left: int
    right: int


class PictureView(NamedTuple):
    """How tiles are read from one kind of picture, and how its result is made and written."""

    height: int
    width: int
    read: Callable[[TileBox], Tensor]  # a box inside the picture -> (b, 3, h, w) float in [0, 1]
    result: Picture  # as the picture, scale times as large
    write: Callable[[Tensor, int, int], None]  # (b, 3, h, w) float, top, left in the result


def upscale_image(
    picture: Picture,
    model: UpscalerModel,
    *,
    tile: int = UPSCALE_TILE,
    margin: int = UPSCALE_MARGIN,
    blend: int = UPSCALE_BLEND,
    progress: TileProgress | None = None,
) -> Picture:
    """The picture `model.scale` times as large, of the same kind as it was given.

    picture: RGB as PIL, uint8 (h, w, 3), or float (b, 3, h, w) in [0, 1]. The first two need no more memory than
    themselves, the result and one tile; of the last the result is float and thus four times as large.
    tile, margin, blend: pixels of the picture; smaller tiles need less memory and more time.
    progress: called as progress(done, total) after each tile; what it raises ends the work.

    >>> large = upscale_image(Image.open("photo.jpg").convert("RGB"), load_upscaler("R-ESRGAN AnimeVideo"))
    """
    view = _picture_view(picture, model.scale)
    rows, columns = tile_spans(view.height, tile, blend), tile_spans(view.width, tile, blend)
    above: Tensor | None = None
    for i, (top, bottom) in enumerate(rows):
        shared_below = bottom - rows[i + 1][0] if i + 1 < len(rows) else 0
        below: list[Tensor] = []
        edge: Tensor | None = None
        for j, (left, right) in enumerate(columns):
            box = TileBox(top, bottom, left, right)
            large = _upscaled_tile(view, box, model, margin)
            if edge is not None:
                _fade_in(large, edge, axis=-1)
            next_left = columns[j + 1][0] if j + 1 < len(columns) else right
            edge = large[..., (next_left - left) * model.scale :].clone() if next_left < right else None
            if above is not None:
                _fade_in(large, above[..., left * model.scale : right * model.scale], axis=-2)
            view.write(large, top * model.scale, left * model.scale)
            if shared_below:
                kept = large[..., -shared_below * model.scale :, : (next_left - left) * model.scale]
                below.append(kept.clone())
            if progress is not None:
                progress(i * len(columns) + j + 1, len(rows) * len(columns))
        above = torch.cat(below, dim=-1) if below else None
    return view.result


def _upscaled_tile(view: PictureView, box: TileBox, model: UpscalerModel, margin: int) -> Tensor:
    """What the model makes of one tile in its margin, without the margin: float32, on the model's device."""
    rows = mirrored_positions(box.top - margin, box.bottom + margin, view.height)
    columns = mirrored_positions(box.left - margin, box.right + margin, view.width)
    inside = TileBox(min(rows), max(rows) + 1, min(columns), max(columns) + 1)
    pixels = view.read(inside)
    pixels = pixels[..., [row - inside.top for row in rows], :][..., [column - inside.left for column in columns]]
    pixels = pixels.to(model.device)
    if pixels.device.type == "cpu":  # convolutions on CPUs are up to twice as fast in this layout
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        large = model(pixels).float()
    height, width = (box.bottom - box.top) * model.scale, (box.right - box.left) * model.scale
    skip = margin * model.scale
    return large[..., skip : skip + height, skip : skip + width].clamp(0.0, 1.0)


def _fade_in(tile: Tensor, before: Tensor, axis: int) -> None:
    """Blend the beginning of `tile` along `axis` with what its neighbour has there, in place, from 0 to 1."""
    length = before.shape[axis]
    weight = (torch.arange(length, device=tile.device, dtype=tile.dtype) + 0.5) / length
    weight = weight if axis == -1 else weight[:, None]
    shared = tile.narrow(axis, 0, length)
    shared.copy_(torch.lerp(before, shared, weight))


def _picture_view(picture: Picture, scale: int) -> PictureView:
    if isinstance(picture, Tensor):
        return _tensor_view(picture, scale)
    if isinstance(picture, np.ndarray):
        return _array_view(picture, scale)
    return _pil_view(picture, scale)


def _tensor_view(pixels: Tensor, scale: int) -> PictureView:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or not pixels.numel():
        raise ValueError(
            f"A tensor to enlarge must be float (b, 3, h, w) in [0, 1]; got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}."
        )
    batch, channels, height, width = pixels.shape
    result = torch.empty((batch, channels, height * scale, width * scale), dtype=pixels.dtype, device=pixels.device)

    def read(box: TileBox) -> Tensor:
        return pixels[..., box.top : box.bottom, box.left : box.right]

    def write(large: Tensor, top: int, left: int) -> None:
        result[..., top : top + large.shape[-2], left : left + large.shape[-1]] = large

    return PictureView(height, width, read, result, write)


def _array_view(pixels: np.ndarray, scale: int) -> PictureView:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"An array to enlarge must be uint8 (h, w, 3); got {pixels.dtype} of shape {pixels.shape}. "
            "Convert it to 8-bit RGB."
        )
    height, width = pixels.shape[:2]
    result = np.empty((height * scale, width * scale, 3), np.uint8)

    def read(box: TileBox) -> Tensor:
        return _levels_to_pixels(pixels[box.top : box.bottom, box.left : box.right])

    def write(large: Tensor, top: int, left: int) -> None:
        result[top : top + large.shape[-2], left : left + large.shape[-1]] = _pixels_to_levels(large)

    return PictureView(height, width, read, result, write)


def _pil_view(picture: Image.Image, scale: int) -> PictureView:
    if not picture.width or not picture.height:
        raise ValueError(f"A picture of {picture.width}x{picture.height} pixels is empty and cannot be enlarged.")
    if picture.mode != "RGB":
        raise ValueError(
            f'A picture to enlarge must have mode "RGB"; this one has "{picture.mode}". Use `flatten_picture` or '
            "`convert`: what is to become of its transparency is not for an upscaler to decide."
        )
    result = Image.new("RGB", (picture.width * scale, picture.height * scale))

    def read(box: TileBox) -> Tensor:
        return _levels_to_pixels(np.asarray(picture.crop((box.left, box.top, box.right, box.bottom))))

    def write(large: Tensor, top: int, left: int) -> None:
        result.paste(Image.fromarray(_pixels_to_levels(large)), (left, top))

    return PictureView(picture.height, picture.width, read, result, write)


def _levels_to_pixels(levels: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 to (1, 3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(levels.astype(np.float32) / np.float32(255.0)).permute(2, 0, 1)[None]


def _pixels_to_levels(pixels: Tensor) -> np.ndarray:
    """(1, 3, h, w) float in [0, 1] to (h, w, 3) uint8, rounded."""
    return (pixels[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
