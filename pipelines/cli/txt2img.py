"""`txt2img`: pictures from arguments, or from the parameters of another picture with some of them changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..infotext.files import read_infotext, save_pictures
from ..infotext.read import parse_infotext
from ..infotext.styles import apply_styles, read_styles
from ..infotext.to_call import call_arguments, call_report
from .common import EXIT_USAGE, say, tell, told
from .models import ModelSetup, draw_call, load_txt2img, with_model_options
from .options import merge_call, with_call_options, with_usual_sampler


def arguments_from(
    source: Path, styles: Path | None = None, model: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The call that a picture's (or a text file's) parameters mean, and what of them cannot be given.

    model: the one in use; that it has another name or hash is told, that it is the same is not.
    """
    text = read_infotext(source)
    if not text:
        raise ValueError(
            f"`{source}` holds no parameters"
            + (f" that can be read: {'; '.join(text.notes)}." if text.notes else ". Its text may have been removed.")
        )
    known = read_styles(styles) if styles is not None else None
    fields = parse_infotext(text, styles=known)
    notes = [f"{text.tool}: {note}." for note in text.notes]
    file, digest = None if model is None else Path(model).expanduser(), None
    if file is not None and file.is_file() and "Model hash" in fields:
        from ...loaders.hashes import model_hash

        digest = model_hash(file)
    report = call_report(fields, styles=known, model_hash=digest)
    if file is not None and fields.get("Model") in (file.name, file.stem) and digest is None:
        report = [line for line in report if not line.startswith("Model: ")]  # of the same name; no hash to compare
    return call_arguments(fields, styles=known), notes + report


def with_styles(call: Mapping[str, Any], names: list[str], file: Path | None) -> dict[str, Any]:
    """The call with styles merged into its prompts. Raises ValueError for an unknown style."""
    if not names:
        return dict(call)
    known = read_styles(file or Path("styles.csv"))
    for name in names:
        if name not in known:
            raise ValueError(f"`--style`: {name!r} is not in the styles file. It has: {', '.join(known)}.")
    prompt, negative = apply_styles(call.get("prompt", ""), call.get("negative_prompt") or "", names, known)
    return {**call, "prompt": prompt, "negative_prompt": negative}


@told
@with_model_options
@with_call_options
def txt2img_command(
    setup: ModelSetup,
    prompt: Annotated[str | None, typer.Argument(help="In the webui's grammar: (a:1.2), \\[a:b:0.5], AND.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A picture or .txt file whose parameters to start from.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder, or a picture file for one picture.")] = Path("."),
    pattern: Annotated[
        str, typer.Option(help="Names: [number], [seed], [date], [model_name] ...")
    ] = "[number]-[seed]",
    extension: Annotated[str, typer.Option("--format", help="png, jpg, webp, avif.")] = "png",
    quality: Annotated[int | None, typer.Option(help="1..100, for jpg, webp, avif.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How often to draw, seeds counting up.")] = 1,
    style: Annotated[list[str] | None, typer.Option(help="A style to merge in; may be repeated.")] = None,
    styles: Annotated[Path | None, typer.Option(help="The styles file (styles.csv).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the call; draw nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    **call: Any,
) -> None:
    """Draw pictures as the webui's txt2img tab does."""
    base, report = arguments_from(source, styles, setup.model) if source is not None else ({}, [])
    call = merge_call(base, {**call, **({} if prompt is None else {"prompt": prompt})})
    call = with_styles(call, style or [], styles)
    if call.get("prompt") is None:
        say('Nothing to draw: give a prompt, as in `webui-diffusers txt2img "a cat"`, or --from a picture.', "red")
        raise typer.Exit(EXIT_USAGE)
    call = with_usual_sampler(call)
    for line in report:
        say(f"Note: {line}", "yellow")
    if dry_run:
        tell({"arguments": call, "report": report}, as_json, _show_call)
        return
    pipe = load_txt2img(setup)
    pictures: list[dict[str, Any]] = []
    for index in range(count):
        images, texts = draw_call(pipe, _counted(call, index, len(pictures)))
        paths = _save(images, texts, out, pattern, extension, quality)
        pictures += [{"path": str(path), "infotext": text} for path, text in zip(paths, texts)]
        if index == 0 and count > 1 and call.get("seed") in (None, -1):
            call = {**call, "seed": int(parse_infotext(texts[0])["Seed"])}
    tell({"pictures": pictures, "report": report}, as_json, show_paths)


def _counted(call: Mapping[str, Any], index: int, drawn: int) -> dict[str, Any]:
    """The call of round `index`: a single seed counts on from the pictures drawn so far, as in the webui."""
    seed = call.get("seed")
    if index == 0 or not isinstance(seed, int) or seed < 0:
        return dict(call)
    side = "subseed" if call.get("subseed_strength") else "seed"
    return {**call, side: (call.get(side) or 0) + drawn}


def _save(images: Any, texts: list[str], out: Path, pattern: str, extension: str, quality: int | None) -> list[Path]:
    if out.suffix and not out.is_dir():
        return save_pictures(images, texts, out.parent, out.stem, extension=out.suffix, quality=quality)
    return save_pictures(images, texts, out, pattern, extension=extension, quality=quality)


def show_paths(found: Mapping[str, Any]) -> None:
    """Where the pictures are, a line each."""
    for picture in found["pictures"]:
        typer.echo(picture["path"])


def _show_call(found: Mapping[str, Any]) -> None:
    for name, value in found["arguments"].items():
        typer.echo(f"{name} = {value!r}")
