"""Network files by name, and what the tags of a prompt ask of them.

    <lora:moxin>                    te 1, unet 1
    <lora:moxin:0.8>                te 0.8, unet 0.8
    <lora:moxin:0.8:0.5:8>          te 0.8, unet 0.5, the first 8 components
    <lora:moxin:unet=0.2>           te 1, unet 0.2; named values win over their places, and take none
    <lora:moxin:1:lbw=1,0,...>      strengths of the UNet's blocks, as `block_strengths` takes them, `lbw=` or not
    <lora:moxin:1:start=4:stop=10>  in steps 4 to 9 only, of 0, 1, 2, ...; `step=4-10` is the same
    <lyco:moxin:0.8>                the same files under another word

A name is the file's, without folder and ending, or its alias (`ss_output_name` in the metadata): never a path.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import NamedTuple

from ..library.index import FileIndex
from ..library.layout import FolderTimes, files_of_kind, natural_key
from ..model_lock import model_gate
from ..utils import LOGGER, near_names
from ..weight_files import NetworkError
from .block_weights import block_strengths
from .metadata import network_hash, network_version_label
from .read import Network, read_network


NETWORK_WORDS = ("lora", "lyco")


class _MentionFields(NamedTuple):
    name: str
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None


class NetworkMention(_MentionFields):
    """One network that a prompt asks for: (name, te, unet, dyn), and beside these what the webui does not read."""

    blocks: Mapping[str, float] | None = None  # block label -> factor of the strength
    start: int = 0  # the first step that it is on in
    stop: int | None = None  # the first step that it is off in again

    @property
    def use(self) -> tuple:
        """What stands after the network in a use of merged_networks."""
        return self[1:] if self.blocks is None else (*self[1:], self.blocks)


class NetworkEntry(NamedTuple):
    """One file that a library knows."""

    name: str
    alias: str
    path: Path | str  # a string is an id on the Hub
    metadata: Mapping[str, str]

    @property
    def version_label(self) -> str:
        """The webui's: "SD1", "SD2", "SDXL" or "Unknown"."""
        return network_version_label(self.metadata)

    @property
    def short_hash(self) -> str:
        """The first 12 digits of its hash, as in an image's `Lora hashes`; a Hub id has none before it is fetched."""
        return network_hash(self.path, self.metadata)[:12] if isinstance(self.path, Path) else ""


def network_mentions(tags: Iterable[tuple[str, Sequence[str], Mapping[str, str]]]) -> list[NetworkMention]:
    """The networks that tags (word, positional, named) ask for, in the order in which the webui applies them.

    Two quirks of the webui are kept, because pictures depend on them: tags are grouped by their word, groups in the
    order of the words' first appearance; and of a name that stands twice, the last strengths count for both.
    Words other than `lora` and `lyco` are not networks, and the log says so. Raises ValueError for a number that is
    none, where the webui drops all of the prompt's networks.
    """
    groups: dict[str, list[NetworkMention]] = {}
    for word, positional, named in tags:
        if word in NETWORK_WORDS:
            groups.setdefault(word, []).append(_mention(word, positional, named))
        else:
            what = "hypernetworks are not applied here" if word == "hypernet" else "nothing is known by that word"
            LOGGER.warning("<%s:%s>: %s, so the images are drawn without it.", word, ":".join(positional), what)
    ordered = [mention for group in groups.values() for mention in group]
    last = {mention.name: mention for mention in ordered}
    return [last[mention.name] for mention in ordered]


def lora_hashes_text(found: Iterable[tuple[str, str]]) -> str:
    """`NAME: hash, NAME: hash` for an image's `Lora hashes`, of (name as mentioned, short hash)."""
    return ", ".join(f"{re.sub('[:,]', '', name)}: {short_hash}" for name, short_hash in found)


