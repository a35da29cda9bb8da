"""`info`: what a picture says about how it was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..infotext.files import read_infotext
from ..infotext.read import parse_infotext
from ..infotext.to_call import call_arguments, call_report
from .common import EXIT_FAILED, say, tell, told


@told
def info_command(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or .txt files.")],
    model: Annotated[Path | None, typer.Option(help="Checkpoint file to compare the hash with.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The text alone, as it is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a picture.")] = False,
) -> None:
    """Show the parameters in pictures: fields, the call they mean here, and what it cannot give."""
    digest = None
    if model is not None:
        from ...loaders.hashes import model_hash

        digest = model_hash(model)
    failed = False
    for picture in pictures:
        try:
            found = _describe_picture(picture, digest)
        except ValueError as error:
            say(f"Error: {error}", "red")
            failed = True
            continue
        if raw and not as_json:
            typer.echo(found["text"])
        else:
            tell(found, as_json, _show_picture)
        failed = failed or not found["tool"]
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _describe_picture(path: Path, digest: str | None) -> dict[str, Any]:
    text = read_infotext(path)
    found: dict[str, Any] = {"path": str(path), "tool": text.tool, "text": str(text), "notes": list(text.notes)}
    if text:
        fields = parse_infotext(text)
        found |= {"fields": fields, "arguments": call_arguments(fields)}
        found["report"] = call_report(fields, model_hash=digest)
    if text.tool not in ("", "webui"):
        found["raw"] = dict(text.raw)
    return found


def _show_picture(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found["tool"]:
        typer.echo(f"{found['path']}: no parameters.")
        return
    console = Console()
    table = Table(title=f"{found['path']} ({found['tool']})", show_header=False, title_justify="left")
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    filled_in, fields = parse_infotext(""), found.get("fields", {})
    prompts = [label for label in ("Prompt", "Negative prompt") if fields.get(label)]
    for label in (*prompts, *(label for label in fields if label not in prompts)):
        if fields[label] != filled_in.get(label):
            table.add_row(label, Text(str(fields[label])))
    console.print(table)
    call = Table(title="As a call here", show_header=False, title_justify="left")
    call.add_column(style="bold", no_wrap=True)
    call.add_column(overflow="fold")
    for name, value in found.get("arguments", {}).items():
        call.add_row(name, Text(repr(value)))
    if call.row_count:
        console.print(call)
    for note in (*found["notes"], *found.get("report", ())):
        console.print(Text(f"Note: {note}", style="yellow"))
