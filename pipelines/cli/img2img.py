"""`img2img`: a picture drawn over, or with a mask a part of it."""

from pathlib import Path
from typing import Any

import click

from .common import DrawCommand, json_option
from .draw import draw, draw_options
from .models import load_img2img
from .options import IMG2IMG_OPTIONS


@click.command("img2img", cls=DrawCommand)
@click.argument("picture", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--mask", "mask_image", type=click.Path(path_type=Path), help="White where the picture is drawn anew.")
@json_option
@draw_options(IMG2IMG_OPTIONS)
def img2img_command(picture: Path, prompt: str | None, mask_image: Path | None, **values: Any) -> None:
    """Draw over a picture as the webui's img2img tab does; with --mask, over a part of it.

    PROMPT is in the webui's grammar, as for txt2img. What is drawn has the picture's size, or that of --width and
    --height, to which the picture is brought by --resize-mode.
    """
    given = {"image": str(picture), **({} if mask_image is None else {"mask_image": str(mask_image)})}
    draw(load_img2img, IMG2IMG_OPTIONS, prompt, values, given)