class NetworkLibrary:
    """Networks by name: those of a folder and the folders in it, and those added one by one.

    >>> library = NetworkLibrary("models/Lora")
    >>> library.uses(network_mentions([("lora", ("moxin", "0.8"), {})]))
    [(<moxin: SD1, 264 layers, lora rank 32>, 0.8, 0.8, None)]
    """

    def __init__(self, folder: str | Path | None = None):
        self._folder = None if folder is None else Path(folder)
        self._added: list[NetworkEntry] = []
        self._in_folder: list[NetworkEntry] | None = None
        self._state: FolderTimes | None = None
        self._index: FileIndex | None = None
        self._known: dict[str, NetworkEntry] | None = None  # by every name
        self._hashes: list[tuple[str, NetworkEntry]] | None = None
        self._networks: dict[tuple, Network] = {}

    @property
    def folder(self) -> Path | None:
        """Where network files are looked for; setting it looks anew."""
        return self._folder

    @folder.setter
    def folder(self, folder: str | Path | None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"`{folder}` is no folder, so no networks can be found in it. Check the spelling.")
        with self._alone():
            self._folder = None if folder is None else Path(folder)
            self._in_folder = self._known = self._hashes = self._index = None

    @property
    def entries(self) -> list[NetworkEntry]:
        """All files, in the order in which later ones hide earlier ones: the folder's sorted as people count, then
        those added."""
        with self._alone():
            if self._in_folder is None:
                self._in_folder = self._scan() if self._folder is not None else []
            return [*self._in_folder, *self._added]

    @property
    def forbidden_aliases(self) -> set[str]:
        """Aliases that two files have (in lower case), and two words that no alias may be: they name no file."""
        counts = Counter(entry.alias for entry in self.entries)
        return {"none", "Addams"} | {alias.lower() for alias, count in counts.items() if count > 1}

    def add(self, path: str | Path, name: str | None = None) -> NetworkEntry:
        """Make a file, or an id on the Hub, known by `name`; by default by its own.

        Raises NetworkError for a broken file, ValueError for a name that no tag can hold.
        """
        network = read_network(path)
        name = network.name if name is None else name
        if re.search(r"[:>=<]", name) or not name:
            raise ValueError(
                f"`{name}` cannot be written in a tag, which ends names at `:`, `=` and `>`. Take another."
            )
        entry = NetworkEntry(name, network.metadata.get("ss_output_name", name), network.path, network.metadata)
        self._networks[_file_stamp(entry.path)] = network
        with self._alone():
            self._added.append(entry)
            self._known = self._hashes = None
        return entry

    def find(self, name: str) -> NetworkEntry | None:
        """The file called `name`, or None. On a miss the folder is looked through once more, if files came or went."""
        with self._alone():
            found = self._names().get(name)
            if found is None and self._folder is not None and self._state is not None and not self._state.holds():
                self._in_folder = self._known = self._hashes = None
                found = self._names().get(name)
            return found

    def find_by_hash(self, short_hash: str) -> NetworkEntry | None:
        """The file whose hash begins like this (at least 8 digits), or None: for names in others' images."""
        if len(short_hash) < 8:
            return None
        hashes, entries = self._hashes, self.entries
        if hashes is None:
            hashes = [(found, entry) for entry in entries if (found := self._hash(entry))]
            if self._index is not None:
                self._index.save()
            with self._alone():  # not while hashing, which takes its time
                self._hashes = hashes if self.entries == entries else None
        asked = short_hash.lower()[:12]
        return next((entry for found, entry in hashes if found.startswith(asked)), None)

    def network(self, name: str) -> Network:
        """The network called `name`, read once. Raises NetworkError, listing what is known, for an unknown name."""
        entry = self.find(name)
        if entry is None:
            raise NetworkError(self._unknown(name))
        stamp = _file_stamp(entry.path)
        if stamp not in self._networks:
            self._networks.setdefault(stamp, read_network(entry.path))  # one for all calls, which compare them
        return self._networks[stamp]

    def uses(self, mentions: Iterable[NetworkMention]) -> list[tuple]:
        """What merged_networks takes, for these mentions: (network, te, unet, dyn[, blocks]). Steps are the caller's.

        Raises NetworkError for the first unknown name.
        """
        return [(self.network(mention.name), *mention.use) for mention in mentions]

    def _alone(self) -> RLock:
        """Held while what is known of the files is looked at and changed. Not in the library itself: it is copied."""
        return model_gate().part_lock(self)

    def _names(self) -> dict[str, NetworkEntry]:
        """Every name that finds a file; of equal ones the later file has it. An alias may hide another file's name.

        For holders of `_alone`.
        """
        if self._known is not None:
            return self._known
        entries, forbidden = self.entries, self.forbidden_aliases
        by_file = {entry.name: entry for entry in entries}
        names: dict[str, NetworkEntry] = {}
        for entry in entries:
            names[entry.name] = entry
            names[entry.alias] = entry
        for name in [name for name in names if name.lower() in forbidden]:
            if name in by_file:
                names[name] = by_file[name]
            else:
                del names[name]
        self._known = names
        return names

    def _scan(self) -> list[NetworkEntry]:
        """The folder's files, those of linked folders and those with endings in capitals included, as in the webui."""
        self._state = FolderTimes.of(self._folder)
        self._index = self._index or FileIndex(f"networks\n{self._folder.absolute()}")
        entries = []
        for location, _, stat in files_of_kind("lora", self._folder):
            path, metadata = Path(location), self._index.metadata(location, stat)
            entries.append(NetworkEntry(path.stem, metadata.get("ss_output_name") or path.stem, path, metadata))
        self._index.save()
        return entries

    def _hash(self, entry: NetworkEntry) -> str:
        """`entry.short_hash`, out of the index where the file is one of the folder's."""
        told = entry.metadata.get("sshs_model_hash")
        if told or self._index is None or not isinstance(entry.path, Path) or not entry.path.is_file():
            return entry.short_hash
        return self._index.worked_out(str(entry.path), entry.path.stat(), "tensors")[:12]

    def _unknown(self, name: str) -> str:
        with self._alone():
            names = sorted(self._names(), key=natural_key)
        near = near_names(name, names, 3)
        where = f"in `{self._folder}`" if self._folder is not None else "added"
        hint = f"Perhaps {' or '.join(f'`{n}`' for n in near)}? " if near else ""
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
        return f"No network is called `{name}`. {hint}Known, {where}: {listed}. Names are exact, and never paths."


