"""`info`: what a picture says about how it was made."""

import contextlib
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.read import parse_infotext
from ..infotext.to_call import call_arguments, call_report
from .common import EXIT_FAILED, DrawCommand, json_option, print_result, report
from .models import model_problem
from .sources import expand_sources, read_source


_LABEL_WIDTH = 28


@click.command("info", cls=DrawCommand)
@click.argument("pictures", nargs=-1, required=True)
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint file to compare the hash with.")
@click.option("--raw", is_flag=True, help="The text alone, as it is.")
@json_option
def info_command(pictures: Sequence[str], model: Path | None, raw: bool, as_json: bool) -> None:
    """Show the parameters in pictures: fields, the call they mean here, and what it cannot give.

    PICTURES are pictures, .txt files, folders of them, or - for standard input. With --json, a line for each.
    """
    digest = None
    if model is not None:
        from ...loaders.hashes import model_hash

        if problem := model_problem("--model", str(model)):
            raise ValueError(problem)
        digest = model_hash(model) if model.is_file() else None
    failed = False
    for picture in expand_sources(pictures):
        try:
            found = _describe_picture(picture, digest)
        except (ValueError, OSError) as error:
            report(f"Error: {error}", "red")
            failed = True
            continue
        if raw and not as_json:
            click.echo(found["raw"].get("parameters", found["text"]) if found["tool"] == "webui" else found["text"])
        else:
            print_result(found, as_json, _print_picture)
        failed = failed or not found["tool"]
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def _describe_picture(source: str | Path, digest: str | None) -> dict[str, Any]:
    text = read_source(source)
    found: dict[str, Any] = {"path": str(source), "tool": text.tool, "text": str(text), "notes": list(text.notes)}
    if text:
        fields = parse_infotext(text)
        found |= {"fields": fields, "report": call_report(fields, model_hash=digest)}
        found["notes"] = [note for note in found["notes"] if note not in found["report"]]
        with contextlib.suppress(ValueError):  # a picture of another family of models: the report says so
            found["arguments"] = call_arguments(fields)
    found["raw"] = dict(text.raw)
    return found


def _print_picture(found: Mapping[str, Any]) -> None:
    if not found["tool"]:
        click.echo(f"{found['path']}: no parameters.")
        return
    click.secho(f"{found['path']} ({found['tool']})", bold=True)
    filled_in, fields = parse_infotext(""), found.get("fields", {})
    prompts = [label for label in ("Prompt", "Negative prompt") if fields.get(label)]
    for label in (*prompts, *(label for label in fields if label not in prompts)):
        if fields[label] != filled_in.get(label):
            _print_row(label, str(fields[label]))
    if found.get("arguments"):
        click.secho("\nAs a call here", bold=True)
        for name, value in found["arguments"].items():
            _print_row(name, repr(value))
    for note in (*found["notes"], *found.get("report", ())):
        click.secho(f"Note: {note}", fg="yellow")


def _print_row(label: str, value: str) -> None:
    """A label and its value, wrapped beside it on a terminal's width."""
    width = max(shutil.get_terminal_size().columns, 60) - _LABEL_WIDTH
    lines = [line for part in value.splitlines() for line in textwrap.wrap(part, width) or [""]] or [""]
    click.echo(f"{click.style(f'{label:<{_LABEL_WIDTH - 1}}', fg='cyan')} {lines[0]}")
    for line in lines[1:]:
        click.echo(f"{'':<{_LABEL_WIDTH}}{line}")
