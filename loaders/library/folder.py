"""A webui's files, found by name, title, hash and alias; read only.

>>> library = WebUIFolder("~/stable-diffusion-webui")
>>> library.find("checkpoint", "dreamshaper_8 [879db523c3]")
LibraryFile(checkpoint, dreamshaper_8, .../models/Stable-diffusion/dreamshaper_8.safetensors)
>>> library = WebUIFolder(lora_folder="~/loras", models_folder="~/models")
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..utils import LOGGER, near_names
from .index import FileIndex
from .layout import KNOWN_SUFFIXES, STYLES_FILE, files_of_kind, known_kinds, library_folders
from .webui_hashes import webui_hashes


HASHED_AT_ONCE = 1 << 35  # bytes of files of one kind that are hashed for one look-up; more only by `hash_files`
_HASH_LENGTH = 8  # digits that a hash has at least
_TITLE = re.compile(r"^(.*?)\s*\[([0-9a-fA-F]{8,64})\]\s*$", re.DOTALL)
_WEBUI_WORDS = {
    "checkpoint": "checkpoint",
    "lora": "lora",
    "embedding": "textual_inversion",
    "hypernetwork": "hypernet",
}
_FORBIDDEN_ALIASES = {"none", "addams"}


class LibraryFile(NamedTuple):
    """One file that a library knows."""

    kind: str
    name: str  # without folder and ending
    location: str  # its path
    place: str  # below its folder, with slashes: "anime/x.safetensors"
    sha256: str | None  # of the whole file, where it is known without reading it
    stat: os.stat_result  # its facts when it was found

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.location)

    @property
    def short_hash(self) -> str:
        """The first 10 digits of `sha256` (AutoV2); "" where it is not known."""
        return (self.sha256 or "")[:10]

    @property
    def title(self) -> str:
        """As the webui's lists have it: "anime/x.safetensors [6ce0161689]"."""
        return f"{self.place} [{self.short_hash}]" if self.sha256 else self.place

    def __repr__(self) -> str:
        return f"LibraryFile({self.kind}, {self.name}, {self.path})"


