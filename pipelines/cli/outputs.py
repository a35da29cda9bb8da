"""Where pictures go: the options --out, --pattern, --format and --quality, checked before anything is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.filenames import picture_name
from ..infotext.files import PICTURE_FORMATS, save_pictures
from .common import add_options


_ANY_TEXT = "a\nSteps: 1, Sampler: a, Schedule type: a, CFG scale: 1, Seed: 1, Size: 8x8, Model hash: a, Model: a"


def _read_format(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and f".{value.lower().lstrip('.')}" not in PICTURE_FORMATS:
        raise click.BadParameter(f"{value!r} is no picture format known here: {', '.join(PICTURE_FORMATS)}.")
    return value and value.lower().lstrip(".")


def _read_pattern(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        picture_name(value, _ANY_TEXT)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _read_out(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    value = value.expanduser()
    if value.is_file() and value.suffix.lower() not in PICTURE_FORMATS:
        raise click.BadParameter(f"`{value}` is a file. Name a folder, or a picture file.")
    if value.suffix and not value.is_dir() and value.suffix.lower() not in PICTURE_FORMATS and "." in value.suffix:
        known = ", ".join(PICTURE_FORMATS)
        raise click.BadParameter(f"`{value}` ends in no picture format known here ({known}), and is no folder.")
    return value


def out_option(usual: str, text: str = "Folder, or a picture file for one picture.") -> Any:
    """`--out`, with the folder that it is without."""
    kind = click.Path(path_type=Path)
    return click.option("--out", "-o", type=kind, default=usual, show_default=True, callback=_read_out, help=text)


quality_option = click.option(
    "--quality", metavar="N", type=click.IntRange(1, 100), help="1 to 100, for jpg, webp, avif."
)
format_option = click.option(
    "--format", "extension", default="png", show_default=True, callback=_read_format, help="png, jpg, webp, avif."
)
same_format_option = click.option(
    "--format", "extension", callback=_read_format, help="png, jpg, webp, avif; as it was otherwise."
)
pattern_option = click.option(
    "--pattern",
    default="[number]-[seed]",
    show_default=True,
    callback=_read_pattern,
    help="File names, with fields: [number], [seed], [date], [model_name] ...",
)
save_options = add_options(out_option("."), pattern_option, format_option, quality_option)


def save_to(images: Sequence[Any], texts: Sequence[str], values: Mapping[str, Any]) -> list[Path]:
    """Save pictures as the options of `save_options` say; their paths."""
    out, extension, quality = values["out"], values["extension"], values["quality"]
    if out.suffix and not out.is_dir():
        return save_pictures(images, texts, out.parent, out.stem, extension=out.suffix, quality=quality)
    return save_pictures(images, texts, out, values["pattern"], extension=extension, quality=quality)


def print_paths(found: Mapping[str, Any]) -> None:
    """Where the pictures are, a line each."""
    for picture in found["pictures"]:
        click.echo(picture["path"])
