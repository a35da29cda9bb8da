"""Pictures that carry the text of what drew them, as the webui writes it; and reading that text from any picture.

format             where the text stands
PNG                text chunk "parameters"
JPEG, WebP, AVIF   EXIF UserComment: `UNICODE`, a zero byte, UTF-16 with the high byte first
GIF                comment

>>> save_picture(image, "fox.webp", infotext)
>>> call_arguments(parse_infotext(read_infotext("fox.webp")))
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ...loaders.utils import aside_file, atomic_write, flush_to_disk, take_name
from .embedded import COMMENT_UNICODE, EXIF_FOLDER, PARAMETERS_CHUNK, USER_COMMENT, embedded_texts
from .filenames import next_picture_number, picture_name
from .other_programs import read_tool_text
from .tidy import PictureText, tidy_infotext


PICTURE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".gif": "GIF",
}


def save_picture(
    picture: Image.Image,
    path: str | Path,
    infotext: str | None = None,
    *,
    quality: int | None = None,
    lossless: bool = False,
    texts: Mapping[str, str] = {},
    flush: bool = True,
) -> Path:
    """Write a picture with its text, in the format that the file's ending names. An existing file is replaced.

    quality: 1..100 for JPEG, WebP and AVIF; None is 95 (AVIF: 80). lossless: for WebP. texts: further text chunks of a
    PNG by name; other formats have no place for them. The file appears whole or not at all, after a power cut too, or
    with flush=False but then. Raises ValueError for an unknown ending, something that is no PIL picture, or a text
    that the format cannot hold (JPEG: 32,000 characters).

    >>> save_picture(output.images[0], "fox.png", output.infotexts[0])
    """
    path = Path(path)
    with atomic_write(path, flush=flush) as aside:
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
    if path.suffix.lower() in (".txt", ".text", ".json"):
        return tidy_infotext(_file_text(path))
    texts = embedded_texts(path)
    found = read_tool_text(texts)
    if found.tool != "webui":
        return PictureText.of(found)
    text = tidy_infotext(found.text)
    behind = [texts[name] for name in ("postprocessing", "extras") if name in texts]
    text.notes += tuple(f"the finished picture was changed ({what}); here it is as drawn" for what in behind)
    return text


def _file_text(path: Path) -> str:
    """A text file in UTF-8, UTF-16 with its mark, or what Windows wrote before."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"`{path}` does not exist. Check the spelling and the folder.") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace").strip()
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace").strip()


def write_whole_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _put_where_free(aside: Path, path: Path) -> Path:
    """Give a finished file the name `path`, or that with a number where it is taken, also by another process."""
    flush_to_disk(aside)
    for count in range(1, 100_000):
        chosen = path if count == 1 else path.with_name(f"{path.stem}-{count}{path.suffix}")
        try:
            take_name(aside, chosen)
        except FileExistsError:
            continue
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
            chunks.add_text(name, value.encode("utf-8", "replace").decode())  # half a sign is no text
        return {"pnginfo": chunks}
    if not infotext:
        return {}
    if kind == "GIF":
        return {"comment": infotext.encode("utf-8", "replace")}
    exif = Image.Exif()
    exif.endian = ">"
    exif[EXIF_FOLDER] = {USER_COMMENT: COMMENT_UNICODE + infotext.encode("utf-16-be", "surrogatepass")}
    return {"exif": exif.tobytes()}
