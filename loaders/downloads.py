"""Model files that their authors publish outside of the Hub: downloaded once, checked by size and hash, kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

from huggingface_hub import cached_assets_path, constants
from torch.hub import download_url_to_file

from .hashes import file_sha256
from .utils import atomic_write
from .weight_files import WeightFileError


class PublishedFile(NamedTuple):
    """A file with a fixed address and content."""

    name: str  # of the file
    url: str
    size: int  # bytes
    sha256: str


def fetch_published(
    file: PublishedFile,
    what: str,
    *,
    folders: Sequence[str | Path] = (),
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """Where the file lies: in one of the user's `folders`, in the cache, or in the cache after downloading it.

    what: what it is to the user, for messages ('Upscaler "R-ESRGAN 4x+"'). A file in the user's folders is taken by
    its name or, with another weight file's ending, by its stem; it is the user's and not checked. A download is
    checked by size and SHA-256 before it takes its place. Raises WeightFileError naming file, address and folder when
    it is not there and must not or cannot be downloaded (`local_files_only`, HF_HUB_OFFLINE, no network).
    """
    for folder in folders:
        for suffix in (Path(file.name).suffix, ".safetensors", ".pth", ".pt"):
            candidate = Path(folder).expanduser() / (Path(file.name).stem + suffix)
            if candidate.is_file():
                return candidate
    kept = published_cache_folder() / file.name
    if kept.is_file():
        return kept
    if local_files_only or constants.HF_HUB_OFFLINE:
        raise WeightFileError(_published_missing(file, what, kept, "and downloading is switched off"))
    return _download_published(file, what, kept, progress)


def published_cache_folder() -> Path:
    """The folder for such files in the Hub's cache of assets (HF_ASSETS_CACHE, or `assets` in HF_HOME)."""
    return Path(cached_assets_path(library_name="webui-diffusers", namespace="published"))


def _download_published(file: PublishedFile, what: str, kept: Path, progress: bool) -> Path:
    try:
        with atomic_write(kept) as partial:
            download_url_to_file(file.url, str(partial), progress=progress)
            size, found = partial.stat().st_size, file_sha256(partial, cached=False)
            if size != file.size or found != file.sha256:
                raise WeightFileError(
                    f"{what}: what {file.url} gave has {size} bytes and SHA-256 {found}, not the published "
                    f"{file.size} bytes and {file.sha256}. It was cut short or replaced, and was not kept. Try again, "
                    f"or get the file elsewhere and put it at `{kept}`."
                )
    except (URLError, TimeoutError, ConnectionError) as error:
        raise WeightFileError(_published_missing(file, what, kept, f"and downloading it failed: {error}")) from error
    return kept


def _published_missing(file: PublishedFile, what: str, kept: Path, why: str) -> str:
    return (
        f"{what} needs the file {file.name} ({file.size / 1e6:.1f} MB), which is not here ({why}). "
        f"Get it from {file.url} and put it at `{kept}`, or name its path or folder when loading."
    )