class WebUIFolder:
    """The files of a webui's folder, of single folders, or of both.

    path: the folder that holds `models` and `embeddings` (the webui's, Forge's). folders: models_folder, lora_folder,
    vae_folder, embeddings_folder, upscaler_folder, face_folder, controlnet_folder, detector_folder,
    hypernetworks_folder, taesd_folder; they come before the webui's own.
    Nothing is read before it is asked for, and nothing is ever written there; what was worked out is kept in the
    user's cache. Raises ValueError for folders that are not there.
    """

    def __init__(self, path: str | Path | None = None, **folders: str | Path):
        self.path = None if path is None else Path(path).expanduser()
        self._folders = library_folders(self.path, folders)
        if not any(self._folders.values()):
            raise ValueError("A library needs a webui's folder, or single ones such as `models_folder`. Name some.")
        self._index = FileIndex("\n".join(str(f.absolute()) for kind in self._folders.values() for f in kind))
        self._files: dict[str, list[LibraryFile]] = {}
        self._names: dict[str, dict[str, LibraryFile]] = {}
        self._told: dict[str, dict[str, tuple[float, str]]] | None = None

    @property
    def styles(self) -> Path | None:
        """The webui's file of styles, where there is one."""
        place = None if self.path is None else self.path / STYLES_FILE
        return place if place is not None and place.is_file() else None

    def folders(self, kind: str) -> list[Path]:
        """Where files of a kind are looked for: a key of FILE_KINDS ("checkpoint", "vae", "lora", ...)."""
        known_kinds([kind])
        return list(self._folders[kind])

    def files(self, kind: str) -> list[LibraryFile]:
        """All files of a kind, folder by folder in natural order; looked for once, until `refresh`."""
        known_kinds([kind])
        known = self._files  # `refresh`, perhaps of another thread, puts another one in its place
        if kind not in known:
            known[kind] = [
                LibraryFile(
                    kind, _name_of(location), location, place, self._known_sha256(kind, location, place, stat), stat
                )
                for folder in self._folders[kind]
                for location, place, stat in files_of_kind(kind, folder)
            ]
        return known[kind]

    def refresh(self) -> None:
        """Look at the folders again when next asked."""
        self._files, self._names, self._told = {}, {}, None

    def find(self, kind: str, name: str | None = None, hash: str | None = None) -> LibraryFile | None:
        """The file that a text means, or None. A hash that a file has goes before a name, as in the webui's paste.

        name: with or without folder and ending, in any case; the webui's title "name [hash]"; for networks also their
        alias. hash: AutoV2, SHA-256, the old one of 8 digits, that of the tensor data, or that which the file's
        metadata tells; as many digits as there are, at least 8. Files that were never hashed are hashed where the name
        does not settle it, with a progress bar, up to 32 GiB of one kind. Paths in a name are compared, never opened.
        """
        title = _TITLE.match(name or "")
        if title is not None and self._names_of(kind).get((name or "").lower()) is None:
            name, hash = title[1], hash or title[2]
        named = self._by_name(kind, name) if name else None
        digest = (hash or "").strip().lower()
        if len(digest) < _HASH_LENGTH or not re.fullmatch(r"[0-9a-f]+", digest):
            return named
        found = self._by_hash(kind, digest, named, name or "") or named
        self._index.save()
        if found is None or found.sha256:
            return found
        return found._replace(sha256=self._index.known(found.location, found.stat, "sha256"))

    def has_hash(self, file: LibraryFile, hash: str) -> bool:
        """Whether a file has this hash, of whatever sort; it is read where that is not known."""
        found = any(_begins_alike(own(), hash.lower()) for own in self._hashes(file))
        self._index.save()
        return found

    def near(self, kind: str, name: str, count: int = 3) -> list[str]:
        """Names of files of a kind that `name` may be a slip of."""
        return near_names(_stem(name.replace("\\", "/").rpartition("/")[2]), {f.name for f in self.files(kind)}, count)

    def sha256(self, file: LibraryFile) -> str:
        """SHA-256 of a whole file, 64 hex digits; read with a progress bar where it is not known."""
        if file.sha256:
            return file.sha256
        with _HashBar(file.stat.st_size, f"Hashing {file.path.name}") as advance:
            found = self._index.worked_out(file.location, file.stat, "sha256", advance)
        self._index.save()
        return found

    def hash_files(self, kind: str) -> None:
        """Hash every file of a kind that was not hashed yet, however many there are, with a progress bar."""
        self._hash([file for file in self.files(kind) if not file.sha256])

    # --- names

    def _by_name(self, kind: str, name: str) -> LibraryFile | None:
        wanted = name.replace("\\", "/").strip()
        names = self._names_of(kind)
        below = wanted.rpartition("/")[2]
        for candidate in (wanted, wanted.lower(), below.lower(), _stem(below).lower()):
            if candidate in names:
                return names[candidate]
        if kind == "upscaler":  # labels are the files' names with other spaces: "DAT x4", DAT_x4.pth
            loose = {_letters(file.name): file for file in self.files(kind)}
            return loose.get(_letters(_stem(below)))
        return None

    def _names_of(self, kind: str) -> dict[str, LibraryFile]:
        """By what a file of a kind is called: as written, and in lower case; later files do not hide earlier ones,
        except networks, of which the last counts as in the webui."""
        known = self._names
        if kind in known:
            return known[kind]
        names: dict[str, LibraryFile] = {}
        files = self.files(kind) if kind != "lora" else self.files(kind)[::-1]
        for spelling in (str, str.lower):
            for file in files:
                for name in (file.place, file.place.rpartition("/")[2], file.name, file.title):
                    names.setdefault(spelling(name), file)
        if kind == "lora":
            self._add_aliases(names, files)
        known[kind] = names
        return names

    def _add_aliases(self, names: dict[str, LibraryFile], files: list[LibraryFile]) -> None:
        aliases = {
            file.location: self._index.metadata(file.location, file.stat).get("ss_output_name") for file in files
        }
        self._index.save()
        counts = Counter(alias.lower() for alias in aliases.values() if alias)
        for file in files:
            alias = aliases[file.location]
            if alias and counts[alias.lower()] == 1 and alias.lower() not in _FORBIDDEN_ALIASES:
                names.setdefault(alias, file)
                names.setdefault(alias.lower(), file)

    # --- hashes

    def _by_hash(self, kind: str, digest: str, named: LibraryFile | None, name: str) -> LibraryFile | None:
        """The file with this hash; what is known is looked at first, then what is cheap, then what must be read."""
        files = self.files(kind)
        if named is not None and any(_begins_alike(own, digest) for own in self._known_hashes(named)):
            return named
        for file in files:
            if any(_begins_alike(own, digest) for own in self._known_hashes(file)):
                return file
        if len(digest) == _HASH_LENGTH:
            old = [file for file in files if self._index.worked_out(file.location, file.stat, "legacy") == digest]
            if named in old or len(old) == 1:  # files often share it
                return named if named in old else old[0]
        unread = self._unread(files, digest)
        if named in unread:
            unread.remove(named)
            unread.insert(0, named)
        elif unread and name:
            near = set(near_names(name, {file.name for file in unread}, 8))
            unread.sort(key=lambda file: file.name not in near)
        size = sum(file.stat.st_size for file in unread[1:])
        if size > HASHED_AT_ONCE:
            LOGGER.warning(
                "%d files were never hashed (%.0f GB), so `%s` is looked for by its name alone. "
                "`WebUIFolder.hash_files(%r)` hashes them once.",
                *(len(unread), size / 1e9, name or digest, kind),
            )
            unread = unread[:1] if named is not None else []
        return self._hash(unread, digest)

    def _known_hashes(self, file: LibraryFile) -> Iterable[str]:
        """Hashes that are known without reading the file's tensors."""
        if file.sha256:
            yield file.sha256
        for fact in ("sha256", "tensors"):
            found = self._index.known(file.location, file.stat, fact)
            if found:
                yield found
        if file.kind == "lora":
            told = self._index.metadata(file.location, file.stat)
            yield from (told[key] for key in ("sshs_model_hash", "sshs_legacy_hash") if key in told)

    def _hashes(self, file: LibraryFile) -> list[Callable[[], str]]:
        """All sorts of hash of a file, each worked out when called, the cheap ones first."""
        known = [lambda own=own: own for own in self._known_hashes(file)]
        facts = ("legacy", "sha256", "tensors") if file.kind == "lora" else ("legacy", "sha256")
        return [*known, *(lambda fact=fact: self._index.worked_out(file.location, file.stat, fact) for fact in facts)]

    def _unread(self, files: list[LibraryFile], digest: str) -> list[LibraryFile]:
        """Files of which a hash that `digest` could be is not known yet."""
        facts = ("sha256", "tensors") if files and files[0].kind == "lora" else ("sha256",)
        return [
            file
            for file in files
            if any(self._index.known(file.location, file.stat, fact) is None for fact in facts)
            and not (file.sha256 and facts == ("sha256",))
        ]

    def _hash(self, files: list[LibraryFile], digest: str | None = None) -> LibraryFile | None:
        """Hash files, until one has `digest`; that one."""
        both = files and files[0].kind == "lora"
        total = sum(file.stat.st_size for file in files) * (2 if both else 1)
        with _HashBar(total, "Hashing files") as advance:
            for file in files:
                for fact in ("sha256", "tensors") if both else ("sha256",):
                    try:
                        own = self._index.worked_out(file.location, file.stat, fact, advance)
                    except (OSError, ValueError) as error:
                        LOGGER.warning("`%s` cannot be hashed: %s", file.path, error)
                        continue
                    if digest is not None and _begins_alike(own, digest):
                        return file
        self._index.save()
        return None

    def _known_sha256(self, kind: str, location: str, place: str, stat: os.stat_result) -> str | None:
        """From the index, or as the webui itself worked it out for this state of the file."""
        known = self._index.known(location, stat, "sha256")
        if known is not None or self.path is None or kind not in _WEBUI_WORDS:
            return known
        told = self._told
        if told is None:
            told = self._told = webui_hashes(self.path)
        names = (f"{_WEBUI_WORDS[kind]}/{place}", f"{_WEBUI_WORDS[kind]}/{_stem(place.rpartition('/')[2])}")
        for table, fact in (("hashes", "sha256"), ("hashes-addnet", "tensors")):
            for name in names if told[table] else ():
                time, digest = told[table].get(name, (0.0, ""))
                if digest and stat.st_mtime <= time:
                    self._index.keep(location, stat, {fact: digest})
                    known = digest if fact == "sha256" else known
                    break
        return known


class _HashBar:
    """A bar over bytes, shown from a hundred million on; its value is what `on_bytes` of the hashes takes."""

    def __init__(self, total: int, title: str):
        self._bar = tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=total < 100_000_000)
        self._before = 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self._advance

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _advance(self, done: int, size: int) -> None:
        self._bar.update(done - self._before if done >= self._before else done)
        self._before = 0 if done >= size else done


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _begins_alike(own: str, asked: str) -> bool:
    """Whether two hashes are one, as far as the shorter goes, and that is far enough."""
    length = min(len(own), len(asked))
    return length >= _HASH_LENGTH and own[:length].lower() == asked[:length]


def _name_of(location: str) -> str:
    """A file's name without ending; of weights in a folder of diffusers, the folder's."""
    folder, name = os.path.split(location)
    stem = _stem(name)
    return os.path.basename(folder) if stem == "diffusion_pytorch_model" else stem


def _stem(name: str) -> str:
    """A file's name without a known ending, `.vae.pt` and `.safetensors` included; dots in names stay."""
    stem, dot, ending = name.rpartition(".")
    if not dot or f".{ending.lower()}" not in KNOWN_SUFFIXES:
        return name
    return stem[:-4] if stem.lower().endswith(".vae") else stem
