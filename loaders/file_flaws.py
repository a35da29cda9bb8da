"""What is wrong with a file that should hold weights, in words for a message; and what its first bytes say."""

import json
from pathlib import Path


def is_text(head: bytes) -> bool:
    """Whether these are ASCII letters."""
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)


def what_file_it_is(head: bytes) -> str:
    """What a file that is no weight file seems to be, and what to do."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "it is a web page, saved by a download that needed a login. Download it while logged in."
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer that git keeps in place of a large file. Run `git lfs pull`, or download the file."
    if start.startswith(b"gguf"):
        return "it is a GGUF file, which diffusers' pipelines of this kind do not use. Get the .safetensors version."
    if is_text(head):
        return f"it is text, beginning with {head[:24].decode('ascii')!r}. Download the file itself."
    return f"it begins with {head[:8].hex(' ')}, as no format known here does. Get the .safetensors version."


def error_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def safetensors_header(path: Path) -> dict:
    """The header of a file that `safe_open` has accepted: eight bytes of length, then JSON.

    Read here for the order of its keys, which older versions of safetensors do not tell.
    """
    with path.open("rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))


def safetensors_flaw(path: Path, error: Exception) -> str:
    """Why the library refuses a file, in three facts."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if size < 8 or not 2 <= length <= size - 8:
        return (
            f"`{path}` is truncated, or no .safetensors file: its first eight bytes promise a header of {length} "
            f"bytes, and {max(size - 8, 0)} follow. Fetch it again."
        )
    return (
        f"`{path}` is truncated or damaged ({error_line(error)}): its table of contents is not one, or does not fit "
        "its content. Fetch it again."
    )
