"""/controlnet: what the webui's ControlNet extension answers besides drawing."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from PIL import Image

from ...loaders.utils import unknown_choice
from ..control.units import CONTROL_MODULES, INPAINT_MODULES, read_units
from ..images.hints.modules import AUX_MODULES, find_module
from .pictures import decode_picture, encode_picture
from .requests import DetectRequest
from .settings import BadRequestField
from .shelf import ModelShelf
from .worker import Progress


Run = Callable[[Request, str, Callable[[Progress], Any]], Any]  # a job by its name, and its result


def control_routes(shelf: ModelShelf, run: Run) -> APIRouter:
    """The routes of /controlnet. run: gives work to the worker and waits."""
    routes = APIRouter(prefix="/controlnet")

    @routes.get("/version")
    def version() -> dict[str, int]:
        """Of the extension's API."""
        return {"version": 3}

    @routes.get("/settings")
    def settings() -> dict[str, int]:
        """How many units clients should offer; more may be sent."""
        return {"control_net_unit_count": 3}

    @routes.get("/model_list")
    def model_list(update: bool = True) -> dict[str, list[str]]:
        """Names for the units' `model`."""
        return {"model_list": shelf.controlnets()}

    @routes.get("/module_list")
    def module_list(alias_names: bool = True) -> dict[str, Any]:
        """Names for the units' `module`, and what their numbers may be."""
        labels = {one.name: one.label if alias_names else one.name for one in CONTROL_MODULES.values()}
        names = {**labels, **{name: name for name in _other_modules()}}
        return {
            "module_list": list(names.values()),
            "module_detail": {label: _module_detail(name) for name, label in names.items()},
        }

    @routes.post("/detect")
    async def detect(asked: DetectRequest, request: Request) -> dict[str, Any]:
        """What preprocessors make of pictures."""
        return await run(request, "detect", lambda progress: detected(asked, progress))

    return routes


def detected(asked: DetectRequest, progress: Progress) -> dict[str, Any]:
    """The answer to detect: each picture after the module, as a PNG without a text. Raises BadRequestField."""
    if not asked.controlnet_input_images:
        raise BadRequestField("controlnet_input_images", "is empty: send at least one picture")
    numbers = {"processor_res": asked.controlnet_processor_res, "threshold_a": asked.controlnet_threshold_a}
    (unit,) = read_units([{"module": asked.controlnet_module, **numbers, "threshold_b": asked.controlnet_threshold_b}])
    known = [*CONTROL_MODULES, *_other_modules()]
    if unit.module_name not in known:
        raise BadRequestField("controlnet_module", unknown_choice("module", unit.module_name, known))
    if asked.controlnet_masks and unit.module_name not in INPAINT_MODULES:
        raise BadRequestField("controlnet_masks", f"is for the modules {', '.join(INPAINT_MODULES)} alone")
    module = find_module(unit.module_name)
    images = []
    progress.batches = len(asked.controlnet_input_images)
    for number, text in enumerate(asked.controlnet_input_images):
        progress.batch = number
        picture = np.asarray(decode_picture(text, f"controlnet_input_images[{number}]").convert("RGB"))
        found = module(picture, int(unit.processor_res), unit.threshold_a, unit.threshold_b)
        images.append(encode_picture(Image.fromarray(found), None))
    return {"images": images, "info": "Success"}


def _other_modules() -> list[str]:
    """Those of controlnet_aux, where it is installed."""
    return list(AUX_MODULES) if find_spec("controlnet_aux") is not None else []


def _module_detail(name: str) -> dict[str, Any]:
    """The extension's `module_detail`: the sliders of a module that has some."""
    module = CONTROL_MODULES.get(name)
    sliders = []
    if module is not None and module.resolution.high > 1:
        rows = (("Resolution", module.resolution), ("Threshold A", module.threshold_a))
        for label, slider in (*rows, ("Threshold B", module.threshold_b)):
            if slider.high > 1:
                sliders.append({"name": label, "min": slider.low, "max": slider.high, "value": slider.default})
    return {"model_free": False, "sliders": sliders}
