"""Pictures that carry the text of what drew them, as the webui writes it; and reading that text from any picture.

format             where the text stands
PNG                text chunk "parameters"
JPEG, WebP, AVIF   EXIF UserComment: `UNICODE`, a zero byte, UTF-16 with the high byte first
GIF                comment

>>> save_picture(image, "fox.webp", infotext)
>>> call_arguments(parse_infotext(read_infotext("fox.webp")))
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ...loaders.utils import aside_file, atomic_write, flush_to_disk
from .filenames import next_picture_number, picture_name
from .other_programs import ToolText, read_tool_text


PICTURE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".gif": "GIF",
}
PARAMETERS_CHUNK = "parameters"
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_COMMENT_UNICODE = b"UNICODE\0"
_COMMENT_CODES = {b"ASCII\0\0\0": "utf-8", b"\0" * 8: "utf-8", b"JIS\0\0\0\0\0": "iso2022_jp"}


class PictureText(str):
    """A picture's text in the webui's words; "" where it has none.

    tool: the program that wrote it ("webui", "ComfyUI", "InvokeAI", "NovelAI"), "" for none. notes: what could not be
    read, or means something else there. raw: the other program's own data, by its name in the file.
    """

    tool: str = ""
    notes: tuple[str, ...] = ()
    raw: Mapping[str, str] = {}

    @classmethod
    def of(cls, found: ToolText) -> "PictureText":
        text = cls(found.text)
        text.tool, text.notes, text.raw = found.tool, found.notes, found.raw
        return text


def save_picture(
    picture: Image.Image,
    path: str | Path,
    infotext: str | None = None,
    *,
    quality: int | None = None,
    lossless: bool = False,
    texts: Mapping[str, str] = {},
) -> Path:
    """Write a picture with its text, in the format that the file's ending names. An existing file is replaced.

    quality: 1..100 for JPEG, WebP and AVIF; None is 95 (AVIF: 80). lossless: for WebP. texts: further text chunks of a
    PNG by name; other formats have no place for them. The file appears whole or not at all. Raises ValueError for an
    unknown ending, something that is no PIL picture, or a text that the format cannot hold (JPEG: 32,000 characters).

    >>> save_picture(output.images[0], "fox.png", output.infotexts[0])
    """
    path = Path(path)
    with atomic_write(path) as aside:
        _write_picture(picture, aside, path, infotext or "", quality, lossless, texts)
    return path


def save_pictures(
    images: Sequence[Image.Image],
    infotexts: Sequence[str] | None,
    folder: str | Path,
    pattern: str = "[number]-[seed]",
    *,
    extension: str = "png",
    quality: int | None = None,
    lossless: bool = False,
) -> list[Path]:
    """Write pictures under names made from their texts, and never over a file that is there. Gives the paths.

    pattern: text with fields in brackets, `/` for folders; the fields are PICTURE_NAME_FIELDS in picture_names.py.
    Where a name is taken, a number is added. quality, lossless: as in `save_picture`. Raises ValueError for an unknown
    field.

    >>> save_pictures(output.images, output.infotexts, "out", "[date]/[number]-[seed]-[prompt_words]")
    """
    folder = Path(folder)
    texts = list(infotexts) if infotexts is not None else [""] * len(images)
    if len(texts) != len(images):
        raise ValueError(f"`infotexts` has {len(texts)} entries for {len(images)} images: give one text an image.")
    suffix = "." + extension.lower().lstrip(".")
    number = next_picture_number(folder)
    paths = []
    for index, (picture, text) in enumerate(zip(images, texts)):
        name = picture_name(pattern, text, number=number + index, batch_index=index + 1, picture=_pil_picture(picture))
        path = folder / f"{name}{suffix}"
        with aside_file(path) as aside:
            _write_picture(picture, aside, path, text, quality, lossless, {})
            paths.append(_put_where_free(aside, path))
    return paths


def read_infotext(path: str | Path) -> PictureText:
    """The text of a picture (or of a .txt file beside it) in the webui's words, whichever program wrote it.

    Of ComfyUI, InvokeAI and NovelAI it has what could be found, and `.tool`, `.notes` and `.raw` tell the rest. ""
    where the picture has no text. Raises ValueError for a file that is no picture.
    """
    path = Path(path)
    if path.suffix.lower() in (".txt", ".text"):
        text = PictureText(path.read_text(encoding="utf-8-sig").strip())
        text.tool = "webui" if text else ""
        return text
    try:
        with Image.open(path) as picture:
            texts = {name: _as_text(value) for name, value in _picture_texts(picture).items()}
            comment = _user_comment(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"`{path}` does not exist. Check the spelling and the folder.") from error
        raise ValueError(f"`{path}` cannot be read as a picture ({error}). Give a picture, or a .txt file.") from error
    if comment:
        texts.setdefault(PARAMETERS_CHUNK, comment)
    return PictureText.of(read_tool_text(texts))


def write_whole_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _put_where_free(aside: Path, path: Path) -> Path:
    """Give a finished file the name `path`, or that with a number where it is taken, also by another process."""
    flush_to_disk(aside)
    for count in range(1, 100_000):
        chosen = path if count == 1 else path.with_name(f"{path.stem}-{count}{path.suffix}")
        if chosen.exists():
            continue
        try:
            os.link(aside, chosen)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            aside.replace(chosen)
        return chosen
    raise ValueError(f"`{path}`: all numbers behind this name are taken. Choose another pattern or folder.")


def _write_picture(
    picture: Image.Image,
    aside: Path,
    path: Path,
    infotext: str,
    quality: int | None,
    lossless: bool,
    texts: Mapping[str, str],
) -> None:
    """Write to `aside` what is to stand at `path`. Raises ValueError in its name."""
    picture, kind = _pil_picture(picture), PICTURE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"`path`: `{path.name}` ends in no picture format known here ({', '.join(PICTURE_FORMATS)}). Name one."
        )
    if kind == "JPEG" and picture.mode not in ("RGB", "L", "CMYK"):
        picture = picture.convert("RGB")
    options: dict[str, Any] = _text_options(kind, infotext, texts)
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = quality or (80 if kind == "AVIF" else 95)
    if kind == "WEBP":
        options["lossless"] = lossless
    try:
        picture.save(aside, format=kind, **options)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`{path}` cannot be written: {error}. A text of {len(infotext)} characters or a picture of "
            f"{picture.width}x{picture.height} may be more than {kind} holds here; PNG holds any."
        ) from error


def _pil_picture(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise ValueError(
            f"`images`: a {type(picture).__name__} is no PIL picture, so it has no file format. Draw with "
            'output_type="pil", which is the default.'
        )
    return picture


def _text_options(kind: str, infotext: str | None, texts: Mapping[str, str]) -> dict[str, Any]:
    """How PIL's writer of this format is given the texts."""
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for name, value in {**({PARAMETERS_CHUNK: infotext} if infotext else {}), **texts}.items():
            chunks.add_text(name, value)
        return {"pnginfo": chunks}
    if not infotext:
        return {}
    if kind == "GIF":
        return {"comment": infotext.encode("utf-8")}
    exif = Image.Exif()
    exif.endian = ">"
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _COMMENT_UNICODE + infotext.encode("utf-16-be", "surrogatepass")
    return {"exif": exif.tobytes()}


def _picture_texts(picture: Image.Image) -> dict[str, Any]:
    """Text chunks by name; those behind a PNG's pixels too."""
    if isinstance(picture, PngImagePlugin.PngImageFile):
        return dict(picture.text)
    comment = picture.info.get("comment") if picture.format == "GIF" else None
    return {PARAMETERS_CHUNK: comment} if comment else {}


def _user_comment(picture: Image.Image) -> str:
    value = picture.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if not isinstance(value, bytes):
        return str(value or "")
    code, text = value[:8], value[8:]
    if code == _COMMENT_UNICODE:
        return _utf16_text(text)
    return text.decode(_COMMENT_CODES[code], "replace").strip("\0") if code in _COMMENT_CODES else _as_text(value)


def _utf16_text(text: bytes) -> str:
    """High byte first, as the webui writes it; or the other way round, as others do, where that reads more Latin."""
    readings = [text.decode(order, "replace").strip("\0") for order in ("utf-16-be", "utf-16-le")]
    return max(readings, key=lambda reading: sum(" " <= sign <= "~" for sign in reading))


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
