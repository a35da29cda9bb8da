"""read_network: any Kohya, LyCORIS, diffusers or PEFT file as one plain description.

>>> network = read_network("moxin.safetensors")
>>> network
<moxin: SD1, 264 layers, lora rank 32>

Only the header is kept. Tensors are read when a layer is applied, so what a call does not use costs nothing.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..lazy_torch import TorchTensor, lazy_torch
from ..weight_files import NetworkError, WeightFile, WeightFileError
from .adapter_config import AdapterConfig
from .families.table import NUMBER_PARTS, layer_family
from .keys import NetworkLayer, embedding_name, split_network_key
from .metadata import network_base, network_hash, network_trigger_words, network_version_label, rank_stabilised
from .sources import open_network


CHECKED_AT_ONCE = 1 << 29  # bytes; a larger file's values are looked at layer by layer, when they are applied


class Network:
    """What a network file holds, before it meets a model. Made by read_network."""

    def __init__(self, file: WeightFile, layers: dict[str, NetworkLayer], unknown_keys: list[str]):
        self.file = file
        self.path = file.path
        self.name = file.path.stem if file.path.is_file() else file.path.name
        self.metadata: dict[str, str] = file.metadata
        self.layers = layers  # by the file's own names, in the file's order
        self.unknown_keys = unknown_keys  # keys that are part of no layer
        self.values_checked = False  # whether NaN and Inf have been looked for in the whole file
        self._rank_stabilised = rank_stabilised(self.metadata)
        self._hash: str | None = None

    def tensor(self, layer: NetworkLayer, part: str) -> TorchTensor:
        """One part of a layer, on the CPU, as the file has it. Raises NetworkError when it holds NaN or Inf."""
        key = layer.keys[part]
        value = _of_network(self.file.tensor, key)
        _check_plain(self.path, key, value)
        if not self.values_checked and part not in NUMBER_PARTS:
            _check_finite(self.path, key, _nonfinite_count(value))
        return value

    def check_values(self) -> None:
        """Look at every value of every layer, once: no tensor looks again. Raises NetworkError for NaN and Inf."""
        for layer in self.layers.values():
            for part, key in layer.keys.items():
                count = 0 if part in NUMBER_PARTS else _of_network(self.file.not_finite, key)
                if count is None:
                    self.tensor(layer, part)
                else:
                    _check_finite(self.path, key, count)
            self.scale(layer)
        self.values_checked = True

    def value(self, layer: NetworkLayer, part: str) -> float:
        """A part that is one number. Raises NetworkError when it is NaN, or infinite in float32."""
        number = _of_network(self.file.number, layer.keys[part])
        number = float(self.tensor(layer, part).flatten()[0]) if number is None else number
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise NetworkError(
                f"`{self.path}`: `{layer.keys[part]}` is NaN or infinite, and the layer's strength comes of it. "
                "The file was written wrongly; get another copy, or export it again from its trainer."
            )
        return number

    def switches(self, layer: NetworkLayer) -> dict[str, bool]:
        """The parts of a layer that are yes or no, by name."""
        return {part: self.value(layer, part) != 0 for part in layer.algorithm.switches}

    def scale(self, layer: NetworkLayer, reference: bool = False) -> float:
        """`scale` if the layer has that part, else alpha / rank; 1 without alpha, and for families without a rank.

        reference: by LyCORIS, whose GLoRA has a rank and whose `rs_lora` counts; in the webui neither.
        """
        if "scale" in layer.keys:
            return self.value(layer, "scale")
        from_alpha = layer.algorithm.alpha_scale(layer.shapes, reference, self._rank_stabilised)
        if "alpha" in layer.keys and from_alpha is not None:
            return from_alpha(self.value(layer, "alpha"))
        return 1.0 if layer.scale is None else layer.scale

    @property
    def base(self) -> str:
        """One of "SD1", "SD2", "SDXL", "SD3", "Flux" and "unknown": by the metadata, else by names and widths."""
        return network_base(self.metadata, self.layers, self.unknown_keys)

    @property
    def version_label(self) -> str:
        """The webui's label, by metadata alone: "SD1", "SD2", "SDXL" or "Unknown"."""
        return network_version_label(self.metadata)

    @property
    def families(self) -> dict[str, int]:
        """Family -> number of layers; a decomposed one counts as "dora lora" and so on."""
        return dict(Counter(_family_label(layer) for layer in self.layers.values()))

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> number of layers that have it."""
        return dict(sorted(Counter(layer.rank for layer in self.layers.values() if layer.rank).items()))

    @property
    def trigger_words(self) -> list[str]:
        """What the metadata says a prompt should hold: the author's phrase, else the commonest training tags."""
        return network_trigger_words(self.metadata)

    @property
    def hash(self) -> str:
        """`sshs_model_hash` of the metadata, trusted as in the webui, else the SHA-256 of the tensor data (of the
        whole file for a pickle), as hexadecimal digits."""
        if self._hash is None:
            self._hash = network_hash(self.path, self.metadata)
        return self._hash

    @property
    def short_hash(self) -> str:
        """The first 12 digits, as in an image's `Lora hashes`."""
        return self.hash[:12]

    @property
    def embedding_names(self) -> list[str]:
        """The names of bundled textual inversions, whose values are looked at."""
        return sorted(self._embedding_keys())

    @property
    def embeddings(self) -> dict[str, TorchTensor | dict[str, TorchTensor]]:
        """Bundled textual inversions, read now: name -> vectors (v, width), or SDXL's {"clip_l": ..., "clip_g": ...}.

        A network brings them for as long as it is active.
        """
        return {name: _embedding_parts(self.file, keys) for name, keys in self._embedding_keys().items()}

    def _embedding_keys(self) -> dict[str, dict[str, str]]:
        """name -> what follows it -> key. Raises NetworkError for values that are no vectors of finite numbers."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for key in self.file.keys():
            split = embedding_name(key)
            if split and split[0]:
                count = self.file.not_finite(key)
                if count is None:
                    value = self.file.tensor(key)
                    _check_plain(self.path, key, value)
                    count = _nonfinite_count(value)
                _check_finite(self.path, key, count)
                if 0 in (shape := self.file.shape(key)) or not shape:
                    raise NetworkError(
                        f"`{self.path}`: `{key}` is of shape {shape}, and an embedding is a table of vectors. The "
                        "file was written wrongly; get another copy."
                    )
                found[split[0]][split[1]] = key
        return found

    def table(self) -> str:
        """The network as a table to read: a line for every component, family and set of ranks."""
        groups: dict[tuple[str, str], list[int | None]] = defaultdict(list)
        for layer in self.layers.values():
            groups[_component_label(layer.name), _family_label(layer)].append(layer.rank)
        lines = [f"{self.name}: {self.base}, {len(self.layers)} layers, {self.path}"]
        lines.append(f"  {'component':<16}{'family':<14}{'layers':>6}  ranks")
        for (component, family), ranks in sorted(groups.items()):
            shown = ", ".join(str(rank) for rank in sorted({rank for rank in ranks if rank})) or "-"
            lines.append(f"  {component:<16}{family:<14}{len(ranks):>6}  {shown}")
        if self.unknown_keys:
            lines.append(f"  {len(self.unknown_keys)} keys of no layer: {', '.join(self.unknown_keys[:4])} ...")
        if self.trigger_words:
            lines.append(f"  trigger words: {', '.join(self.trigger_words)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        ranks = self.ranks
        rank = (
            f" rank {next(iter(ranks))}" if len(ranks) == 1 else f" ranks {min(ranks)}-{max(ranks)}" if ranks else ""
        )
        return f"<{self.name}: {self.base}, {len(self.layers)} layers, {', '.join(sorted(self.families))}{rank}>"


def read_network(path: str | Path, *, check_values: bool | None = None) -> Network:
    """Read a network file of any family and naming, a PEFT folder, or one from the Hub ("org/repo[/file]").

    check_values: look for NaN and Inf in the whole file now; by default in files up to half a GiB. Otherwise, each
    layer's values are looked at when it is applied.
    Raises NetworkError (file, key, meaning, advice): missing, truncated, not a weight file, a pickle that would run
    code, no tensors, a layer with parts of no known family, factors that disagree, NaN or Inf.
    """
    file, configs = open_network(path)
    layers, unknown = sort_network_keys(file, configs)
    network = Network(file, layers, unknown)
    if not layers and not any(map(embedding_name, file.keys())):
        raise NetworkError(_nothing_inside(file))
    if check_values is None:
        check_values = not file.path.is_file() or file.path.stat().st_size <= CHECKED_AT_ONCE
    if check_values:
        network.check_values()
        file.forget_pages()
    return network


def sort_network_keys(
    file: WeightFile, configs: Mapping[str, AdapterConfig]
) -> tuple[dict[str, NetworkLayer], list[str]]:
    """The layers of a file by name, in its order, and the keys that are part of none.

    Raises NetworkError for a layer with parts of no known family, with factors that disagree, or with a part twice.
    """
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for key in file.keys():
        if not embedding_name(key):
            name, part = split_network_key(key)
            if part in parts[name]:
                raise NetworkError(
                    f"`{file.path}`: `{parts[name][part]}` and `{key}` are the same part of layer `{name}`, as if two "
                    "adapters were in one file. Save each of them to a file of its own."
                )
            parts[name][part] = key
    layers: dict[str, NetworkLayer] = {}
    unknown: list[str] = []
    for name, keys in parts.items():
        family = layer_family(keys)
        if family is None:
            if _NAMED_LIKE_A_LAYER.match(name):
                raise NetworkError(_no_family(file.path, name, keys))
            unknown += keys.values()
            continue
        shapes = {part: file.shape(key) for part, key in keys.items()}
        layer = NetworkLayer(name, family[0], keys, shapes, webui_refuses=family[1])
        flaw = layer.flaw()
        if flaw and not _NAMED_LIKE_A_LAYER.match(name):
            unknown += keys.values()
            continue
        if flaw:
            raise NetworkError(
                f"`{file.path}`: layer `{name}` is malformed: {flaw}. The file was written wrongly or damaged; "
                "get another copy, or export it again from its trainer."
            )
        layers[name] = replace(layer, scale=_configured_scale(layer, configs))
    return layers, unknown


def _configured_scale(layer: NetworkLayer, configs: Mapping[str, AdapterConfig]) -> float | None:
    """alpha / r by PEFT's configuration of the layer's component; None where there is none, or the file has alpha."""
    component, _, path = layer.name.partition(".")
    config = configs.get(component) or configs.get("")
    if not path or config is None or "alpha" in layer.keys:
        return None
    return config.scale(path, layer.rank)


def _of_network(read: Callable[[str], Any], key: str) -> Any:
    """What a method of the file gives for a key, failing as a network does."""
    try:
        return read(key)
    except WeightFileError as error:
        raise NetworkError(str(error)) from error


def _check_plain(path: Path, key: str, value: TorchTensor) -> None:
    """Raise NetworkError for what is no plain table of numbers, or claims more numbers than it stores."""
    plain = (
        type(value) in (lazy_torch.Tensor, lazy_torch.nn.Parameter)
        and value.layout == lazy_torch.strided
        and value.device.type == "cpu"
    )
    kind = "sparse, quantised or without data" if not plain or value.is_quantized else ""
    kind = kind or ("complex" if value.is_complex() else "")
    if not kind and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        kind = f"{value.numel()} numbers long in name only: one repeated"
    if kind:
        raise NetworkError(
            f"`{path}`: tensor `{key}` is {kind}, which no trainer writes into a network. The file is damaged or made "
            "to do harm; get another copy."
        )


def _nonfinite_count(value: TorchTensor) -> int:
    """How many values are NaN or infinite. A sum shows both at a fraction of isfinite's cost; it may itself
    overflow."""
    if not value.is_floating_point():
        return 0
    value = value if value.element_size() > 1 else value.float()  # 8-bit numbers have no arithmetic
    if math.isfinite(float(value.sum())) or bool(value.isfinite().all()):
        return 0
    return int((~value.isfinite()).sum())


def _check_finite(path: Path, key: str, count: int) -> None:
    """Raise NetworkError where `count` values are NaN or infinite."""
    if not count:
        return
    raise NetworkError(
        f"`{path}`: tensor `{key}` holds {count} values that are NaN or infinite: the training diverged, or the "
        "file was cut to half precision without care. Every picture would be black; get another copy."
    )


def _no_family(path: Path, layer: str, keys: Mapping[str, str]) -> str:
    return (
        f"`{path}`: layer `{layer}` has the parts {', '.join(sorted(keys))}, which make up no known family of "
        "network: one is missing, or the kind is newer than this reader. Export the file again from its trainer."
    )


def _nothing_inside(file: WeightFile) -> str:
    if not len(file):
        return f"`{file.path}` holds no tensors: saving it went wrong. Get another copy, or export it again."
    for beginning, kind in (("lllite_", "a ControlLLLite"), ("lora_controlnet", "a Control-LoRA")):
        if any(key.startswith(beginning) for key in file.keys()):
            return (
                f"`{file.path}` is {kind}: it reads a control image, and is no network for the base model. It "
                "cannot be used here; take a whole ControlNet for the same task, with `pipe.add_controlnet`."
            )
    if any("lora_" in key or "lokr_" in key or "hada_" in key for key in file.keys()):
        return (
            f"`{file.path}`: no layer name in it ({file.keys()[0]} ...) is one of Stable Diffusion 1, 2 or XL, so it "
            "is a network for another architecture (Flux, SD3, ...). Load it on that."
        )
    return (
        f"`{file.path}` holds {len(file)} tensors ({', '.join(file.keys()[:3])} ...), and none is part of a network: "
        "it is another kind of file, perhaps a checkpoint, a VAE or a textual inversion. Load it as that."
    )


def _embedding_parts(file: WeightFile, keys: Mapping[str, str]) -> TorchTensor | dict[str, TorchTensor]:
    parts = {part: file.tensor(key).float().reshape(-1, file.shape(key)[-1]) for part, key in keys.items()}
    if "clip_l" in parts and "clip_g" in parts:
        return {"clip_l": parts["clip_l"], "clip_g": parts["clip_g"]}
    return next(iter(parts.values()))


def _family_label(layer: NetworkLayer) -> str:
    name = "boft" if len(layer.shapes.get("oft_blocks", ())) == 4 else layer.family
    return f"dora {name}" if layer.dora else name


def _component_label(layer: str) -> str:
    for label, starts in (
        ("text encoder 2", ("lora_te2_", "lycoris_te2_", "text_encoder_2.")),
        ("text encoder", ("lora_te", "lycoris_te", "text_encoder.")),
        ("controlnet", ("lora_controlnet_", "oft_controlnet_", "lycoris_controlnet_", "controlnet.")),
        ("unet", ("lora_unet_", "oft_unet_", "lycoris_", "unet.")),
    ):
        if layer.startswith(starts):
            return label
    return "other"


_NAMED_LIKE_A_LAYER = re.compile(
    r"(lora|oft|lycoris)_((unet|te[12]?)_)?(down_blocks_\d|up_blocks_\d|mid_block_|conv_in$|conv_out$|conv_norm_out$"
    r"|time_emb|add_emb|label_emb|input_blocks_\d|middle_block_\d|output_blocks_\d|out_[02]$"
    r"|text_model_(encoder_layers_\d|final_layer_norm)|text_projection)"
    r"|(unet|text_encoder(_2)?)\."
)
