"""Drawing for the page, in the one queue that the API's requests wait in."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...loaders.utils import NameFromText
from .calls import LARGEST_SEED, Generation
from .page_text import PageReading
from .requests import MAX_PIXELS, MAX_SIDE, MAX_STEPS
from .settings import BadRequestField
from .shelf import ModelShelf
from .worker import Progress


HIRES_AS_WRITTEN, HIRES_OFF = "as written", "off"
HIRES_SCALES = {"1.5×": 1.5, "2×": 2.0, "4×": 4.0}
HIRES_USUAL = {"hires_upscaler": NameFromText("Lanczos"), "hires_strength": 0.4}  # where the text has no hires pass


@dataclass(frozen=True)
class PageChanges:
    """What is to be drawn otherwise than the text says; None and HIRES_AS_WRITTEN change nothing."""

    seed: float | None = None
    steps: float | None = None
    hires: str = HIRES_AS_WRITTEN


def page_generation(reading: PageReading, changes: PageChanges, settings: Mapping[str, Any]) -> Generation:
    """A reading with changes as a call of the pipeline. settings: the server's. Raises BadRequestField."""
    if reading.refusal or not reading.call:
        raise BadRequestField("text", reading.refusal or "there is nothing to draw: paste parameters or a prompt")
    call = dict(reading.call)
    if changes.seed is not None:
        call["seed"] = int(changes.seed)
    if call.get("seed", -1) < 0:
        call["seed"] = random.randint(0, LARGEST_SEED)
    if changes.steps is not None:
        call["num_inference_steps"] = int(changes.steps)
    if changes.hires == HIRES_OFF:
        call = {name: value for name, value in call.items() if not name.startswith("hires_")}
    elif changes.hires in HIRES_SCALES:
        own = "hires_scale" in call or "hires_size" in call
        call = {**({} if own else HIRES_USUAL), **call, "hires_scale": HIRES_SCALES[changes.hires]}
        call.pop("hires_size", None)
    _check_limits(call)
    own = {**settings, "sd_vae": "Automatic", **reading.settings}
    return Generation("txt2img", call, [], own, refiner=reading.refiner)


def _check_limits(call: Mapping[str, Any]) -> None:
    """The API's limits hold for the page, the hires pass included."""
    for name, label in (("num_inference_steps", "steps"), ("hires_steps", "hires steps")):
        if not 0 <= call.get(name, 1) <= MAX_STEPS:
            raise BadRequestField(label, f"{call[name]} is not between 1 and {MAX_STEPS}")
    if not 0 <= call["seed"] <= 2**63 - 1:
        raise BadRequestField("seed", f"{call['seed']} is not between 0 and {2**63 - 1}")
    width, height = final_size(call)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadRequestField("size", f"{width}x{height} is more than {MAX_PIXELS} pixels or {MAX_SIDE} on a side")


def final_size(call: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of the finished picture; (0, 0) where the model's own size is drawn."""
    width, height = call.get("width") or 0, call.get("height") or 0
    if any(call.get("hires_size") or ()):
        wide, high = call["hires_size"]
        width, height = wide or width * high // max(height, 1), high or height * wide // max(width, 1)
    elif call.get("hires_scale"):
        width, height = int(width * call["hires_scale"]), int(height * call["hires_scale"])
    return width, height


def draw_page_pictures(shelf: ModelShelf, generation: Generation, progress: Progress) -> list[tuple[Image.Image, str]]:
    """Pictures and their texts. Called by the worker; an interrupted job gives what is drawn so far."""
    call = generation.arguments
    with shelf.drawing(generation) as pipe:
        progress.steps = steps = call["num_inference_steps"]
        if "hires_scale" in call or "hires_size" in call:
            progress.steps += call.get("hires_steps") or steps
        output = pipe(**call, callback_on_step_end=progress.after_step)
    return list(zip(output.images, output.infotexts))