class NamesNetworks:
    """What can be told of network files by name. `networks` is the library that it is told to."""

    networks: NetworkLibrary

    def add_lora(self, path: str | Path, name: str | None = None) -> str:
        """Make a network file (or an id on the Hub) known to tags and `loras`, by `name` or its own. Returns it."""
        return self.networks.add(path, name).name

    @property
    def lora_folder(self) -> Path | None:
        """Where networks are looked for by name, with the folders in it."""
        return self.networks.folder

    @lora_folder.setter
    def lora_folder(self, folder: str | Path | None) -> None:
        self.networks.folder = folder


def _mention(word: str, positional: Sequence[str], named: Mapping[str, str]) -> NetworkMention:
    if not positional:
        raise ValueError(f"`<{word}:...>` has no name before its numbers. Write `<{word}:name:0.8>`.")
    name, *rest = positional
    blocks = named.get("lbw") or next((part for part in rest if part.count(",") >= 11), None)
    numbers = [part for part in rest if part.count(",") < 11]

    def number(what: str, place: int, usual: float | None, kind: type) -> float | None:
        text = named[what] if what in named else numbers[place] if len(numbers) > place else None
        return usual if text is None else _tag_number(word, positional, what, text, kind)

    te = float(number("te", 0, 1.0, float) or 0.0)
    unet = float(number("unet", 1, te, float) or 0.0)
    dyn = number("dyn", 2, None, int)
    steps = dict(zip(("start", "stop"), named.get("step", "").split("-"))) if "step" in named else {}
    first, last = (
        None if text is None else _tag_number(word, positional, what, text, int)
        for what, text in ((what, named.get(what, steps.get(what))) for what in ("start", "stop"))
    )
    ignored = named.keys() - _TAG_NAMES
    if ignored:
        LOGGER.warning("<%s:%s...>: %s mean nothing here.", word, ":".join(positional), ", ".join(sorted(ignored)))
    mention = NetworkMention(name, te, unet, None if dyn is None else int(dyn))
    mention.blocks = None if blocks is None else block_strengths(blocks)
    mention.start = max(int(first or 0), 0)
    mention.stop = None if last is None else max(int(last), 0)
    return mention


def _tag_number(word: str, positional: Sequence[str], what: str, text: str, kind: type) -> float:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(
            f"`{text}` in `<{word}:{':'.join(positional)}...>` stands for `{what}` and is not {wanted}, for which "
            f"the webui would drop all networks of the prompt. Write `<{word}:{positional[0]}:0.8>`, or leave it out."
        ) from None


_TAG_NAMES = {"te", "unet", "dyn", "lbw", "start", "stop", "step"}


def _file_stamp(path: Path | str) -> tuple:
    if isinstance(path, str) or not path.is_file():
        return (str(path),)
    stat = path.stat()
    return (str(path), stat.st_size, stat.st_mtime_ns)
