"""The scripts that a request may select or have always on: what there is, and what each draws."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...loaders.utils import unknown_choice
from .calls import Generation, check_limits
from .plots import plot_controls, plot_jobs
from .requests import GenerationRequest, Img2ImgRequest
from .script_jobs import (
    LINES_CONTROLS,
    LOOPBACK_CONTROLS,
    MATRIX_CONTROLS,
    SD_UPSCALE_CONTROLS,
    JobPlan,
    Make,
    ScriptControl,
    lines_jobs,
    loopback_jobs,
    matrix_jobs,
    sd_upscale_jobs,
)
from .scripts import ALWAYS_ON, script_arguments
from .settings import BadRequestField


MOST_IMAGES = 4096  # of one request


class Script(NamedTuple):
    """A script that a request may select."""

    title: str
    jobs: Callable[[GenerationRequest, Make, Sequence[str]], JobPlan]
    controls: Callable[[str], Sequence[ScriptControl]]  # by "txt2img" or "img2img"
    img2img_only: bool = False


SCRIPTS = (
    Script("Prompt matrix", matrix_jobs, lambda kind: MATRIX_CONTROLS),
    Script("Prompts from file or textbox", lines_jobs, lambda kind: LINES_CONTROLS),
    Script("X/Y/Z plot", plot_jobs, plot_controls),
    Script("Loopback", loopback_jobs, lambda kind: LOOPBACK_CONTROLS, img2img_only=True),
    Script("SD upscale", sd_upscale_jobs, lambda kind: SD_UPSCALE_CONTROLS, img2img_only=True),
)


def plan_jobs(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    """What a request draws. make: a request as one Generation. upscalers: labels, by their numbers.

    Raises BadRequestField.
    """
    extra = script_arguments(asked)
    refiner = extra.pop("refiner", None)

    def made(request: GenerationRequest) -> Generation:
        one = make(request)
        return replace(one, arguments={**one.arguments, **extra}, refiner=refiner or one.refiner)

    plan = _selected(asked, made, upscalers)
    for generation in plan.generations:
        check_limits(generation)
    count = sum(len(batch.seeds) for one in plan.generations for batch in one.batches)
    if count > MOST_IMAGES:
        raise BadRequestField("n_iter", f"and the script make {count} pictures; at most {MOST_IMAGES} are drawn")
    return plan


def _selected(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    name = (asked.script_name or "").strip()
    if name.lower() in ("", "none"):
        return JobPlan([make(asked)])
    known = [script for script in SCRIPTS if isinstance(asked, Img2ImgRequest) or not script.img2img_only]
    script = next((one for one in known if one.title.lower() == name.lower()), None)
    if script is None:
        raise BadRequestField("script_name", unknown_choice("script", name[:100], [one.title for one in known]))
    return script.jobs(asked, make, upscalers)


def script_names(kind: str) -> list[str]:
    """The webui's row of `scripts` for "txt2img" or "img2img": small letters, those that are always on first."""
    selected = [one.title.lower() for one in SCRIPTS if kind == "img2img" or not one.img2img_only]
    return [*_always_on(kind), *selected]


def script_rows() -> list[dict[str, Any]]:
    """The webui's rows of script-info."""
    rows = []
    for kind in ("txt2img", "img2img"):
        rows += [
            {"name": name, "is_alwayson": True, "is_img2img": kind == "img2img", "args": []}
            for name in _always_on(kind)
        ]
        for script in SCRIPTS:
            if kind == "img2img" or not script.img2img_only:
                args = [
                    {**one._asdict(), "choices": None if one.choices is None else list(one.choices)}
                    for one in script.controls(kind)
                ]
                name = script.title.lower()
                rows.append({"name": name, "is_alwayson": False, "is_img2img": kind == "img2img", "args": args})
    return rows


def _always_on(kind: str) -> list[str]:
    return [name for name in ALWAYS_ON if kind == "img2img" or name != "soft inpainting"]
