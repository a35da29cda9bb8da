"""The model of this repository behind an Inference Endpoint: parameters texts or arguments in, pictures out.

A request is JSON: {"inputs": TEXT, "parameters": {ARGUMENT: VALUE}}. TEXT is a prompt, or the "parameters" text of a
picture; `parameters` has arguments of the pipeline's call, which go before what the text says. The answer is
{"images": [{"image": PNG in base64, "parameters": its text}], "notes": [what of the text was not taken over]}. The
PNGs carry their texts.
"""

import base64
import binascii
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image


MOST_PIXELS = 2048 * 2048
"""Of all pictures of a request together."""

MOST_STEPS = 150
PICTURES = ("image", "mask_image", "control_image")
TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "sampler", "schedule")
TEXTS += ("hires_prompt", "hires_negative_prompt", "hires_sampler", "hires_schedule", "noise_source", "masked_content")
NAMES = ("hires_upscaler", "restore_faces")
"""Labels of what the pipeline knows. They are looked up, never opened."""

NUMBERS = ("num_inference_steps", "guidance_scale", "width", "height", "seed", "subseed", "subseed_strength", "eta")
NUMBERS += ("clip_skip", "strength", "num_images_per_prompt", "hires_scale", "hires_steps", "hires_strength", "tiling")
NUMBERS += ("hires_guidance_scale", "guidance_rescale", "controlnet_conditioning_scale", "control_guidance_start")
NUMBERS += ("control_guidance_end", "mask_blur", "masked_padding", "invert_mask", "resize_mode", "inpaint_area")


class EndpointHandler:
    """Loaded once by the endpoint, with the folder of the repository; called with each request's JSON."""

    def __init__(self, path: str = "") -> None:
        self.pipe = load_pipeline(path)
        self.code = sys.modules[type(self.pipe).__module__]  # the one file that lies beside this one
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Draw what a request asks for. Raises ValueError, with the argument's name, for what it cannot ask."""
        call, notes = self.call_of(data)
        drawn = self.pipe(**call)
        texts = drawn.infotexts or [None] * len(drawn.images)
        return {"images": [self.answer(image, text) for image, text in zip(drawn.images, texts)], "notes": notes}

    def call_of(self, data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The pipeline's arguments for a request, and what of its text is not among them."""
        given = data.get("inputs", "")
        if not isinstance(given, str):
            raise ValueError(f"`inputs` is {type(given).__name__}: give a prompt or the parameters text of a picture.")
        call, notes = {"prompt": given}, []
        if self.code.is_parameters_text(given):
            fields = self.code.parse_infotext(self.code.tidy_infotext(given))
            redraws = type(self.pipe).__name__ == "WebUIImg2ImgPipeline"
            call = self.code.call_arguments(fields, img2img=redraws)
            notes = self.code.call_report(fields, img2img=redraws)
        asked = data.get("parameters") or {}
        if not isinstance(asked, dict):
            raise ValueError(f"`parameters` is {type(asked).__name__}: give an object of arguments.")
        call |= {name: self.checked(name, value) for name, value in asked.items()}
        check_size(call)
        return call, notes

    def checked(self, name: str, value: Any) -> Any:
        """An argument's value out of a request: text, number or picture. Nothing in it is opened as a file."""
        if name in PICTURES:
            return picture_from(name, value)
        if name not in TEXTS + NAMES + NUMBERS:
            known = ", ".join(sorted((*PICTURES, *TEXTS, *NAMES, *NUMBERS)))
            raise ValueError(f"`parameters` has {name!r}, which a request cannot set. It can set {known}.")
        kinds = int | float if name in NUMBERS else str
        if not isinstance(value, kinds):
            raise ValueError(f"`{name}` is {value!r}: give a {'number' if name in NUMBERS else 'text'}.")
        return self.code.NameFromText(value) if name in NAMES else value

    def answer(self, image: Image.Image, text: str | None) -> dict[str, str | None]:
        """A picture as PNG in base64, with its text inside and beside it."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.code.save_picture(image, Path(folder) / "picture.png", text)
            return {"image": base64.b64encode(file.read_bytes()).decode("ascii"), "parameters": text}


def load_pipeline(path: str) -> Any:
    """The pipeline of the folder, in half precision on a GPU where there is one."""
    pipe = DiffusionPipeline.from_pretrained(path, trust_remote_code=True)
    return pipe.to("cuda", torch.float16) if torch.cuda.is_available() else pipe.to("cpu", torch.float32)


def picture_from(name: str, value: Any) -> Image.Image:
    """A picture out of base64, with or without the head of a data URL."""
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(str(value).rpartition("base64,")[2], validate=True)))
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"`{name}` has {picture.width}x{picture.height} pixels, more than {MOST_PIXELS}.")
        return picture.convert("L" if name == "mask_image" else "RGB")
    except (binascii.Error, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"`{name}` is no picture in base64 ({error}). Give a PNG, JPEG or WebP.") from error


def check_size(call: dict[str, Any]) -> None:
    """Refuse what would keep the endpoint busy for hours."""
    scale, count = max(1.0, call.get("hires_scale") or 1.0), call.get("num_images_per_prompt") or 1
    sizes = [
        ((call.get("width") or 512) * scale, (call.get("height") or 512) * scale),
        call.get("hires_size") or (0, 0),
    ]
    wide, high = max(sizes, key=lambda size: size[0] * size[1])
    if not wide * high * count <= MOST_PIXELS:
        raise ValueError(f"{count} pictures of {wide:g}x{high:g} are more than {MOST_PIXELS} pixels: ask for fewer.")
    for name in ("num_inference_steps", "hires_steps"):
        if not (call.get(name) or 0) <= MOST_STEPS:
            raise ValueError(f"`{name}` is {call[name]}: {MOST_STEPS} are the most.")
