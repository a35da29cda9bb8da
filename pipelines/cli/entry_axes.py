"""Axes over one setting of a ControlNet unit or a detail pass, as the extensions' plot types name them.

[ControlNet] Weight            `weight` of unit 0
controlnet 1 guidance end      `guidance_end` of unit 1
detailer 0 confidence          `ad_confidence` of the first pass
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ...loaders.utils import unknown_choice
from ..control.units import UNIT_KEYS, read_units
from ..detailer_settings import DETAILER_SETTINGS, read_detailers
from .control import UNIT_IMAGES
from .values import plain_value


class EntryKind(NamedTuple):
    """What is in the lists of one argument."""

    argument: str
    option: str
    keys: Collection[str]
    check: Callable[[dict[str, Any]], Any]  # raises ValueError for a value that a key cannot have
    prefix: str = ""
    usual: Mapping[str, Any] = {}  # what an entry needs besides


_UNITS = EntryKind("control_units", "--control", set(UNIT_KEYS) - set(UNIT_IMAGES), lambda unit: read_units([unit]))
_PASSES = EntryKind(
    "detailers",
    "--detailer",
    DETAILER_SETTINGS,
    lambda one: read_detailers([one]),
    prefix="ad_",
    usual={"ad_model": "face"},
)
_ENTRY_KINDS = {"controlnet": _UNITS, "control": _UNITS, "adetailer": _PASSES, "detailer": _PASSES}
_ENTRY_NAME = re.compile(rf"\[?({'|'.join(_ENTRY_KINDS)})\]?(?: (\d+))? ([a-z][\w ]*)")
_KEY_ALIASES = {"preprocessor": "module", "preprocessor_resolution": "processor_res"}


class EntrySetting(NamedTuple):
    """One setting of one entry."""

    kind: EntryKind
    number: int  # of the entry, from 0
    key: str

    def change(self, text: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """What a value does to a call. Raises ValueError for one that the setting cannot have."""
        value = plain_value(text.lower() if text in ("True", "False") else text)
        self.kind.check({**self.kind.usual, self.key: value})

        def changed(call: Mapping[str, Any]) -> dict[str, Any]:
            entries = [dict(entry) for entry in call.get(self.kind.argument) or ()]
            if self.number >= len(entries):
                raise ValueError(
                    f"an axis changes `{self.key}` of entry {self.number} of `{self.kind.argument}`, and there are "
                    f"{len(entries)}: give one with {self.kind.option}."
                )
            entries[self.number][self.key] = value
            return {**call, self.kind.argument: entries}

        return changed


def entry_setting(name: str) -> EntrySetting | None:
    """The setting that an axis is about; None for an axis of another kind. Raises ValueError for an unknown key."""
    found = _ENTRY_NAME.fullmatch(name.strip().lower())
    if found is None:
        return None
    kind, key = _ENTRY_KINDS[found[1]], found[3].replace(" ", "_")
    key = _KEY_ALIASES.get(key, key)
    if kind.prefix and not key.startswith(kind.prefix):
        key = kind.prefix + key
    if key not in kind.keys:
        raise ValueError(unknown_choice(f"`{kind.argument}`: axis", key, kind.keys))
    return EntrySetting(kind, int(found[2] or 0), key)
