"""Which files of a model folder belong to the model: those that model_index.json and its components name, no others.

model_index.json names the components; each component is its configuration, and the weights that its configuration's
class loads. Everything else in the folder (.env, .git, notes, keys, optimizer states, second copies of the weights) is
left out and listed, and so is whatever a link brings in from elsewhere.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


# Files that a component is made of beside its weights, by what diffusers and transformers save.
_CONFIGURATIONS = {
    "config.json",
    "generation_config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
}
_WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SHARD = re.compile(r"[\w.-]+-\d{5}-of-\d{5}\.(safetensors|bin)")


class ModelFiles(NamedTuple):
    """What of a model folder goes along. Paths relative to it, as text."""

    parts: dict[str, Any]  # component -> [library, class], as model_index.json has it
    files: list[str]  # in the components' folders
    left_out: list[str]


class ModelFilesError(ValueError):
    """Why a model folder cannot be published, and what to do."""


def model_files(folder: Path) -> ModelFiles:
    """The files of a model. Raises ModelFilesError for a component without weights, or a link out of the folder."""
    index = read_index(folder)
    parts = {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and (folder / name).is_dir()
    }
    files = [f"{part}/{name}" for part in parts for name in component_files(folder / part)]
    allowed = _allowed_places(folder)
    for file in files:
        target = (folder / file).resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise ModelFilesError(
                f"`{folder / file}` is a link to `{target}`, outside the model's folder. Put the file itself there, "
                "so that it is clear what is published."
            )
    named = {*files, "model_index.json"}
    left_out = sorted(name for name in _listed(folder, folder) if name not in named)
    return ModelFiles(parts, files, left_out)


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json as a table. Raises ModelFilesError where there is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelFilesError(
            f"`{folder}` has no model_index.json, so it is no diffusers model folder. Convert a single file first: "
            "`WebUITxt2ImgPipeline.from_single_file(file).save_pretrained(folder)`."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(f"`{path}` is no JSON ({error}). Fetch the model again.") from error
    if not isinstance(index, dict):
        raise ModelFilesError(f"`{path}` is no table. Fetch the model again.")
    return index


def component_files(folder: Path) -> list[str]:
    """Names of a component's files: its configuration, and one set of weights, .safetensors where there are both.

    Raises ModelFilesError where a list of parts of the weights names one that is not there.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = [name for name in names if name in _CONFIGURATIONS]
    for suffix in ("safetensors", "bin"):
        for stem in _WEIGHT_STEMS:
            listed = f"{stem}.{suffix}.index.json"
            if listed in names:
                return [*found, listed, *_shards(folder, listed, names)]
            if f"{stem}.{suffix}" in names:
                return [*found, f"{stem}.{suffix}"]
    if variants := [name for name in names if name.startswith(_WEIGHT_STEMS) and name.endswith(".safetensors")]:
        raise ModelFilesError(
            f"`{folder}` has its weights as a variant only ({variants[0]}), which nobody gets who does not name it. "
            'Load the model with `variant="..."` and save it with `save_pretrained(folder)`.'
        )
    return found


def _shards(folder: Path, listed: str, names: list[str]) -> list[str]:
    """The parts that weights are cut into, by their own list."""
    try:
        shards = sorted(set(json.loads((folder / listed).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFilesError(f"`{folder / listed}` lists no parts of the weights. Fetch the model again.") from error
    for shard in shards:
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or shard not in names:
            raise ModelFilesError(f"`{folder / listed}` names the part {shard!r}, which is not there. Fetch it again.")
    return shards


def _allowed_places(folder: Path) -> list[Path]:
    """Where a model's files may really lie: in its folder, or, in the Hub's cache, where that keeps them."""
    places = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        places.append(folder.resolve().parent.parent / "blobs")
    return places


def _listed(folder: Path, root: Path) -> list[str]:
    """Every file, relative to the root; a hidden folder, and one that is a link, as one entry."""
    found: list[str] = []
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(root).as_posix()
        if not entry.is_dir():
            found.append(name)
        elif entry.is_symlink() or entry.name.startswith("."):
            found.append(f"{name}/")
        else:
            found += _listed(entry, root)
    return found


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the note of where on somebody's machine it was loaded from."""
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "name_or_path")}
