"""The texts that a picture file carries, by the names that PNG gives them.

format             where a text stands
PNG                text chunks, before and behind the pixels; UTF-8 too where the chunk's own code is Latin-1
JPEG, WebP, AVIF   EXIF UserComment: `UNICODE`, a zero byte, UTF-16 with the high byte first, or what others write
                   EXIF Make, Model, ImageDescription of ComfyUI's WebP: "prompt:{...}", "workflow:{...}"
GIF                comment
any                XMP's UserComment (Draw Things), or the pixels themselves (stealth.py)
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from .stealth import read_stealth_text


PARAMETERS_CHUNK = "parameters"
EXIF_FOLDER, USER_COMMENT = 0x8769, 0x9286
COMMENT_UNICODE = b"UNICODE\0"
_COMMENT_CODES = {b"ASCII\0\0\0": "utf-8", b"\0" * 8: "utf-8", b"JIS\0\0\0\0\0": "iso2022_jp"}
_EXIF_TEXTS = (0x010E, 0x010F, 0x0110)
_COMFY_MARK = re.compile(r"(?i)(prompt|workflow):(?=\s*\{)")


def embedded_texts(path: Path) -> dict[str, str]:
    """Texts by name; "parameters" is the one that says how the picture was made.

    Raises ValueError for a file that is no picture, or one of more pixels than Pillow opens.
    """
    try:
        with Image.open(path) as picture:
            texts = _chunks(picture)
            if comment := _user_comment(picture):
                texts.setdefault(PARAMETERS_CHUNK, comment)
            texts = {**_exif_texts(picture), **texts}
            if not texts and (found := _xmp_comment(picture)):
                texts[PARAMETERS_CHUNK] = found
            if not _says_how(texts) and (hidden := read_stealth_text(picture)):
                texts |= _hidden_texts(hidden)
            return texts
    except Exception as error:  # a decoder may raise anything over a broken file: AVIF's a RuntimeError
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"`{path}` does not exist. Check the spelling and the folder.") from error
        raise ValueError(f"`{path}` cannot be read as a picture ({error}). Give a picture, or a .txt file.") from error


def _says_how(texts: dict[str, str]) -> bool:
    """Whether some text is more than a title or the name of a program."""
    return any(name not in ("Software", "Title", "Author", "Creation Time", "dpi") for name in texts)


def _chunks(picture: Image.Image) -> dict[str, str]:
    """Text chunks by name; those behind a PNG's pixels too."""
    if isinstance(picture, PngImagePlugin.PngImageFile):
        return {name: _png_text(value) for name, value in picture.text.items() if not name.startswith("XML:")}
    comment = picture.info.get("comment") if picture.format in ("GIF", "JPEG") else None
    text = _as_text(comment) if comment else ""
    return {PARAMETERS_CHUNK: text} if picture.format == "GIF" and text else {}


def _png_text(value: Any) -> str:
    """A chunk's text. tEXt and zTXt are Latin-1 by the standard, and UTF-8 in what many programs write."""
    if not isinstance(value, str) or isinstance(value, PngImagePlugin.iTXt) or value.isascii():
        return _as_text(value)
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return str(value)


def _user_comment(picture: Image.Image) -> str:
    value = picture.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT)
    if not isinstance(value, bytes):
        return str(value or "").strip("\0")
    code, text = value[:8], value[8:]
    if code == COMMENT_UNICODE:
        return _utf16_text(text)
    return (text.decode(_COMMENT_CODES[code], "replace") if code in _COMMENT_CODES else _as_text(value)).strip("\0")


def _utf16_text(text: bytes) -> str:
    """High byte first, as the webui writes it; or another order or code, where that reads more Latin."""
    codes = ("utf-16-be", "utf-16-le") + (() if b"\0" in text else ("utf-8",))
    readings = [text.decode(code, "replace").strip("\0") for code in codes]
    return max(readings, key=lambda reading: sum(" " <= sign <= "~" for sign in reading))


def _exif_texts(picture: Image.Image) -> dict[str, str]:
    """ComfyUI's graph in the EXIF of a WebP, or a text in the description."""
    texts = {}
    for tag in _EXIF_TEXTS:
        value = picture.getexif().get(tag)
        text = _as_text(value).strip("\0 ") if value else ""
        if mark := _COMFY_MARK.match(text):
            texts[mark[1].lower()] = text[mark.end() :].strip()
        elif tag == _EXIF_TEXTS[0] and re.search(r"Steps: ?\d", text):
            texts[PARAMETERS_CHUNK] = text.removeprefix("parameters:")
    return texts


def _xmp_comment(picture: Image.Image) -> str:
    """The UserComment of XMP, where Draw Things writes its JSON."""
    found = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or ""
    match = re.search(r"<exif:UserComment>.*?<rdf:li[^>]*>(.*?)</rdf:li>", _as_text(found), re.S)
    return html.unescape(match[1]) if match else ""


def _hidden_texts(text: str) -> dict[str, str]:
    """What the pixels hold: a text of the webui, or NovelAI's chunks as JSON."""
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return {PARAMETERS_CHUNK: text}
        if isinstance(data, dict) and ("Comment" in data or "Software" in data):
            return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in data.items() if v is not None}
    return {PARAMETERS_CHUNK: text}


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
