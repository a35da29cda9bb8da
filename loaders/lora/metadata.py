"""What a network file says about itself: base model, trigger words, hash."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..hashes import file_sha256, tensor_data_sha256
from ..weight_files import weight_file_kind
from .keys import NetworkLayer


def network_version_label(metadata: Mapping[str, str]) -> str:
    """The webui's label of a network file: "SD1", "SD2", "SDXL", or "Unknown" without metadata."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def network_hash(path: Path, metadata: Mapping[str, str]) -> str:
    """`sshs_model_hash` if the metadata has it, else the SHA-256 of the tensor data, or of a whole pickle."""
    if metadata.get("sshs_model_hash"):
        return metadata["sshs_model_hash"]
    if path.is_dir():
        path = next(iter(sorted(path.rglob("adapter_model.*"))))
    return tensor_data_sha256(path) if weight_file_kind(path) == "safetensors" else file_sha256(path)


def network_trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """`modelspec.trigger_phrase`, else the ten commonest tags of `ss_tag_frequency`; empty if there is neither."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return [word.strip() for word in phrase.split(",") if word.strip()]
    try:
        table = json.loads(metadata.get("ss_tag_frequency", "") or "{}")
        counts: Counter[str] = Counter()
        for tags in table.values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError):
        return []  # metadata is for people; a broken note does not make a broken network
    return [tag for tag, _ in counts.most_common(10) if tag]


def rank_stabilised(metadata: Mapping[str, str]) -> bool:
    """Whether LyCORIS trained the network with `rs_lora`, by `ss_network_args`."""
    try:
        args = json.loads(metadata.get("ss_network_args", "") or "{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(args, dict) and str(args.get("rs_lora", "")).lower() in ("true", "1")


def network_base(
    metadata: Mapping[str, str], layers: Mapping[str, NetworkLayer], unknown_keys: Iterable[str] = ()
) -> str:
    """One of "SD1", "SD2", "SDXL", "SD3", "Flux" and "unknown": by the metadata's word, else by names and widths."""
    told = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    for mark, base in _TOLD_BASES:
        if mark in told:
            return base
    if metadata.get("ss_v2") == "True":
        return "SD2"
    names = [*layers, *unknown_keys]
    for mark, base in _LAYER_BASES:
        if any(mark in name for name in names):
            return base
    for name, layer in layers.items():
        if re.search(r"attn2[._]to_[kv]$", name) and "lora_down.weight" in layer.shapes:
            return {768: "SD1", 1024: "SD2", 2048: "SDXL"}.get(layer.shapes["lora_down.weight"][1], "unknown")
    return "unknown"


_TOLD_BASES = (
    ("sdxl", "SDXL"),
    ("stable-diffusion-xl", "SDXL"),
    ("sd3", "SD3"),
    ("stable-diffusion-v3", "SD3"),
    ("flux", "Flux"),
    ("sd_v2", "SD2"),
    ("stable-diffusion-v2", "SD2"),
    ("sd_v1", "SD1"),
    ("stable-diffusion-v1", "SD1"),
)

_LAYER_BASES = (
    ("single_transformer_blocks", "Flux"),
    ("double_blocks", "Flux"),
    ("single_blocks", "Flux"),
    ("joint_blocks", "SD3"),
    ("attn.add_k_proj", "SD3"),
    ("attn_add_k_proj", "SD3"),
    ("lora_te3_", "SD3"),
    ("text_encoder_3.", "SD3"),
    ("lora_te2_", "SDXL"),
    ("text_encoder_2.", "SDXL"),
    ("label_emb", "SDXL"),
    ("add_embedding", "SDXL"),
    ("transformer_blocks_9_", "SDXL"),
    ("transformer_blocks.9.", "SDXL"),
)
