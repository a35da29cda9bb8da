"""ControlNets from files in every layout, offline: no pickle is run, nothing is fetched."""

import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from torch import Tensor

from ..casting import cast
from ..hashes import legacy_model_hash
from ..utils import LOGGER, NameFromText, unknown_choice
from ..weight_files import WeightFile, WeightFileError, open_weights
from .describe import (
    CONTROL_BASE_TITLES,
    LDM_PREFIX,
    control_base,
    control_config,
    control_file_kind,
    ldm_layers_per_block,
)


# Parts of a UNet that a control network begins as a copy of.
_ENCODER_PARTS = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
CONTROL_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def load_controlnet(
    path: str | Path,
    *,
    unet: UNet2DConditionModel | None = None,
    folder: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> ControlNetModel | ControlNetUnionModel:
    """The control network in a file or folder, in evaluation mode on the CPU.

    path: a file in the ldm layout or diffusers' (.safetensors, .pth), a folder that `save_pretrained` wrote, or a name
    known in `folder`: a file's name, also as the webui writes it, "control_v11p_sd15_canny [d14c016b]".
    unet: of the model it is for. It tells how many heads attentions have, where the file is not of a published size,
    and its weights complete files of differences. dtype: of the weights; None leaves them as they are in the file.
    Raises WeightFileError for a file that holds none, that is broken, or that is for another base model than `unet`.
    """
    found = find_controlnet(path, folder)
    model = _from_folder(found) if found.is_dir() else _from_file(found, unet)
    if unet is not None:
        check_control_base(model, unet, str(found))
    return (model if dtype is None else cast(model, dtype)).eval()


def find_controlnet(name: str | Path, folder: str | Path | None = None) -> Path:
    """The file or folder that `name` means: a path, or a name in `folder` and those below it, without its ending.

    A hash behind the name, as the webui writes it, is checked against the file's and only told where it differs.
    What a text names (NameFromText) is no path.
    Raises WeightFileError for a name that is not there, with the near ones.
    """
    path = Path(name).expanduser()
    if path.exists() and not isinstance(name, NameFromText):
        return path
    stem, _, code = (
        re.fullmatch(r"(.*?)(\s*\[([0-9a-f]{8,})\])?", str(name)).groups() if folder else (str(name), None, None)
    )
    known = {} if folder is None else controlnet_files(folder)
    found = known.get(stem) or {key.lower(): value for key, value in known.items()}.get(stem.lower())
    if found is None and folder is None:
        raise WeightFileError(f"`{path}` does not exist. Give the path of a ControlNet's file or folder.")
    if found is None:
        raise WeightFileError(unknown_choice(f"in `{folder}`: ControlNet", stem, known or ("none",)))
    if code and found.is_file() and legacy_model_hash(found) != code:
        LOGGER.warning(
            "ControlNet %s: the text has the hash %s, and `%s` another: it may be another version.", stem, code, found
        )
    return found


def controlnet_files(folder: str | Path) -> dict[str, Path]:
    """ControlNets by name below a folder: files without their endings, and folders with a config.json."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise WeightFileError(f"`{folder}` is no folder: give the one that your ControlNets are in.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "config.json" and path.parent != folder:
            found[path.parent.name] = path.parent
        elif path.suffix in CONTROL_ENDINGS and not (path.parent / "config.json").exists():
            found.setdefault(path.stem, path)
    return found


def check_control_base(model: Any, unet: Any, name: str) -> None:
    """Refuse a control network whose residuals or text do not fit the UNet, saying for which base it is."""
    own, other = model.config, unet.config
    sizes = ("block_out_channels", "layers_per_block", "cross_attention_dim")

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, (list, tuple)) else value

    differing = [key for key in sizes if plain(own[key]) != plain(other[key])]
    if (own.get("addition_embed_type") is None) != (other.get("addition_embed_type") is None):
        differing.append("addition_embed_type")
    if not differing:
        return
    titles = [
        CONTROL_BASE_TITLES.get(
            control_base(config["cross_attention_dim"], config.get("addition_embed_type") is not None) or ""
        )
        for config in (own, other)
    ]
    if all(titles) and titles[0] != titles[1]:
        raise WeightFileError(
            f"`{name}` is a ControlNet for {titles[0]}, and the model is {titles[1]}: take one for it."
        )
    key = differing[0]
    raise WeightFileError(
        f"`{name}` is a ControlNet for another model: its `{key}` is {plain(own.get(key))} and the UNet's "
        f"{plain(other.get(key))}. Take one that was made for this model."
    )


def _from_folder(folder: Path) -> ControlNetModel | ControlNetUnionModel:
    """What `save_pretrained` wrote, of a network or of a whole pipeline."""
    place = folder / "controlnet" if not (folder / "config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise WeightFileError(
            f"`{folder}` has no config.json: give the folder that `save_pretrained` wrote, or a file."
        )
    kind = ControlNetModel.load_config(str(place)).get("_class_name")
    classes = {"ControlNetModel": ControlNetModel, "ControlNetUnionModel": ControlNetUnionModel}
    if kind not in classes:
        raise WeightFileError(
            f"`{place}/config.json` describes a {kind}, which is no ControlNet. Load it with its own class."
        )
    safe = any(place.glob("*.safetensors"))
    return classes[kind].from_pretrained(str(place), local_files_only=True, use_safetensors=safe)


def _from_file(path: Path, unet: UNet2DConditionModel | None) -> ControlNetModel | ControlNetUnionModel:
    with open_weights(path) as file:
        kind = control_file_kind(path, file.keys())
        state = {key.removeprefix(LDM_PREFIX): file.tensor(key) for key in _control_keys(file)}
    state.pop("difference", None)
    if kind == "lora":
        state = _from_factors(path, state, unet)
    if kind in ("ldm", "difference"):
        state = _from_ldm(state)
    if kind == "difference":
        state = _with_base(path, state, unet)
    missing = [key for key in ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight") if key not in state]
    if missing:
        raise WeightFileError(f"`{path}` is incomplete: `{missing[0]}` is not in it. Fetch it again.")
    beside = _config_beside(path) if kind in ("diffusers", "union") else None
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    config = beside or control_config(path, shapes, None if unet is None else unet.config)
    if beside is None:
        config["global_pool_conditions"] = "shuffle" in path.stem and config["cross_attention_dim"] != 2048
    return _filled(path, ControlNetUnionModel if kind == "union" else ControlNetModel, config, state)


def _config_beside(path: Path) -> dict[str, Any] | None:
    """The configuration that `save_pretrained` wrote beside a file."""
    if not (path.parent / "config.json").is_file():
        return None
    config = ControlNetModel.load_config(str(path.parent))
    own = config.get("_class_name") in ("ControlNetModel", "ControlNetUnionModel")
    return {key: value for key, value in config.items() if not key.startswith("_")} if own else None


def _control_keys(file: WeightFile) -> list[str]:
    """The keys of the control network: all of them, or those under its prefix in a whole checkpoint."""
    prefixed = [key for key in file.keys() if key.startswith(LDM_PREFIX)]
    return prefixed or file.keys()


def _from_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ldm layout in diffusers' names."""
    converted = convert_controlnet_checkpoint(dict(state), {"layers_per_block": ldm_layers_per_block(state)})
    for old, new in (("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2")):
        for part in ("weight", "bias"):
            if f"{old}.{part}" in state:
                converted[f"{new}.{part}"] = state[f"{old}.{part}"]
    return {key: value for key, value in converted.items() if value is not None}


def _from_factors(path: Path, state: Mapping[str, Tensor], unet: UNet2DConditionModel | None) -> dict[str, Tensor]:
    """A Control-LoRA in the ldm layout as a whole network in diffusers' names, by the weights of its base model.

    The format is that of stabilityai/control-lora: `<layer>.up` (out, r[, 1, 1]) and `<layer>.down` (r, in[, k, k]),
    whose product changes the base model's weight; biases, norms and the control network's own layers are whole. What
    is in neither is the base model's.
    """
    if unet is None:
        raise WeightFileError(_needs_base(path, "a Control-LoRA"))
    changes: dict[str, Tensor] = {}
    for key in (key for key in state if key.endswith(".up")):
        layer, up = key.removesuffix(".up"), state[key].float()
        down = state.get(f"{layer}.down")
        if down is None or up.ndim < 2 or down.shape[0] != up.shape[1]:
            other = "is not in it" if down is None else f"has the shape {tuple(down.shape)}"
            raise WeightFileError(
                f"`{path}`: `{key}` has the shape {tuple(up.shape)}, and `{layer}.down` {other}: their product is the "
                "layer's change. The file is damaged; fetch it again."
            )
        changes[f"{layer}.weight"] = (up.flatten(1) @ down.float().flatten(1)).reshape(len(up), *down.shape[1:])
    whole = {key: value for key, value in state.items() if not key.endswith((".up", ".down", "lora_controlnet"))}
    found, changed = _from_ldm({**whole, **changes}), {id(change) for change in changes.values()}
    base = {key: value for key, value in unet.state_dict().items() if key.startswith(_ENCODER_PARTS)}
    for key in (key for key, value in found.items() if id(value) in changed):
        if key not in base or base[key].shape != found[key].shape:
            own = f"{tuple(base[key].shape)}" if key in base else "none"
            raise WeightFileError(
                f"`{path}` is a Control-LoRA for another model: it changes `{key}`, {tuple(found[key].shape)}, and "
                f"the UNet's is {own}. Take one that was made for this model."
            )
        found[key] = found[key] + base[key].float().cpu()
    return {key: value.cpu().to(unet.dtype) for key, value in {**base, **found}.items()}


def _needs_base(path: Path, what: str) -> str:
    return (
        f"`{path}` holds {what}, and its base model's weights complete it: give that model's UNet as `unet=`, or load "
        "the file with `pipe.add_controlnet`."
    )


def _with_base(path: Path, state: dict[str, Tensor], unet: UNet2DConditionModel | None) -> dict[str, Tensor]:
    """Differences as weights: those of the UNet are added where it has the same."""
    if unet is None:
        raise WeightFileError(_needs_base(path, "a ControlNet as the difference to its base model"))
    base = unet.state_dict()
    for key, value in state.items():
        if key in base and base[key].shape == value.shape:
            state[key] = (value.float() + base[key].float().cpu()).to(value.dtype)
    return state


def _filled(path: Path, kind: type, config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """The network with exactly these weights."""
    try:
        with torch.device("meta"):
            model = kind(**{name: value for name, value in config.items() if name in signature(kind).parameters})
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightFileError(
            f"`{path}` cannot be built as {kind.__name__}: {error}. The file is damaged, or of a kind of its own."
        ) from error
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, shape in wanted.items():
        if key not in state:
            raise WeightFileError(f"`{path}` is incomplete: `{key}` is not in it. Fetch it again.")
        if tuple(state[key].shape) != shape:
            raise WeightFileError(
                f"`{path}`: `{key}` has the shape {tuple(state[key].shape)} and should have {shape}: the file is "
                "damaged, or for another model than its other weights."
            )
        if not torch.isfinite(state[key]).all():
            raise WeightFileError(f"`{path}`: `{key}` contains NaN or Inf: the file is damaged. Fetch it again.")
    unread = sorted(set(state) - set(wanted))
    if unread:
        LOGGER.warning("`%s`: %s keys are not of a ControlNet, `%s` first.", path, len(unread), unread[0])
    model.load_state_dict({key: state[key] for key in wanted}, assign=True)
    for buffer in model.buffers():
        if buffer.is_meta:
            raise WeightFileError(f"`{path}` cannot be built as {kind.__name__}: it has values that no file holds.")
    return model
