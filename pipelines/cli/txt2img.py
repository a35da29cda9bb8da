"""`txt2img`: pictures from arguments, or from the parameters of other pictures with some of them changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.read import parse_infotext
from ..infotext.styles import read_styles
from .common import EXIT_FAILED, DrawCommand, json_option, print_result, report
from .models import draw_call, model_options, read_setup
from .options import CALL_OPTIONS, call_options, merge_call, read_call, with_usual_sampler
from .outputs import print_paths, save_options, save_to
from .sources import SourceCall, is_parameters_text, source_calls, source_option, style_options, with_styles


@click.command("txt2img", cls=DrawCommand)
@click.argument("prompt", required=False)
@source_option
@save_options
@click.option(
    "--count", "-n", metavar="N", type=click.IntRange(1), default=1, help="How often to draw, seeds counting up."
)
@style_options
@click.option("--dry-run", is_flag=True, help="Show the call; draw nothing.")
@json_option
@call_options(CALL_OPTIONS)
@model_options
def txt2img_command(prompt: str | None, sources: Sequence[str], as_json: bool, **values: Any) -> None:
    """Draw pictures as the webui's txt2img tab does.

    PROMPT is in the webui's grammar: (a:1.2), [a:b:0.5], a AND b, <lora:name:0.8>. A whole parameters text, pasted
    in quotes, is recognised and read as one.
    """
    setup = read_setup(values)
    found, problems = source_calls(sources, prompt, values["styles"], setup.model)
    own = read_call(values)
    if prompt is not None and not is_parameters_text(prompt):
        own["prompt"] = prompt
    known = read_styles(values["styles"] or Path("styles.csv")) if values["style_names"] else {}
    calls = []
    for source in found or [SourceCall("", {}, [])]:
        call = with_styles(merge_call(source.arguments, own), values["style_names"], known)
        if call.get("prompt") is None:
            raise click.UsageError('nothing to draw: give a prompt, as in "a cat", or --from a picture.')
        calls.append(source._replace(arguments=with_usual_sampler(call)))
    for line in problems:
        report(f"Error: {line}", "red")
    print_reports(calls)
    if values["dry_run"]:
        for source in calls:
            print_result({"arguments": source.arguments, "report": source.report}, as_json, _print_call)
    else:
        from .checks import check_calls
        from .models import load_txt2img

        check_calls([source.arguments for source in calls], setup)
        pictures = draw_and_save(load_txt2img(setup), calls, values)
        lines = [line for source in calls for line in source.report]
        print_result({"pictures": pictures, "report": lines}, as_json, print_paths)
    if problems:
        raise click.exceptions.Exit(EXIT_FAILED)


def draw_and_save(pipe: Any, calls: Sequence[SourceCall], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw each call `count` times and save what it gives; path and text of each picture."""
    pictures: list[dict[str, Any]] = []
    for call in (source.arguments for source in calls):
        drawn = 0
        for index in range(values["count"]):
            images, texts = draw_call(pipe, _counted(call, index, drawn))
            pictures += [{"path": str(p), "infotext": t} for p, t in zip(save_to(images, texts, values), texts)]
            drawn += len(images)
            if index == 0 and values["count"] > 1 and call.get("seed") in (None, -1):
                call = {**call, "seed": int(parse_infotext(texts[0])["Seed"])}
    return pictures


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
