"""How the keys of a checkpoint may be spelled, and where its parts stand in it.

    part            as diffusers' converter reads it             also found
    unet            model.diffusion_model.input_blocks.…         without that prefix; averaged weights (model_ema.…)
    vae             first_stage_model.…attn_1.q, vae.…           …attn_1.to_q, to_out.0 (older conversions)
    text encoder    cond_stage_model.transformer.text_model.…    without `text_model.`; cond_stage_model.clip_l.…
    (SD 2, SDXL)    conditioner.embedders.1.model.transformer.…  the names of transformers; clip_g; text_encoders.…

What diffusers does not find by itself is read here under its names (`part_tensors`), and as the state of a
transformers model for text encoders (`text_encoder_tensors`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


LDM_UNET = "model.diffusion_model."
LDM_VAE = ("first_stage_model.", "vae.")
_EMA_UNET = "model_ema.diffusion_model"

_CLIP_L_PLACES = (
    *("conditioner.embedders.0.transformer.", "conditioner.embedders.0.model.", "conditioner.embedders.0."),
    *("cond_stage_model.clip_l.transformer.", "cond_stage_model.clip_l."),
    *("text_encoders.clip_l.transformer.", "text_encoders.clip_l."),
)
_CLIP_G_PLACES = (
    *("conditioner.embedders.1.model.", "conditioner.embedders.1.transformer.", "conditioner.embedders.1."),
    *("cond_stage_model.clip_g.transformer.", "cond_stage_model.clip_g."),
    *("text_encoders.clip_g.transformer.", "text_encoders.clip_g."),
)
_SINGLE_PLACES = ("cond_stage_model.transformer.", "cond_stage_model.model.")

# base -> text encoder -> where it may stand; the first is where diffusers looks for it
TEXT_PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "sd1": {"text_encoder": (*_SINGLE_PLACES, *_CLIP_L_PLACES, "cond_stage_model.")},
    "sd2": {
        "text_encoder": (
            *_SINGLE_PLACES[::-1],
            *("cond_stage_model.clip_h.transformer.", "cond_stage_model.clip_h.", "cond_stage_model."),
        )
    },
    "sdxl": {"text_encoder": _CLIP_L_PLACES, "text_encoder_2": _CLIP_G_PLACES},
    "sdxl-refiner": {
        "text_encoder_2": (
            *("conditioner.embedders.0.model.", "conditioner.embedders.0.transformer.", "conditioner.embedders.0."),
            *_CLIP_G_PLACES,
        )
    },
}

_OPENCLIP_KEYS = ("transformer.resblocks.", "token_embedding.", "positional_embedding", "ln_final.")
_HF_TEXT_KEYS = ("text_model.", "encoder.layers.", "embeddings.", "final_layer_norm.")


class TensorTable(Protocol):
    """An opened checkpoint: tensors by key."""

    def keys(self) -> list[str]: ...

    def tensor(self, key: str) -> Tensor: ...


class CheckpointNames(NamedTuple):
    """Where a checkpoint's parts stand."""

    unet: Mapping[str, str]  # the converter's key -> the file's
    vae: Mapping[str, str]
    text: Mapping[str, str]  # text encoder -> what its keys begin with
    odd: frozenset[str]  # parts that diffusers would not find

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are inside."""
        return (*(("unet",) if self.unet else ()), *(("vae",) if self.vae else ()), *self.text)


def checkpoint_names(keys: Iterable[str], base: str) -> CheckpointNames:
    """Where the parts of a checkpoint of kind `base` stand among its keys."""
    keys = list(keys)
    unet, vae = unet_names(keys), vae_names(keys)
    odd = {name for name, names in (("unet", unet), ("vae", vae)) if any(a != b for a, b in names.items())}
    text, plain = {}, True
    for encoder, places in TEXT_PLACES[base].items():
        place = next((place for place in places if _has_text_encoder(keys, place)), None)
        if place is not None:
            text[encoder] = place
            plain = plain and _plain_text_encoder(keys, place, base, places[0])
    # The converter finds SDXL's first encoder only beside the second, so both are odd where one is.
    return CheckpointNames(unet, vae, text, frozenset(odd if plain else odd | set(text)))


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """The converter's key -> the file's, for the UNet; the averaged weights (EMA) only where there are no others."""
    keys = list(keys)
    found = {key: key for key in keys if key.startswith(LDM_UNET)}
    for prefix in ("diffusion_model.", "") if not found else ():
        if f"{prefix}input_blocks.0.0.weight" in keys and f"{prefix}out.2.weight" in keys:
            return {LDM_UNET + key.removeprefix(prefix): key for key in keys if _UNET_KEY.match(key, len(prefix))}
    if not found:
        found = {_dotted(key.removeprefix(_EMA_UNET)): key for key in keys if key.startswith(_EMA_UNET)}
    return found


def part_tensors(table: TensorTable, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a part under the converter's keys."""
    return {name: table.tensor(key) for name, key in names.items()}


