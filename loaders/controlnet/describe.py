"""Which kind of control network a file holds, by its keys, and its configuration as diffusers has it.

ldm            as trained: `control_model.input_blocks.…`, `zero_convs.…`, with or without the prefix
difference     the same, less the base model's weights; they are added again from a UNet
lora           the same, the base model's weights as low-rank changes: `input_blocks.….up`, `.down` (Control-LoRA)
diffusers      `controlnet_down_blocks.…`
union          the same with `task_embedding`: one network for many tasks
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.configs import model_config_files
from ..weight_files import WeightFileError


LDM_PREFIX = "control_model."
_WIDTH_BASES = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # width of the text that a network reads
CONTROL_BASE_TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}

_CONTROL_LORA_PART = r"^(input_blocks|middle_block|label_emb|time_embed)\..*\.(up|down)$"
# What some key of the file begins with or has in it -> what it is, and what to do with it.
_OTHER_KINDS = (
    (r"^lllite_", "a ControlLLLite", "take a whole ControlNet for the same task"),
    (r"^(adapter\.)?body\.\d+\.|^adapter\.", "a T2I-Adapter",
     "load it with diffusers' T2IAdapter and StableDiffusionAdapterPipeline"),
    (r"^(image_proj|ip_adapter)\b", "an IP-Adapter", "load it with `pipe.load_ip_adapter`"),
    (r"^(lora_unet_|lora_te|lycoris_)|\.lora_(A|B|up|down)\.", "a LoRA", "make it known with `pipe.add_lora`"),
    (r"^model\.diffusion_model\.", "a checkpoint", "load it with `from_single_file`"),
    (r"^(transformer_blocks|single_transformer_blocks|double_blocks|controlnet_blocks)\.",
     "a ControlNet for a transformer model (SD3, Flux)", "take one for Stable Diffusion 1.x, 2.x or SDXL"),
)  # fmt: skip


def control_file_kind(path: Path, keys: Collection[str]) -> str:
    """Either "ldm", "difference", "lora", "diffusers" or "union". Raises WeightFileError for any other, saying what it
    is."""
    bare = {key.removeprefix(LDM_PREFIX) for key in keys}
    if "task_embedding" in bare and "controlnet_cond_embedding.conv_in.weight" in bare:
        return "union"
    if "controlnet_cond_embedding.conv_in.weight" in bare:
        return "diffusers"
    lora = "lora_controlnet" in bare or any(re.search(_CONTROL_LORA_PART, key) for key in bare)
    if "input_hint_block.0.weight" in bare and "zero_convs.0.0.weight" in bare:
        return "lora" if lora else "difference" if "difference" in bare else "ldm"
    if lora:
        raise WeightFileError(
            f"`{path}` is part of a Control-LoRA: the layers that read the control image are not in it. Fetch it "
            "again."
        )
    for pattern, kind, advice in _OTHER_KINDS:
        if any(re.search(pattern, key) for key in keys):
            raise WeightFileError(f"`{path}` is {kind} and no ControlNet: {advice}.")
    first = next(iter(keys), "none")
    raise WeightFileError(
        f"`{path}` holds no ControlNet: none of its {len(keys)} keys (`{first}` first) is one of a control network. "
        "Take the ControlNet's own file."
    )


def ldm_layers_per_block(keys: Collection[str]) -> int:
    """How many layers each block of a file in the ldm layout has."""
    downs = sorted(int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", key)))
    blocks = {int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d+)\.", key))}
    return (downs[0] if downs else max(blocks) + 1) - 1


def control_config(
    path: Path, shapes: Mapping[str, tuple[int, ...]], unet: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The configuration of a control network in diffusers' layout, from the shapes of its weights.

    unet: of the UNet it goes with, which tells what shapes do not; None: the published one of the same width. Raises
    WeightFileError without `unet` for a network of no published size.
    """
    blocks = sorted({int(match[1]) for key in shapes if (match := re.match(r"down_blocks\.(\d+)\.", key))})
    depths = [_depth(shapes, f"down_blocks.{block}.attentions.0") for block in blocks]
    texts = [shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")]
    if unet is None and texts and texts[0] not in _WIDTH_BASES:
        raise WeightFileError(
            f"`{path}` is a ControlNet of no published size (it reads text {texts[0]} wide) and does not say how many "
            "heads its attentions have: give the UNet of its model as `unet=`, or put its config.json beside it."
        )
    known = dict(unet) if unet is not None else _published_unet(texts[0] if texts else None)
    width = texts[0] if texts else known.get("cross_attention_dim", 1280)
    middle = _depth(shapes, "mid_block.attentions.0")
    if not depths[-1] and middle:
        depths[-1] = middle
    config: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1],
        **_hint_config(shapes),
        "block_out_channels": [shapes[f"down_blocks.{block}.resnets.0.conv1.weight"][0] for block in blocks],
        "down_block_types": [
            "CrossAttnDownBlock2D" if f"down_blocks.{block}.attentions.0.norm.weight" in shapes else "DownBlock2D"
            for block in blocks
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "layers_per_block": len({key.split(".")[3] for key in shapes if key.startswith("down_blocks.0.resnets.")}),
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": width,
        "use_linear_projection": any(
            len(shape) == 2 for key, shape in shapes.items() if key.endswith("attentions.0.proj_in.weight")
        ),
    }
    if "add_embedding.linear_1.weight" in shapes:
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = known.get("addition_time_embed_dim") or 256
        config["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    for name in (
        "attention_head_dim",
        "num_attention_heads",
        "norm_num_groups",
        "norm_eps",
        "act_fn",
        "upcast_attention",
    ):
        if known.get(name) is not None:
            config[name] = known[name]
    if "task_embedding" in shapes:
        config |= {
            "num_control_type": shapes["task_embedding"][0],
            "num_trans_channel": shapes["task_embedding"][1],
            "num_trans_layer": len({key.split(".")[1] for key in shapes if key.startswith("transformer_layes.")}),
            "num_proj_channel": shapes["spatial_ch_projs.weight"][0],
            "addition_time_embed_dim": shapes["control_add_embedding.linear_1.weight"][1]
            // shapes["task_embedding"][0],
        }
    return _with_heads_for(config)


