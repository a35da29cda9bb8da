"""From a diffusers pipeline to the keys of a checkpoint in one file: the other way round than diffusers converts."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def ldm_unet(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    attended = {match[1] for key in state if (match := re.match(r"(up_blocks\.\d+)\.attentions", key))}

    def place(side: str, block: int, kind: str, number: int) -> str:
        index = block * (layers + 1) + (layers if "samplers" in kind else number) + (side == "down")
        where = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}.get(kind)
        where = where or ("2" if f"up_blocks.{block}" in attended else "1")
        return f"{'input' if side == 'down' else 'output'}_blocks.{index}.{where}"

    def rename(key: str) -> str:
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
            side, block, kind, number, rest = match.groups()
            rest = rest.removeprefix("conv.") if kind == "downsamplers" else rest
            key = f"{place(side, int(block), kind, int(number))}.{rest}"
        elif match := re.match(r"mid_block\.(\w+)\.(\d+)\.(.+)", key):
            index = 1 if match[1] == "attentions" else 2 * int(match[2])
            kind, key = match[1], f"middle_block.{index}.{match[3]}"
        else:
            start, _, end = key.rpartition(".")
            return f"{_UNET_ENDS[start]}.{end}"
        if kind == "resnets":
            parts = key.split(".")
            key = ".".join(_RESNET.get(part, part) for part in parts)
        return key

    return {f"model.diffusion_model.{rename(key)}": value for key, value in state.items()}


def ldm_vae(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    tensors = {}
    for key, value in state.items():
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            key = re.sub(r"to_([qkv])\b", r"\1", key).replace("to_out.0", "proj_out")
            value = value[..., None, None] if value.ndim == 2 else value
        tensors[f"first_stage_model.{key}"] = value
    return tensors


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `text_model.`, which transformers before 5.6 has and later ones have not."""
    return {key.removeprefix("text_model."): value for key, value in state.items()}


def ldm_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state, tensors = bare(state), {}
    for key, value in state.items():
        if key == "text_projection.weight":
            tensors["text_projection"] = value.T.contiguous()
        elif match := re.match(r"(.*self_attn)\.q_proj\.(weight|bias)", key):
            start = match[1].replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
            parts = [state[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"]
            tensors[f"{start}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", key):
            for ours, theirs in _OPENCLIP.items():
                key = key.replace(ours, theirs)
            tensors[key] = value
    return {prefix + key: value for key, value in tensors.items()}


def one_file(pipe: object) -> dict[str, Tensor]:
    """The tensors of a StableDiffusion(XL)Pipeline under a checkpoint's keys."""
    tensors = ldm_unet(pipe.unet.state_dict(), pipe.unet.config.layers_per_block)
    tensors |= ldm_vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    text = pipe.text_encoder
    second = getattr(pipe, "text_encoder_2", None)
    if text is not None and text.config.hidden_act == "gelu":
        tensors |= ldm_open_clip(text.state_dict(), "cond_stage_model.model.")
        tensors["cond_stage_model.model.text_projection"] = torch.eye(text.config.hidden_size)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    elif text is not None:
        prefix = "cond_stage_model" if second is None else "conditioner.embedders.0"
        tensors |= {f"{prefix}.transformer.text_model.{key}": value for key, value in bare(text.state_dict()).items()}
    if second is not None:
        number = 0 if text is None else 1
        tensors |= ldm_open_clip(second.state_dict(), f"conditioner.embedders.{number}.model.")
    return {key: value.contiguous() for key, value in tensors.items()}