def text_encoder_tensors(table: TensorTable, place: str, layers: int) -> dict[str, Tensor]:
    """A text encoder as the state of transformers' CLIPTextModel (names without `text_model.`) of `layers` layers.

    OpenCLIP's names and its joined q, k, v after diffusers, loaders/single_file_utils.py
    (`convert_open_clip_checkpoint`, Apache-2.0). `text_projection` is a matrix that vectors are multiplied with from
    the left, `text_projection.weight` that of a linear layer, which is its transpose.
    """
    state: dict[str, Tensor] = {}
    outer = place.removesuffix("transformer.")
    for key in table.keys():
        if key == f"{outer}text_projection":
            state["text_projection.weight"] = table.tensor(key).T.contiguous()
        elif key == f"{outer}text_projection.weight":
            state["text_projection.weight"] = table.tensor(key)
        elif key.startswith(place):
            name = _hf_name(key.removeprefix(place).removeprefix("text_model."))
            layer = re.match(r"encoder\.layers\.(\d+)\.", name)
            if layer and int(layer[1]) >= layers or name.endswith("position_ids") or name in _NOT_WEIGHTS:
                continue
            if name.endswith(("in_proj_weight", "in_proj_bias")):
                start, kind = name.rsplit(".in_proj_", 1)
                for part, value in zip("qkv", table.tensor(key).chunk(3)):
                    state[f"{start}.{part}_proj.{kind}"] = value.contiguous()
            else:
                state[name] = table.tensor(key)
    return state


def vae_names(keys: Iterable[str], *, bare: bool = False) -> dict[str, str]:
    """The converter's key -> the file's, for the VAE. bare: in a file of its own its keys need no prefix."""
    keys = list(keys)
    starts = LDM_VAE if not bare or any(key.startswith(LDM_VAE) for key in keys) else ("encoder.", "decoder.")
    found = {}
    for key in keys:
        if bare and key.startswith(("quant_conv.", "post_quant_conv.")) and "encoder." in starts:
            found[key] = key
        elif key.startswith(starts):
            name = re.sub(r"(?<=\.mid\.attn_1\.)(to_out\.0|\w+)(?=\.)", lambda m: _VAE_ATTENTION.get(m[1], m[1]), key)
            found[name] = key
    return found


def _has_text_encoder(keys: list[str], place: str) -> bool:
    starts = tuple(place + start for start in (*_OPENCLIP_KEYS, *_HF_TEXT_KEYS))
    return any(key.startswith(starts) for key in keys)


def _plain_text_encoder(keys: list[str], place: str, base: str, expected: str) -> bool:
    """Whether diffusers' converter finds a text encoder: at the place and in the spelling that it expects."""
    if place != expected:
        return False
    if expected.endswith("transformer."):
        return not any(key.startswith(tuple(place + start for start in _HF_TEXT_KEYS[1:])) for key in keys)
    if any(key.startswith(tuple(place + start for start in _HF_TEXT_KEYS)) for key in keys):
        return False
    return base == "sd2" or f"{place}text_projection.weight" not in keys


def _hf_name(name: str) -> str:
    if name.startswith(_OPENCLIP_KEYS):
        for theirs, ours in _OPENCLIP_NAMES:
            name = name.replace(theirs, ours)
    return name


def _dotted(flat: str) -> str:
    """A UNet key from its form in the averaged weights, which have no dots."""
    for pattern, dotted in _FLAT_NAMES:
        flat = re.sub(pattern, dotted, flat)
    return LDM_UNET + flat


_UNET_KEY = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")
_NOT_WEIGHTS = ("logit_scale", "attn_mask")
_VAE_ATTENTION = {
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out", "group_norm": "norm"},
}
_OPENCLIP_NAMES = (
    ("transformer.resblocks.", "encoder.layers."),
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".c_fc.", ".fc1."),
    (".c_proj.", ".fc2."),
    (".attn.", ".self_attn."),
)
_FLAT_NAMES = (
    (r"(weight|bias)$", r".\1"),
    (r"^(input_blocks|output_blocks)(\d+)(\d)", r"\1.\2.\3."),
    (r"^(middle_block|time_embed|out)(\d)", r"\1.\2."),
    (r"^label_emb(\d)(\d)", r"label_emb.\1.\2."),
    (r"(in_layers|out_layers|emb_layers)(\d)", r"\1.\2"),
    (r"transformer_blocks(\d+)(attn\d|norm\d|ff)", r"transformer_blocks.\1.\2"),
    (r"(attn\d)(to_[qkv])", r"\1.\2"),
    (r"(attn\d)to_out(\d)", r"\1.to_out.\2"),
    (r"ffnet(\d)", r"ff.net.\1"),
    (r"(net\.\d)proj", r"\1.proj"),
    (r"\.{2,}", "."),
)
