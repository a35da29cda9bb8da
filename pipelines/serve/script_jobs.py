"""`script_name` and `script_args` of a request: what is to be drawn, and how it is put together.

script                          script_args, in the order of the webui's controls
Prompt matrix                   put at start, different seeds, "positive"/"negative", "comma"/"space", margin
Prompts from file or textbox    a seed for each line, one random seed for all, "start"/"end", text
X/Y/Z plot                      type, values, list of values, of each axis; and how the sheet looks (see plots.py)
Loopback                        loops, final denoising strength, curve, "None"
SD upscale                      "", tile overlap, upscaler, scale
"""

import random
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from ...loaders.utils import NameFromRequest, unknown_choice
from ..cli.axes import NO_AXIS, Axis
from ..cli.sheet import labelled_sheet
from ..script_settings import LOOPBACK_CURVES, prompt_matrix
from .calls import LARGEST_SEED, Batch, Generation
from .drawn import Drawn, joined
from .requests import MAX_IMAGES, GenerationRequest
from .settings import BadRequestField


MOST_JOBS = 512
_WHERE = "script_args"
_CURVES = tuple(LOOPBACK_CURVES)

# What a line of "Prompts from file or textbox" may say behind "--"; sd_model is a setting.
_LINE_FIELDS = (
    *("prompt", "negative_prompt", "styles", "seed", "subseed", "subseed_strength", "seed_resize_from_h"),
    *("seed_resize_from_w", "sampler_name", "sampler_index", "batch_size", "n_iter", "steps", "cfg_scale", "width"),
    *("height", "restore_faces", "tiling"),
)

Make = Callable[[GenerationRequest], Generation]


@dataclass(frozen=True)
class JobPlan:
    """What a request draws: generations one after the other, and how their images are put together."""

    generations: Sequence[Generation]
    arrange: Callable[[Sequence[Drawn]], Drawn] = joined


class ScriptControl(NamedTuple):
    """One of `script_args`, as script-info tells it."""

    label: str
    value: Any
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None


def argument(args: Sequence[Any], place: int, control: ScriptControl) -> Any:
    """The argument at a place, its control's own where none is given; of the control's kind and in its range.

    Choices go by name or number, switches also as "True" and "False". Raises BadRequestField.
    """
    given = args[place] if place < len(args) else None
    where = f"{_WHERE}[{place}]"
    if given is None:
        return control.value
    if control.choices is not None:
        return _chosen(given, control.choices, where)
    if isinstance(control.value, bool):
        known = {True: True, False: False, "True": True, "False": False, "true": True, "false": False}
        if not isinstance(given, (bool, str)) or given not in known:
            raise BadRequestField(where, f"({control.label}) is true or false; got {given!r:.60}")
        return known[given]
    if isinstance(control.value, str):
        if not isinstance(given, str):
            raise BadRequestField(where, f"({control.label}) is a text; got {given!r:.60}")
        return given
    return _in_range(given, control, where)


def _in_range(given: Any, control: ScriptControl, where: str) -> float:
    low, high = control.minimum, control.maximum
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise BadRequestField(where, f"({control.label}) is a number; got {given!r:.60}")
    if (low is not None and given < low) or (high is not None and given > high):
        raise BadRequestField(where, f"({control.label}) goes from {low} to {high}; got {given!r:.60}")
    return int(given) if isinstance(control.value, int) and given == int(given) else given


def _chosen(given: Any, choices: Sequence[str], where: str) -> str:
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(choices):
        return choices[given]
    found = next((choice for choice in choices if choice.lower() == str(given).strip().lower()), None)
    if found is None:
        raise BadRequestField(where, unknown_choice("choice", str(given)[:100], choices))
    return found


# --- img2img's own


LOOPBACK_CONTROLS = (
    ScriptControl("Loops", 2, minimum=1, maximum=MAX_IMAGES, step=1),
    ScriptControl("Final denoising strength", 0.5, minimum=0, maximum=1, step=0.01),
    ScriptControl("Denoising strength curve", "Linear", _CURVES),
    ScriptControl("Append interrogated prompt at each iteration", "None", ("None",)),
)
SD_UPSCALE_CONTROLS = (
    ScriptControl("", ""),
    ScriptControl("Tile overlap", 64, minimum=0, maximum=1024, step=16),
    ScriptControl("Upscaler", "None"),
    ScriptControl("Scale Factor", 2.0, minimum=1, maximum=8, step=0.05),
)