def _hint_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The part of the configuration about the layers that read the control image."""
    hint = "controlnet_cond_embedding"
    steps = sorted(int(key.split(".")[2]) for key in shapes if re.match(rf"{hint}\.blocks\.\d+\.weight", key))
    return {
        "conditioning_channels": shapes[f"{hint}.conv_in.weight"][1],
        "conditioning_embedding_out_channels": [
            shapes[f"{hint}.conv_in.weight"][0],
            *(shapes[f"{hint}.blocks.{step}.weight"][0] for step in steps[1::2]),
        ],
    }


def _depth(shapes: Mapping[str, tuple[int, ...]], attention: str) -> int:
    """How many transformer blocks an attention has; 0 where it is not there."""
    return len(
        {
            key.split("transformer_blocks.")[1].split(".")[0]
            for key in shapes
            if key.startswith(f"{attention}.transformer_blocks.")
        }
    )


def _published_unet(width: int | None) -> dict[str, Any]:
    """The published UNet that reads text of this width; Stable Diffusion 1's where there is none."""
    return dict(model_config_files(_WIDTH_BASES.get(width or 0, "sd1"))["unet/config.json"])


def _with_heads_for(config: dict[str, Any]) -> dict[str, Any]:
    """Heads listed by block, cut to the blocks there are."""
    for name in ("attention_head_dim", "num_attention_heads"):
        heads = config.get(name)
        if isinstance(heads, (list, tuple)):
            count = len(config["block_out_channels"])
            config[name] = [*heads, *[heads[-1]] * count][:count]
    return config


def control_base(width: int, has_sizes: bool) -> str | None:
    """Which base model a network is for, by the width of the text it reads; None for other sizes."""
    base = _WIDTH_BASES.get(width)
    return base if base is None or (base == "sdxl") == has_sizes else None
