"""What is settled before a model is loaded: files are found, and all that would stop the calls is said at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ...loaders.utils import unknown_choice
from ..control.units import read_units
from ..detailer_settings import read_detailers
from ..sampling.labels import resolve_names
from ..script_settings import read_loopback, read_sd_upscale, read_soft_inpainting
from .common import report
from .control import unit_paths
from .library import CallFiles, read_library
from .models import ModelSetup, model_problem, with_model_checked
from .sources import SourceCall


_ADVICE = "Name the folders that the missing files lie in (--webui, --lora-folder, ...), or say --without-missing."


class ReadyCalls(NamedTuple):
    """Calls that can be drawn, each with the model it is drawn with, and the files they name."""

    calls: list[tuple[SourceCall, ModelSetup]]
    files: CallFiles


def ready_calls(
    sources: Sequence[SourceCall], own: Mapping[str, Any], setup: ModelSetup, values: Mapping[str, Any]
) -> ReadyCalls:
    """Find what the calls name and check what can be checked. own: the user's arguments; values: a command's options.

    Raises ValueError with everything that stands in the way, each thing once. Loads no weights.
    """
    files = CallFiles(read_library(values), own, without_missing=bool(values.get("without_missing")))
    calls = [files.find(source, setup, usual_model=is_usual_model()) for source in sources]
    refuse_missing(files, call_problems(calls, files))
    return ReadyCalls(calls, files)


def refuse_missing(files: CallFiles, problems: Iterable[str] = ()) -> None:
    """Raises ValueError with all that is missing and all other problems in one list; does nothing without any.

    What may be missing is reported only.
    """
    missing = list(files.missing.values())
    if files.without_missing:
        for line in missing:
            report(f"Left out: {line}", "yellow")
        missing = []
    lines = list(dict.fromkeys([*problems, *missing]))
    if not lines:
        return
    advice = _ADVICE if missing else ""
    if len(lines) > 1:
        said = "\n  ".join([f"{len(lines)} things are in the way, and nothing was loaded:", *lines])
        raise ValueError(f"{said}\n{advice}".rstrip())
    raise ValueError(f"{lines[0]} {advice}".rstrip())


def is_usual_model() -> bool:
    """Whether --model is from the environment: then it is a habit, and no wish for these calls."""
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source("model") if context is not None else None
    return source is click.core.ParameterSource.ENVIRONMENT


def call_problems(calls: Iterable[tuple[SourceCall, ModelSetup]], files: CallFiles) -> Iterable[str]:
    """What is wrong with calls and setups, besides files that are missing."""
    for source, setup in calls:
        is_told = ("checkpoint", str(source.fields.get("Model") or "")) in files.missing and not files.without_missing
        if setup.model or not is_told:
            try:
                with_model_checked(setup)
            except ValueError as error:
                yield str(error)
        for argument, name in (("--upscaler", setup.upscaler), ("--face-restorer", setup.face_restorer)):
            if name and ("/" in name or "." in name) and (problem := model_problem(argument, name)):
                yield problem
        for embedding in setup.embeddings:
            if problem := model_problem("--embedding", embedding):
                yield problem
        yield from _wrong_samplers(source.arguments)
        yield from _wrong_choices(source.arguments)
        yield from _wrong_paths(source.arguments)
        yield from _wrong_units(source.arguments)


def _wrong_samplers(call: Mapping[str, Any]) -> Iterable[str]:
    first = call.get("sampler"), call.get("schedule")
    second = call.get("hires_sampler") or first[0], call.get("hires_schedule") or first[1]
    for name, schedule in dict.fromkeys((first, second)):
        if name is not None:
            try:
                resolve_names(name, schedule)
            except ValueError as error:
                yield str(error)
        elif schedule is not None:
            yield f"`schedule` is {schedule!r}, and no `sampler` is named that it could be of."


def _wrong_choices(call: Mapping[str, Any]) -> Iterable[str]:
    for argument, known in CHOICES.items():
        if call.get(argument) not in (None, *known):
            yield unknown_choice(f"`{argument}`:", call[argument], known)


def _wrong_units(call: Mapping[str, Any]) -> Iterable[str]:
    for argument, read in _READERS.items():
        try:
            read(call.get(argument))
        except ValueError as error:
            yield str(error)


def _wrong_paths(call: Mapping[str, Any]) -> Iterable[str]:
    named = [(name, call[name]) for name in ("image", "mask_image") if isinstance(call.get(name), (str, Path))]
    for argument, path in (*named, *unit_paths(call)):
        if not Path(path).expanduser().is_file():
            yield f"`{argument}`: `{path}`: no such file. Check the spelling, and where it lies."


_READERS: dict[str, Callable[[Any], Any]] = {
    "control_units": read_units,
    "detailers": read_detailers,
    "soft_inpainting": read_soft_inpainting,
    "sd_upscale": read_sd_upscale,
    "loopback": read_loopback,
}
CHOICES = {
    "noise_source": ("gpu", "cpu", "nv"),
    "lora_backend": ("webui", "reference", "peft"),
    "resize_mode": ("stretch", "crop", "fill", "latent"),
    "masked_content": ("original", "fill", "latent noise", "latent nothing"),
    "inpaint_area": ("whole", "masked"),
}