def loopback_jobs(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    """Loopback: each result drawn over again."""
    args = asked.script_args or []
    loops, strength, curve, _ = (argument(args, place, one) for place, one in enumerate(LOOPBACK_CONTROLS))
    settings = {"loops": loops, "final_strength": strength, "curve": curve}
    return JobPlan([_as_script(make(asked), asked, {"loopback": settings})])


def sd_upscale_jobs(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    """SD upscale: the picture enlarged, drawn tile by tile. `batch_size` is that of tiles."""
    controls = list(SD_UPSCALE_CONTROLS)
    controls[2] = controls[2]._replace(choices=tuple(upscalers))
    args = asked.script_args or []
    _, overlap, upscaler, scale = (argument(args, place, one) for place, one in enumerate(controls))
    settings = {"overlap": overlap, "upscaler": NameFromRequest(upscaler), "scale": scale}
    return JobPlan([_as_script(make(asked), asked, {"sd_upscale": {**settings, "batch_size": asked.batch_size}})])


def _as_script(made: Generation, asked: GenerationRequest, script: dict[str, Any]) -> Generation:
    """A script counts its own seeds: one call for all `n_iter` of it, an image each."""
    first = made.batches[0]
    seeds = [first.seeds[0] + (0 if asked.subseed_strength else i) for i in range(asked.n_iter)]
    subseeds = [first.subseeds[0] + i for i in range(asked.n_iter)]
    return replace(made, batches=[Batch(seeds, subseeds)], arguments={**made.arguments, **script})


# --- many prompts


MATRIX_CONTROLS = (
    ScriptControl("Put variable parts at start of prompt", False),
    ScriptControl("Use different seed for each picture", False),
    ScriptControl("Select prompt", "positive", ("positive", "negative")),
    ScriptControl("Select joining char", "comma", ("comma", "space")),
    ScriptControl("Grid margins (px)", 0, minimum=0, maximum=500, step=2),
)
LINES_CONTROLS = (
    ScriptControl("Iterate seed every line", False),
    ScriptControl("Use same random seed for all lines", False),
    ScriptControl("Insert prompts at the", "start", ("start", "end")),
    ScriptControl("List of prompt inputs", ""),
)


def matrix_jobs(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    """Prompt matrix: every combination of the parts between |, and a sheet of them."""
    args = asked.script_args or []
    at_start, differ, which, join, margin = (argument(args, place, one) for place, one in enumerate(MATRIX_CONTROLS))
    name = "prompt" if which == "positive" else "negative_prompt"
    made = make(asked)
    base, *options = made.arguments[name].split("|")
    if 2 ** min(len(options), 40) > MOST_JOBS:
        raise BadRequestField(name, f"has {len(options)} parts between |; a matrix has at most {MOST_JOBS} pictures")
    texts = prompt_matrix(made.arguments[name], put_at_start=at_start, delimiter=", " if join == "comma" else " ")
    seed, subseed = made.batches[0].seeds[0], made.batches[0].subseeds[0]
    batches = []
    for start in range(0, len(texts), asked.batch_size):
        places = range(start, min(start + asked.batch_size, len(texts)))
        own = {f"{name}s".replace("negative_prompts", "negatives"): [texts[i] for i in places]}
        seeds = [seed + i if differ else seed for i in places]
        batches.append(Batch(seeds, [subseed + i for i in places], **own))

    def arrange(parts: Sequence[Drawn]) -> Drawn:
        drawn = joined(parts)
        if len(drawn.images) < len(texts):
            return drawn  # it was interrupted
        return drawn.sheet_before(labelled_sheet(drawn.images, matrix_axes(options), margin))

    return JobPlan([replace(made, batches=batches)], arrange)


def matrix_axes(options: Sequence[str]) -> tuple[Axis, Axis, Axis]:
    """The columns and rows of a matrix: combinations of the first half of the parts, and of the others."""
    half = (len(options) + 1) // 2

    def axis(parts: Sequence[str]) -> Axis:
        texts = prompt_matrix("|".join(["", *parts]))
        return Axis("with", [text.removeprefix(", ") for text in texts], [dict] * len(texts)) if parts else NO_AXIS

    return axis(options[:half]), axis(options[half:]), NO_AXIS


def lines_jobs(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    """Prompts from file or textbox: a job for each line, which may say more behind --."""
    args = list(asked.script_args or [])
    if len(args) == 3:  # before it could be said where prompts go
        args.insert(2, "start")
    iterates, one_seed, place, text = (argument(args, number, one) for number, one in enumerate(LINES_CONTROLS))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 0 < len(lines) <= MOST_JOBS:
        raise BadRequestField(f"{_WHERE}[3]", f"has {len(lines)} lines; from 1 to {MOST_JOBS} are drawn")
    given = {name: getattr(asked, name) for name in asked.model_fields_set if not name.startswith("script_")}
    if (iterates or one_seed) and asked.seed < 0:
        given["seed"] = random.randint(0, LARGEST_SEED)
    generations = []
    for number, line in enumerate(lines, start=1):
        where = f"{_WHERE}[3], line {number}"
        own = _line_fields(line, where)
        for name in ("prompt", "negative_prompt"):
            if own.get(name) and given.get(name):
                own[name] = " ".join([own[name], given[name]] if place == "start" else [given[name], own[name]])
        if "sd_model" in own:
            own["override_settings"] = {
                **(given.get("override_settings") or {}),
                "sd_model_checkpoint": own.pop("sd_model"),
            }
        try:
            generations.append(make(type(asked)(**{**given, **own})))
        except ValidationError as error:
            first = error.errors()[0]
            raise BadRequestField(where, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if iterates:
            given["seed"] += asked.batch_size * asked.n_iter
    return JobPlan(generations)


def _line_fields(line: str, where: str) -> dict[str, Any]:
    """What a line says.

    >>> _line_fields('--prompt "a cat" --steps 20', "")
    {'prompt': 'a cat', 'steps': '20'}
    """
    if "--" not in line:
        return {"prompt": line}
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise BadRequestField(where, f"cannot be read: {error}") from error
    found: dict[str, list[str]] = {}
    name = "prompt"
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            if name not in (*_LINE_FIELDS, "sd_model"):
                raise BadRequestField(where, unknown_choice("field", name[:100], [*_LINE_FIELDS, "sd_model"]))
            found[name] = []
        else:
            found.setdefault(name, []).append(word)
    return {name: [" ".join(own)] if name == "styles" else " ".join(own) for name, own in found.items()}
