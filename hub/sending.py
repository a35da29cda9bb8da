"""Sending folders to the Hub: tried again where that helps, and checked afterwards; no text shows a token."""

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import HfApi


HTTP_LIBRARIES = ("httpx", "httpx2", "requests")  # of huggingface_hub, by version; their errors are theirs
RETRY_SECONDS = (2.0, 8.0, 20.0)  # waits between tries; huggingface_hub has tried for some seconds before each
_NO_USE = (401, 403, 404, 409, 413)  # answers that come again whatever is tried
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{4,}\b")

Answer = TypeVar("Answer")


class UploadError(RuntimeError):
    """What stopped the upload, and what to do."""


def hub_cause(error: BaseException | None) -> BaseException | None:
    """The error of the Hub, the network or the system that an error is or came from; None for a mistake in here."""
    while error is not None and not isinstance(error, OSError) and _module(error) not in HTTP_LIBRARIES:
        error = error.__cause__
    return error


def status_of(error: BaseException | None) -> int | None:
    """The status of the answer that an error is about; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def retried(what: str, call: Callable[[], Answer], *, unreached: bool = True) -> Answer:
    """What a call gives, tried again after RETRY_SECONDS where the Hub or the network failed and may not next time.

    Everything sent here can be sent twice: the same content makes no second commit. The Hub's `Retry-After` counts.
    unreached: also where there was no answer.
    """
    for wait in RETRY_SECONDS:
        try:
            return call()
        except Exception as error:
            cause = hub_cause(error)
            status = status_of(cause)
            lost = _module(cause) in HTTP_LIBRARIES or isinstance(cause, (ConnectionError, TimeoutError))
            if cause is None or status in _NO_USE or (status is None and not (lost and unreached)):
                raise
            answered = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
            wait = min(float(answered), 300.0) if answered.isdecimal() else wait
            print(f"{what}: {_first_line(cause)}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
    return call()


def send_folder(api: HfApi, repo: str, folder: Path, message: str) -> str:
    """Commit a folder, all of it in one commit or nothing; the commit's name.

    Raises UploadError where the Hub then holds another content than was sent.
    """
    ignored = ["__pycache__/*", "**/__pycache__/*"]

    def send() -> str:
        options = {"folder_path": folder, "commit_message": message, "ignore_patterns": ignored}
        return api.upload_folder(repo_id=repo, **options).oid

    commit = retried(f"{repo}: sending", send)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    found = retried(f"{repo}: looking", lambda: api.get_paths_info(repo, list(files), revision=commit))
    wrong = sorted(set(files) - {entry.path for entry in found if _is_same(entry, files[entry.path])})
    if wrong:
        raise UploadError(
            f"{repo}: the Hub holds something else than was sent as {', '.join(wrong[:3])}, so the commit "
            f"{commit[:12]} was given no tag. Delete these files there, and run this again."
        )
    return commit


def _is_same(entry: Any, path: Path) -> bool:
    """Whether the Hub's sum of a file is ours: SHA-256 of large files, git's of others."""
    content = path.read_bytes() if entry.lfs is None else None
    if content is not None:
        return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
    return entry.lfs.sha256 == digest.hexdigest()


def without_token(text: str, tokens: Iterable[str | None] = ()) -> str:
    """A text in which no token and no password of an address is to be read."""
    for token in tokens:
        text = text.replace(token, "hf_***") if token else text
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1", text)
    return _TOKEN.sub("hf_***", text)


def plain_address(address: str) -> str:
    """An address without user and password."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _module(error: BaseException | None) -> str:
    return type(error).__module__.partition(".")[0]


def _first_line(error: BaseException) -> str:
    status = status_of(error)
    if status is not None:
        return f"the Hub answered {status}"
    return without_token((str(error).strip() or type(error).__name__).splitlines()[0])
