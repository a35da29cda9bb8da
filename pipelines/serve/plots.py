"""The script "X/Y/Z plot": one job a cell, and the sheet of them.

script_args: type, values, list of values, for X, Y and Z; then draw legend, include lone images, include sub grids,
keep -1 for seeds, vary seeds for X, Y, Z (may be left out), margin, and whether lists are written as text (may be left
out). A type is a label of PLOT_TYPES or its number there, which is the webui's.
"""

import csv
import io
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...loaders.utils import NameFromRequest
from ..cli.axes import NO_AXIS, Axis, read_axis
from ..cli.sheet import labelled_sheet
from ..sampling.labels import resolve_names
from .calls import LARGEST_SEED, Batch, Generation
from .drawn import Drawn, joined
from .requests import GenerationRequest, Img2ImgRequest
from .script_jobs import MOST_JOBS, JobPlan, Make, ScriptControl, argument
from .settings import BadRequestField


# The webui's types in its order; those of one kind of job alone say so.
_TYPES: tuple[tuple[str, str], ...] = (
    *(("Nothing", ""), ("Seed", ""), ("Var. seed", ""), ("Var. strength", ""), ("Steps", "")),
    *(("Hires steps", "txt2img"), ("CFG Scale", ""), ("Image CFG Scale", "img2img"), ("Prompt S/R", "")),
    *(("Prompt order", ""), ("Sampler", ""), ("Hires sampler", "txt2img"), ("Checkpoint name", "")),
    *(("Negative Guidance minimum sigma", ""), ("Sigma Churn", ""), ("Sigma min", ""), ("Sigma max", "")),
    *(("Sigma noise", ""), ("Schedule type", ""), ("Schedule min sigma", ""), ("Schedule max sigma", "")),
    *(("Schedule rho", ""), ("Eta", ""), ("Clip skip", ""), ("Denoising", ""), ("Initial noise multiplier", "")),
    *(("Extra noise", ""), ("Hires upscaler", "txt2img"), ("Cond. Image Mask Weight", "img2img"), ("VAE", "")),
    *(("Styles", ""), ("UniPC Order", ""), ("Face restore", ""), ("Token merging ratio", "")),
    *(("Token merging ratio high-res", ""), ("Always discard next-to-last sigma", ""), ("SGM noise multiplier", "")),
    *(("Refiner checkpoint", ""), ("Refiner switch at", ""), ("RNG source", ""), ("FP8 mode", ""), ("Size", "")),
)
_NOT_DONE = ("Image CFG Scale", "Prompt order", "Cond. Image Mask Weight", "Styles", "FP8 mode")
_NOT_DONE += ("Token merging ratio", "Token merging ratio high-res")
_SETTINGS = {"VAE": "sd_vae", "Refiner checkpoint": "refiner", "Checkpoint name": "model"}  # of a Generation, no call
_NAMES = ("hires_upscaler", "restore_faces")


def plot_types(kind: str) -> tuple[str, ...]:
    """The types of "txt2img" or "img2img", by their numbers."""
    return tuple(label for label, only in _TYPES if only in ("", kind))


def plot_controls(kind: str) -> tuple[ScriptControl, ...]:
    """The arguments of the script, as script-info tells them."""
    axes = []
    for letter in "XYZ":
        axes += [
            ScriptControl(f"{letter} type", "Nothing", plot_types(kind)),
            ScriptControl(f"{letter} values", ""),
            ScriptControl(f"{letter} values", []),
        ]
    return (
        *axes,
        ScriptControl("Draw legend", True),
        ScriptControl("Include Sub Images", False),
        ScriptControl("Include Sub Grids", False),
        ScriptControl("Keep -1 for seeds", False),
        *(ScriptControl(f"Vary seeds for {letter}", False) for letter in "XYZ"),
        ScriptControl("Grid margins (px)", 0, minimum=0, maximum=500, step=2),
        ScriptControl("Use text inputs instead of dropdowns", False),
    )


