"""Where a network's tensors come from: a file, a folder that PEFT wrote, a Hub repository.

moxin.safetensors                        the file
my-adapter/                              adapter_config.json beside adapter_model.safetensors
my-training/unet/, text_encoder/         one PEFT folder per component
latent-consistency/lcm-lora-sdv1-5       the one network file of a Hub repository
org/repo/folder/file.safetensors         that file of it
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from ..lazy_torch import TorchTensor
from ..weight_files import NetworkError, WeightFile, WeightFileError, open_weights
from .adapter_config import AdapterConfig


NETWORK_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth")

_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_FAMILIES = ("LORA", "LOHA", "LOKR")
_DIFFUSERS_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_COMPONENT_FOLDERS = ("unet", "text_encoder", "text_encoder_2", "controlnet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/.+)?")


def open_network(path: str | Path) -> tuple[WeightFile, dict[str, AdapterConfig]]:
    """The tensors, and PEFT's configuration by component ("unet", "text_encoder", "text_encoder_2"; "" for any).

    Raises NetworkError for what is not there, cannot be read, or holds an adapter that is no LoRA, LoHa or LoKr.
    """
    try:
        place = _local_place(path)
        if place.is_dir():
            return _open_folder(place)
        file = open_weights(place)
    except NetworkError:
        raise
    except WeightFileError as error:
        raise NetworkError(str(error)) from error
    return file, _file_configs(file)


class _JoinedWeights(WeightFile):
    """Several files as one: the PEFT folders of a pipeline's components, keys led by the component's name."""

    def __init__(self, path: Path, files: Mapping[str, WeightFile]):
        super().__init__(path, {})
        self._files = files
        self._places = {
            f"{component}.{key.removeprefix('base_model.model.')}": (file, key)
            for component, file in files.items()
            for key in file.keys()
        }

    def keys(self) -> list[str]:
        return list(self._places)

    def tensor(self, key: str) -> TorchTensor:
        file, inner = self._places[key]
        return file.tensor(inner)

    def shape(self, key: str) -> tuple[int, ...]:
        file, inner = self._places[key]
        return file.shape(inner)

    def dtype(self, key: str) -> Any:
        file, inner = self._places[key]
        return file.dtype(inner)

    def not_finite(self, key: str) -> int | None:
        file, inner = self._places[key]
        return file.not_finite(inner)

    def number(self, key: str) -> float | None:
        file, inner = self._places[key]
        return file.number(inner)

    def forget_pages(self) -> None:
        for file in self._files.values():
            file.forget_pages()

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _open_folder(folder: Path) -> tuple[WeightFile, dict[str, AdapterConfig]]:
    if (folder / "adapter_config.json").is_file():
        file = open_weights(_peft_weights(folder))
        return file, {"": _peft_config(folder / "adapter_config.json")}
    parts = [name for name in _COMPONENT_FOLDERS if (folder / name / "adapter_config.json").is_file()]
    if parts:
        files = {name: open_weights(_peft_weights(folder / name)) for name in parts}
        configs = {name: _peft_config(folder / name / "adapter_config.json") for name in parts}
        return _JoinedWeights(folder, files), configs
    name = _only_network_file([file.name for file in sorted(folder.iterdir()) if file.is_file()], str(folder))
    file = open_weights(folder / name)
    return file, _file_configs(file)


def _file_configs(file: WeightFile) -> dict[str, AdapterConfig]:
    """The configuration in diffusers' header, or beside a file in PEFT's own layout."""
    if any(key.startswith("base_model.model.") for key in file.keys()):
        config = file.path.with_name("adapter_config.json")
        if not config.is_file():
            raise NetworkError(
                f"`{file.path}` is in PEFT's layout, and no `adapter_config.json` lies beside it: how strong the "
                "adapter is, is written there only. Put it beside the file, or name the whole folder."
            )
        return {"": _peft_config(config)}
    raw = file.metadata.get("lora_adapter_metadata")
    try:
        table = (json.loads(raw) if raw else None) or {}
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise NetworkError(
            f"`{file.path}` has a `lora_adapter_metadata` in its header that is no JSON table, and the strength of "
            "its layers stands there. Save it again with diffusers, or fetch it again."
        )
    configs: dict[str, dict] = {}
    for key, value in table.items():
        component, _, name = str(key).partition(".")
        configs.setdefault(component, {})[name] = value
    return {component: AdapterConfig(file.path, config) for component, config in configs.items()}


def _peft_config(path: Path) -> AdapterConfig:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NetworkError(f"`{path}` cannot be read as JSON ({error}). Fetch the adapter's folder again.") from error
    kind = config.get("peft_type", "LORA") if isinstance(config, dict) else None
    if kind not in _PEFT_FAMILIES:
        raise NetworkError(
            f"`{path}` describes a PEFT adapter of type {kind}, which has no counterpart among network files "
            f"({', '.join(_PEFT_FAMILIES)} have). Load it with PEFT itself, and merge it there."
        )
    mapping = config.get("auto_mapping")
    if isinstance(mapping, dict) and str(mapping.get("base_model_class")).startswith("ControlNet"):
        if path.parent.name != "controlnet":  # a pipeline's folder of that name is told as the network's layers are
            raise NetworkError(
                f"`{path}` describes an adapter of a {mapping['base_model_class']}, and networks act on the base "
                "model alone. Merge it into the ControlNet with PEFT, and load that with `pipe.add_controlnet`."
            )
    return AdapterConfig(path, config)


def _peft_weights(folder: Path) -> Path:
    for name in _PEFT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise NetworkError(
        f"`{folder}` has an adapter_config.json, but neither {' nor '.join(_PEFT_FILES)} beside it: the download is "
        "incomplete. Fetch the folder again."
    )


def _only_network_file(names: list[str], place: str) -> str:
    """The network among the files of a folder or repository; NetworkError unless there is exactly one candidate."""
    for name in _DIFFUSERS_FILES:
        if name in names:
            return name
    files = [name for name in names if name.lower().endswith(NETWORK_SUFFIXES)]
    files = [name for name in files if name.lower().endswith(".safetensors")] or files
    if len(files) != 1:
        listed = ", ".join(files[:8]) or "none"
        raise NetworkError(
            f"`{place}` holds {len(files)} weight files ({listed}), and which one is meant is not clear. "
            f"Name one: `{place}/<file>`."
        )
    return files[0]


def _local_place(path: str | Path) -> Path:
    """The file or folder, fetched first where `path` names one on the Hub."""
    place, text = Path(path), str(path)
    if place.exists() or isinstance(path, Path) or not _HUB_ID.fullmatch(text):
        return place
    repo, inner = "/".join(text.split("/")[:2]), "/".join(text.split("/")[2:])
    if Path(text.split("/")[0]).is_dir() or (not inner and text.lower().endswith(NETWORK_SUFFIXES)):
        return place
    try:
        names = [inner] if inner else huggingface_hub.list_repo_files(repo)
        if not inner and "adapter_config.json" in names:
            huggingface_hub.hf_hub_download(repo, "adapter_config.json")
            names = [name for name in names if name in _PEFT_FILES]
        return Path(huggingface_hub.hf_hub_download(repo, _only_network_file(names, repo)))
    except (*_hub_errors(), OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NetworkError(
            f"`{text}` is no file here, and the Hub did not give it either ({first}). "
            "Check the spelling, the connection, or your access to the repository."
        ) from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """Raised by the Hub's client, which takes 0.2 s to import and which most callers never need."""
    errors = huggingface_hub.errors
    return errors.EntryNotFoundError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError
