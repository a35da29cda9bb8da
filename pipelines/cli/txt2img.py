"""`txt2img`: pictures from arguments, or from the parameters of other pictures with some of them changed."""

from typing import Any

import click

from .common import DrawCommand, json_option
from .draw import draw, draw_options
from .models import load_txt2img
from .options import CALL_OPTIONS


@click.command("txt2img", cls=DrawCommand)
@click.argument("prompt", required=False)
@json_option
@draw_options(CALL_OPTIONS)
def txt2img_command(prompt: str | None, **values: Any) -> None:
    """Draw pictures as the webui's txt2img tab does.

    PROMPT is in the webui's grammar: (a:1.2), [a:b:0.5], a AND b, <lora:name:0.8>. A whole parameters text, pasted
    in quotes, is recognised and read as one.
    """
    draw(load_txt2img, CALL_OPTIONS, prompt, values)