def plot_jobs(asked: GenerationRequest, make: Make, upscalers: Sequence[str]) -> JobPlan:
    """X/Y/Z plot: x changes fastest, then y, then z; the answer begins with the sheet."""
    kind = "img2img" if isinstance(asked, Img2ImgRequest) else "txt2img"
    args = list(asked.script_args or [])
    if len(args) in (14, 15):  # before seeds could vary
        args[13:13] = [False] * 3
    controls = plot_controls(kind)
    axes = [_axis(args, 3 * i, controls) for i in range(3)]
    legend, lone, sub_grids, keeps, *vary = (argument(args, i, controls[i]) for i in range(9, 16))
    margin = argument(args, 16, controls[16])
    counts = [len(axis.labels) for axis in axes]
    if counts[0] * counts[1] * counts[2] > MOST_JOBS:
        raise BadRequestField("script_args", f"makes {counts} cells; a plot has at most {MOST_JOBS}")
    if sub_grids and axes[2] is not NO_AXIS:
        raise BadRequestField("script_args[11]", "(sub grids) are not made here: ask for each by itself")
    made = make(asked)
    generations = []
    for z, y, x in itertools.product(*(range(count) for count in reversed(counts))):
        shift = sum(
            place * size for place, size, on in zip((x, y, z), (1, counts[0], counts[0] * counts[1]), vary) if on
        )
        if keeps and asked.seed < 0:
            shift = random.randint(0, LARGEST_SEED) - made.batches[0].seeds[0]
        changes = [axes[2].changes[z], axes[1].changes[y], axes[0].changes[x]]
        generations.append(_cell(made, changes, shift))
    shown = axes if legend else [Axis("", [""] * count, [dict] * count) for count in counts]

    def arrange(parts: Sequence[Drawn]) -> Drawn:
        cells = [part.images[0] if part.images else None for part in parts]
        if not any(cells):
            return Drawn()
        cells += [None] * (len(generations) - len(cells))  # it was interrupted
        drawn = joined(parts)
        sheet = drawn.sheet_before(labelled_sheet(cells, shown, margin))
        return sheet if lone else replace(sheet, images=sheet.images[:1], texts=sheet.texts[:1])

    return JobPlan(generations, arrange)


def _axis(args: Sequence[Any], place: int, controls: Sequence[ScriptControl]) -> Axis:
    where = f"script_args[{place}]"
    label = argument(args, place, controls[place])
    if label == "Nothing":
        return NO_AXIS
    if label in _NOT_DONE:
        raise BadRequestField(where, f"({label}) is not done here")
    listed = args[place + 2] if place + 2 < len(args) else None
    if isinstance(listed, list) and listed:
        values = [str(value) for value in listed]
    else:
        text = argument(args, place + 1, controls[place + 1])
        values = next(csv.reader([" ".join(text.splitlines())], skipinitialspace=True), [])
    if not values:
        raise BadRequestField(f"script_args[{place + 1}]", f"({label}) has no values")
    if label in _SETTINGS:
        return Axis(label, values, [_setting_change(_SETTINGS[label], value) for value in values])
    try:
        for value in values if label in ("Sampler", "Hires sampler") else ():
            resolve_names(value)
        return read_axis(f"{label}={_written(values)}")
    except ValueError as error:
        raise BadRequestField(f"script_args[{place + 1}]", str(error)) from error


def _setting_change(name: str, value: str) -> Any:
    return lambda call: {**call, name: value}


def _written(values: Sequence[str]) -> str:
    """Values in one line, with quotes where a comma is inside."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _cell(made: Generation, changes: Sequence[Any], shift: int) -> Generation:
    """The generation of one cell: what the axes change, and a seed further on by `shift`."""
    first = made.batches[0]
    call: Mapping[str, Any] = {**made.arguments, "seed": first.seeds[0], "subseed": first.subseeds[0]}
    for change in changes:
        try:
            call = change(call)
        except ValueError as error:
            raise BadRequestField("script_args", str(error)) from error
    own = dict(call)
    for name in ("seed", "subseed"):
        if own[name] < 0:
            own[name] = random.randint(0, LARGEST_SEED)
    seeds = own.pop("seed") - first.seeds[0] + shift, own.pop("subseed") - first.subseeds[0]
    settings = {**made.settings}
    if "model" in own:
        settings["sd_model_checkpoint"] = own.pop("model")
    if "sd_vae" in own:
        settings["sd_vae"] = own.pop("sd_vae")
    if made.kind == "img2img" and "hires_strength" in own:
        own["strength"] = own.pop("hires_strength")
    for name in _NAMES:
        if isinstance(own.get(name), str):
            own[name] = NameFromRequest(own[name])
    batches = [
        Batch([seed + seeds[0] for seed in batch.seeds], [seed + seeds[1] for seed in batch.subseeds])
        for batch in made.batches
    ]
    refiner = own.pop("refiner", made.refiner)
    return replace(made, arguments=own, batches=batches, settings=settings, refiner=refiner)
