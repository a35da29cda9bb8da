"""One img2img job from a request to its finished pictures, as the passes and scripts that follow a drawing take it."""

from typing import Any, NamedTuple

from PIL import Image

from .images.init_image import finish_over_init
from .images.vae import quantize_pixels
from .loras import ActiveLoras
from .output import decoded_pixels
from .passes import StepWatch, redraw
from .request import Request


class RedrawnPictures(NamedTuple):
    """Pictures of one job, in 8 bits cut off, faces restored, laid over."""

    pictures: list[Image.Image]
    flagged: list[bool] | None  # what the safety checker says of each
    embeddings: tuple[str, ...]  # textual inversions in use


def redrawn_pictures(pipe: Any, request: Request, networks: ActiveLoras, watch: StepWatch) -> RedrawnPictures:
    """The pictures of an img2img job. Raises ValueError for latents that are not finite."""
    drawn = redraw(pipe, request, networks, watch)
    pixels, flagged = decoded_pixels(pipe, drawn.latents)
    pictures = [Image.fromarray(levels) for levels in quantize_pixels(pixels)]
    if request.faces is not None:
        pictures = request.faces.edit(pictures)
    finish = finish_over_init(drawn.images, drawn.rows, request.options)
    return RedrawnPictures(pictures if finish is None else finish(pictures), flagged, drawn.embeddings)
