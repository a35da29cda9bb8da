"""Pictures as the API carries them: base64 of a file, in answers with its parameters text inside."""

import base64
import binascii
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ..infotext.files import PICTURE_FORMATS, save_picture
from .requests import MAX_PIXELS


MOST_ASPECT = 16
READ_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")


class BadPicture(ValueError):
    """A picture that cannot be read, with the field that holds it."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"`{name}`: {problem}")
        self.name = name


def decode_bytes(text: str, name: str) -> bytes:
    """The file in a base64 text, with or without "data:…;base64,". URLs and paths are not opened."""
    if text[:5] == "data:":
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(name, "is no base64 of a picture file; URLs and paths are not opened here") from error


def decode_picture(text: str, name: str) -> Image.Image:
    """The picture in a base64 text, as PIL reads it. Raises BadPicture naming the field."""
    data = decode_bytes(text, name)
    try:
        picture = _opened(data)
        if picture.width * picture.height > MAX_PIXELS:
            raise BadPicture(name, f"{picture.width}x{picture.height} is more than {MAX_PIXELS} pixels")
        if max(picture.size) > MOST_ASPECT * min(picture.size):  # fitted to a square it would be that much larger
            raise BadPicture(name, f"{picture.width}x{picture.height} has one side over {MOST_ASPECT} times the other")
        picture.load()
    except BadPicture:
        raise
    except Exception as error:  # a decoder may raise anything over a broken file
        raise BadPicture(name, f"is no picture that can be read ({error})") from error
    return picture


@contextmanager
def decode_file(text: str, name: str) -> Iterator[Path]:
    """A base64 text as a picture file for a while, for readers that want all that the file carries."""
    data = decode_bytes(text, name)
    try:
        picture = _opened(data)
    except Exception:  # a decoder may raise anything over a broken file
        kind = ""
    else:
        kind = str(picture.format).lower()
        if picture.width * picture.height > MAX_PIXELS:
            raise BadPicture(name, f"{picture.width}x{picture.height} is more than {MAX_PIXELS} pixels")
    if f".{kind}" not in PICTURE_FORMATS:
        raise BadPicture(name, f"is no picture of a kind that is read here ({', '.join(PICTURE_FORMATS)})")
    with tempfile.TemporaryDirectory(prefix="webui-diffusers-") as folder:
        path = Path(folder, f"picture.{kind}")
        path.write_bytes(data)
        yield path


def encode_picture(picture: Image.Image, infotext: str | None, kind: str = "png") -> str:
    """base64 of a picture file of `kind` that carries the text."""
    with tempfile.TemporaryDirectory(prefix="webui-diffusers-") as folder:
        path = save_picture(picture, Path(folder, f"picture.{kind}"), infotext, flush=False)
        return base64.b64encode(path.read_bytes()).decode("ascii")


def _opened(data: bytes) -> Image.Image:
    """A picture file, its pixels not yet read. Of kinds alone that PIL reads by itself: EPS would start a program."""
    return Image.open(io.BytesIO(data), formats=READ_FORMATS)
