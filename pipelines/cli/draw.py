"""What `txt2img` and `img2img` share: sources and arguments into calls, checked, drawn and saved."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.read import parse_infotext
from ..infotext.styles import read_styles
from ..infotext.tidy import is_parameters_text
from .checks import ready_calls
from .common import EXIT_FAILED, add_options, print_result, report
from .control import UNIT_IMAGES, control_image_option, with_control_images
from .dynamic import dynamic_options, filled_calls, is_dynamic
from .library import CallFiles, library_options
from .models import ModelSetup, PipelineCache, draw_call, model_options, read_setup
from .options import CallOption, call_options, merge_call, read_call, with_usual_sampler
from .outputs import print_paths, save_options, save_to
from .sources import SourceCall, source_calls, source_option, style_options, with_styles


def draw_options(table: Mapping[str, CallOption]) -> Callable[[Any], Any]:
    """A decorator: the options of a command that draws, with the arguments of `table`."""
    count = click.option(
        "--count", "-n", metavar="N", type=click.IntRange(1), default=1, help="How often to draw, seeds counting up."
    )
    dry_run = click.option("--dry-run", is_flag=True, help="Show the call; draw nothing.")
    return add_options(
        source_option,
        save_options,
        count,
        style_options,
        dynamic_options,
        dry_run,
        control_image_option,
        call_options(table),
        model_options,
        library_options,
    )


def draw(
    load: Callable[[ModelSetup], Any],
    table: Mapping[str, CallOption],
    prompt: str | None,
    values: Mapping[str, Any],
    given: Mapping[str, Any] = {},
) -> None:
    """Draw what a command's `values` ask for, and print what came of it.

    load: makes the pipeline, once it is known that there is something to draw. given: further arguments of
    the user's, which make the call one over a picture.
    """
    setup, over_picture = read_setup(values), bool(given)
    found, problems = source_calls(values["sources"], prompt, values["styles"], setup.model, img2img=over_picture)
    own = {**read_call(values, table), **given}
    if prompt is not None and not is_parameters_text(prompt):
        own["prompt"] = prompt
    known = read_styles(values["styles"] or Path("styles.csv")) if values["style_names"] else {}
    calls = []
    for source in found or [SourceCall("", {}, [])]:
        call = with_styles(merge_call(source.arguments, own), values["style_names"], known)
        if call.get("prompt") is None:
            raise click.UsageError('nothing to draw: give a prompt, as in "a cat", or --from a picture.')
        call = with_control_images(with_usual_sampler(call), source.fields, values["control_images"])
        filled = filled_calls(call, values) if is_dynamic(values) else [call]
        calls += [source._replace(arguments=one) for one in filled]
    rounds = 1 if is_dynamic(values) else values["count"]
    for line in problems:
        report(f"Error: {line}", "red")
    if values["dry_run"]:
        print_reports(calls)
        for source in calls:
            print_result({"arguments": source.arguments, "report": source.report}, values["as_json"], _print_call)
    else:
        ready = ready_calls(calls, own, setup, values)
        calls = [source for source, _ in ready.calls]
        print_reports(calls)
        pipes = PipelineCache(load)
        pictures = draw_and_save(ready.calls, pipes, ready.files, {**values, "count": rounds})
        lines = [line for source in calls for line in source.report]
        print_result({"pictures": pictures, "report": lines}, values["as_json"], print_paths)
    if problems:
        raise click.exceptions.Exit(EXIT_FAILED)


def draw_and_save(
    calls: Sequence[tuple[SourceCall, ModelSetup]], pipes: PipelineCache, files: CallFiles, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Draw each call `count` times and save what it gives; path and text of each picture."""
    pictures: list[dict[str, Any]] = []
    for source, setup in calls:
        call, drawn = source.arguments, 0
        pipe = pipes.pipe(setup)
        files.attach(pipe, call)
        for index in range(values["count"]):
            images, texts = draw_call(pipe, with_opened_images(_counted(call, index, drawn)))
            pictures += [{"path": str(p), "infotext": t} for p, t in zip(save_to(images, texts, values), texts)]
            drawn += len(images)
            if index == 0 and values["count"] > 1 and call.get("seed") in (None, -1):
                call = {**call, "seed": int(parse_infotext(texts[0])["Seed"])}
    return pictures


def with_opened_images(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with pictures in place of their paths."""
    from PIL import Image

    def open_in(table: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        paths = {name: table[name] for name in names if isinstance(table.get(name), (str, Path))}
        return {**table, **{name: Image.open(Path(path).expanduser()) for name, path in paths.items()}}

    opened = open_in(call, ("image", "mask_image"))
    if call.get("control_units"):
        opened["control_units"] = [open_in(unit, UNIT_IMAGES) for unit in call["control_units"]]
    return opened


def _counted(call: Mapping[str, Any], index: int, drawn: int) -> dict[str, Any]:
    """The call of round `index`: a single seed counts on from the pictures drawn so far, as in the webui."""
    seed = call.get("seed")
    if index == 0 or not isinstance(seed, int) or seed < 0:
        return dict(call)
    name = "subseed" if call.get("subseed_strength") else "seed"
    return {**call, name: (call.get(name) or 0) + drawn}


def print_reports(calls: Sequence[SourceCall]) -> None:
    """What texts ask for and calls cannot give, with the source's name where there are several."""
    for source in calls:
        for line in source.report:
            report(f"Note: {f'{source.name}: ' if len(calls) > 1 else ''}{line}", "yellow")


def _print_call(found: Mapping[str, Any]) -> None:
    for name, value in found["arguments"].items():
        click.echo(f"{name} = {value!r}")
