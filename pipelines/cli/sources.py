"""Where a call's arguments come from: pictures, folders of pictures, text files, standard input, or a pasted text."""

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..infotext.files import PICTURE_FORMATS, read_infotext
from ..infotext.read import parse_infotext
from ..infotext.styles import PromptStyle, apply_styles, read_styles
from ..infotext.tidy import PictureText, is_parameters_text, tidy_infotext
from ..infotext.to_call import call_arguments, call_report
from .common import add_options


STANDARD_INPUT = "-"
_SOURCE_SUFFIXES = (*PICTURE_FORMATS, ".txt")

source_option = click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="PATH",
    help="Picture, .txt file or folder of them whose parameters to start from; -: standard input. May be repeated.",
)
style_options = add_options(
    click.option("--style", "style_names", multiple=True, help="A style to merge in; may be repeated."),
    click.option("--styles", type=click.Path(path_type=Path), help="The styles file (styles.csv)."),
)


class SourceCall(NamedTuple):
    """What a source means: arguments of a call, and what of its text cannot be given."""

    name: str
    arguments: dict[str, Any]
    report: list[str]
    fields: Mapping[str, Any] = {}  # as its text has them


def expand_sources(sources: Iterable[str | Path]) -> list[str | Path]:
    """Folders replaced by the pictures and texts in them, in order of name; `-` stays. Raises ValueError for none."""
    found: list[str | Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if str(source) == STANDARD_INPUT or not path.is_dir():
            found.append(STANDARD_INPUT if str(source) == STANDARD_INPUT else path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SOURCE_SUFFIXES and p.is_file())
        if not inside:
            raise ValueError(f"`{source}` has no pictures. Known endings: {', '.join(_SOURCE_SUFFIXES)}.")
        found += inside
    return found


def read_source(source: str | Path) -> PictureText:
    """The parameters of a picture, of a text file, or of what comes on standard input (text or a picture)."""
    if str(source) != STANDARD_INPUT:
        return read_infotext(source)
    content = sys.stdin.buffer.read()
    with tempfile.TemporaryDirectory() as folder:
        is_text = b"\0" not in content[:1024]
        path = Path(folder) / ("standard-input.txt" if is_text else "standard-input.png")
        path.write_bytes(content)
        try:
            return read_infotext(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "standard input")) from error


def call_from(
    text: PictureText, name: str, styles: Path | None = None, model: str | None = None, *, img2img: bool = False
) -> SourceCall:
    """The call that a picture's (or a text file's) parameters mean, and what of them cannot be given.

    model: the one in use; that it has another name or hash is reported, that it is the same is not.
    """
    if not text:
        why = f" that can be read: {'; '.join(text.notes)}." if text.notes else ". Its text may have been removed."
        raise ValueError(f"`{name}` holds no parameters{why}")
    known = None if styles is None else read_styles(styles)
    fields = parse_infotext(text, styles=known)
    notes = [f"{text.tool}: {note.rstrip('.')}." for note in text.notes]
    file, digest = None if model is None else Path(model).expanduser(), None
    if file is not None and file.is_file() and "Model hash" in fields:
        from ...loaders.hashes import model_hash

        digest = model_hash(file)
    lines = call_report(fields, img2img=img2img, styles=known, model_hash=digest)
    if file is not None and fields.get("Model") in (file.name, file.stem) and digest is None:
        lines = [line for line in lines if not line.startswith("Model: ")]  # of the same name; no hash to compare
    notes = [note for note in notes if not any(line in note for line in lines)]  # a program's line is in both
    arguments = call_arguments(fields, img2img=img2img, styles=known, extensions=True)
    arguments.pop("control_units", None)  # `with_control_images` gives those that have an image
    if "detailers" in arguments:
        lines = [line for line in lines if not line.startswith("ADetailer redrew")]
    return SourceCall(name, arguments, notes + lines, fields)


def arguments_from(
    source: str | Path, styles: Path | None = None, model: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """`call_from` of one source, as (arguments, report)."""
    found = call_from(read_source(source), str(source), styles, model)
    return found.arguments, found.report


def source_calls(
    sources: Sequence[str],
    prompt: str | None,
    styles: Path | None = None,
    model: str | None = None,
    *,
    img2img: bool = False,
) -> tuple[list[SourceCall], list[str]]:
    """A call for each source, and what could not be read. A prompt that is a parameters text is a source too.

    One source that cannot be read is an error; of several, it is reported and the others go on.
    """
    if prompt is not None and is_parameters_text(prompt):
        return [call_from(tidy_infotext(prompt), "the text given as the prompt", styles, model, img2img=img2img)], []
    listed = expand_sources(sources)
    calls, problems = [], []
    for source in listed:
        try:
            calls.append(call_from(read_source(source), str(source), styles, model, img2img=img2img))
        except (ValueError, OSError) as error:
            if len(listed) == 1:
                raise
            problems.append(str(error))
    return calls, problems


def with_styles(call: Mapping[str, Any], names: Sequence[str], known: Mapping[str, PromptStyle]) -> dict[str, Any]:
    """The call with styles merged into its prompts. Raises ValueError for an unknown style."""
    if not names:
        return dict(call)
    for name in names:
        if name not in known:
            raise ValueError(f"`--style`: {name!r} is not in the styles file. It has: {', '.join(known)}.")
    prompt, negative = apply_styles(call.get("prompt", ""), call.get("negative_prompt") or "", names, known)
    return {**call, "prompt": prompt, "negative_prompt": negative}
