"""Keys of network files: which layer, which part.

    key                                                       layer                   part
    lora_unet_conv_in.lora_up.weight                          lora_unet_conv_in       lora_up.weight
    unet.conv_in.lora_A.weight             diffusers, PEFT    unet.conv_in            lora_down.weight
    unet.conv_in.lora_B.style.weight       adapter `style`    unet.conv_in            lora_up.weight
    base_model.model.conv_in.lora_B.weight PEFT's own file    unet.conv_in            lora_up.weight
    unet.X.processor.to_out_lora.up.weight first diffusers    unet.X.to_out.0         lora_up.weight
    text_encoder.X.lora_linear_layer.up.weight                text_encoder.X          lora_up.weight
    diffusion_model.input_blocks.0.0.diff  ComfyUI            unet.input_blocks.0.0   diff
    clip_g.X.lora_up.weight                OneTrainer         text_encoder_2.X        lora_up.weight
    bundle_emb.token.string_to_param.*                        an embedding named `token`

Everything before the first dot names the layer; in the dotted layouts, everything before the part.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .families.family import Family, Shape, Shapes
from .families.table import FAMILIES, shapes_flaw, shapes_misfit


class LayerPrefix(NamedTuple):
    """What a layer's name in a file begins with, and the component of a pipeline that this means."""

    text: str
    component: str  # empty where the rest of the name tells
    webui: bool = False  # whether the webui reads it
    kept: bool = False  # whether it is part of the module's path


# The longest that fits counts. With underscores: kohya's and LyCORIS' names; with dots: everybody else's.
LAYER_PREFIXES = (
    LayerPrefix("lora_unet_", "unet", webui=True),
    LayerPrefix("oft_unet_", "unet", webui=True),
    LayerPrefix("lora_te_", "text_encoder", webui=True),
    LayerPrefix("lora_te1_", "text_encoder", webui=True),
    LayerPrefix("lora_te2_", "text_encoder_2", webui=True),
    LayerPrefix("lycoris_unet_", "unet"),
    LayerPrefix("lycoris_te_", "text_encoder"),
    LayerPrefix("lycoris_te1_", "text_encoder"),
    LayerPrefix("lycoris_te2_", "text_encoder_2"),
    LayerPrefix("lycoris_", ""),
    # of a ControlNet beside the base model: no network changes one
    *(LayerPrefix(f"{name}controlnet_", "controlnet") for name in ("lora_", "oft_", "lycoris_")),
    *(LayerPrefix(f"{name}.", "controlnet") for name in ("controlnet", "control_model")),
    *(
        LayerPrefix(f"{name}.", "controlnet", kept=True)
        for name in ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
    ),
    # diffusers, PEFT, SimpleTuner; OneTrainer's `unet.` goes before original names
    LayerPrefix("unet.", "unet"),
    LayerPrefix("text_encoder.", "text_encoder"),
    LayerPrefix("text_encoder_1.", "text_encoder"),
    LayerPrefix("text_encoder_2.", "text_encoder_2"),
    # OneTrainer
    LayerPrefix("clip_l.", "text_encoder"),
    LayerPrefix("clip_h.", "text_encoder"),
    LayerPrefix("clip_g.", "text_encoder_2"),
    # ComfyUI
    LayerPrefix("diffusion_model.", "unet"),
    LayerPrefix("clip_l.transformer.", "text_encoder"),
    LayerPrefix("clip_h.transformer.", "text_encoder"),
    LayerPrefix("clip_g.transformer.", "text_encoder_2"),
    LayerPrefix("text_encoders.clip_l.", "text_encoder"),
    LayerPrefix("text_encoders.clip_h.", "text_encoder"),
    LayerPrefix("text_encoders.clip_g.", "text_encoder_2"),
    LayerPrefix("text_encoders.clip_l.transformer.", "text_encoder"),
    LayerPrefix("text_encoders.clip_h.transformer.", "text_encoder"),
    LayerPrefix("text_encoders.clip_g.transformer.", "text_encoder_2"),
    # as in a checkpoint of SD1 or SDXL
    LayerPrefix("model.diffusion_model.", "unet"),
    LayerPrefix("cond_stage_model.transformer.", "text_encoder"),
    LayerPrefix("conditioner.embedders.0.transformer.", "text_encoder"),
    # PEFT's own files name no component
    *(
        LayerPrefix(f"{name}.", "unet", kept=True)
        for name in (
            *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_norm_out", "conv_out", "time_embedding"),
            *("add_embedding", "input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"),
        )
    ),
    *(LayerPrefix(f"{name}.", "text_encoder", kept=True) for name in ("text_model", "encoder", "text_projection")),
)


@dataclass(frozen=True)
class NetworkLayer:
    """One layer of a network file: what is there, not yet where it goes."""

    name: str  # as the file names it, "lora_unet_conv_in"; of dotted layouts, with the component: "unet.conv_in"
    family: str  # a key of FAMILIES
    keys: Mapping[str, str]  # part -> key in the file
    shapes: Shapes  # part -> shape
    scale: float | None = None  # where the file says it outside its tensors (PEFT's configuration)
    webui_refuses: str = ""  # why the webui refuses a whole file for the sake of this layer; empty where it does not

    @property
    def algorithm(self) -> Family:
        """The family's row of the table."""
        return FAMILIES[self.family]

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None for a family without a rank, whose alpha is no scale."""
        return self.algorithm.rank(self.shapes)

    @property
    def dora(self) -> bool:
        """Whether the weight is decomposed into length and direction."""
        return "dora_scale" in self.keys

    @property
    def peft(self) -> bool:
        """Whether the layer's DoRA is PEFT's, which has a magnitude vector and its own rule for strengths."""
        return "lora_magnitude_vector" in self.keys.get("dora_scale", "")

    def flaw(self) -> str:
        """What is wrong with the layer whatever the model; empty if nothing is."""
        return shapes_flaw(self.algorithm, self.shapes)

    def misfit(self, weight: Shape, switches: Mapping[str, bool]) -> str:
        """Why the layer does not fit a weight of this shape (out[, in[, kh, kw]]); empty if it does."""
        return shapes_misfit(self.algorithm, self.shapes, weight, switches)

    def webui_limit(self, weight: Shape, switches: Mapping[str, bool]) -> str:
        """Why the webui fails on this layer although its file means something; empty where it does not fail."""
        return self.algorithm.webui_limit(self.shapes, weight, switches)


def layer_prefix(name: str) -> LayerPrefix | None:
    """The row of LAYER_PREFIXES that a name begins with; of several, the longest."""
    rows = [row for row in LAYER_PREFIXES if name.startswith(row.text)]
    return max(rows, key=lambda row: len(row.text), default=None)


def is_for_controlnet(layer: str) -> bool:
    """Whether a layer, by its name, belongs to a ControlNet and not to the model beside it."""
    row = layer_prefix(layer)
    return row is not None and row.component == "controlnet"


def names_no_component(key: str) -> bool:
    """Whether a key tells nothing of the model that its layer is in: PEFT's own files, and LyCORIS' plain prefix."""
    row = layer_prefix(key.removeprefix(_PEFT_MODEL))
    return row is not None and (row.kept or row.text == "lycoris_")


def split_network_key(key: str) -> tuple[str, str]:
    """(layer, part) of a key. A key of no known form splits at its first dot."""
    layer, _, part = key.partition(".")
    dotted = None if layer.startswith(_UNDERSCORED) else _DOTTED_KEY.fullmatch(key)
    path = _component_path(dotted["path"]) if dotted else ""
    if not dotted or not path:
        return layer, part
    part = _part_name(dotted["part"])
    if dotted["old"]:  # the first attention processors: to_out_lora.up.weight
        path = f"{path}.{dotted['old']}"
    return re.sub(r"\.to_out$", ".to_out.0", path), part


def embedding_name(key: str) -> tuple[str, str] | None:
    """(name, what follows it) of a bundled embedding's key; None for any other key. The name ends at its first dot."""
    if not key.startswith("bundle_emb."):
        return None
    name, _, rest = key[len("bundle_emb.") :].partition(".")
    return name, rest


def _component_path(path: str) -> str:
    """The path with its component in front, "unet.conv_in"; empty for a path of no component known here.

    PEFT's `base_model.model.` may stand before a component's prefix, and after it.
    """
    path = path.removeprefix(_PEFT_MODEL)
    row = layer_prefix(f"{path}.")
    if row is None:
        return ""
    inner = path if row.kept else path[len(row.text) :].removeprefix(_PEFT_MODEL)
    return f"{row.component}.{inner}" if inner else ""


def _part_name(part: str) -> str:
    """A part by kohya's and LyCORIS' name, without the name of an adapter."""
    for pattern, name in _PART_NAMES:
        if pattern.fullmatch(part):
            return name
    named = _NAMED_PART.fullmatch(part)
    return named[1] if named else part


_PEFT_MODEL = "base_model.model."
_UNDERSCORED = tuple(row.text for row in LAYER_PREFIXES if row.text.endswith("_"))

_PART_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"lora_A(\.[^.]+)?\.weight|(lora\.|lora_linear_layer\.)?down\.weight|lora_down\.weight", "lora_down.weight"),
        (r"lora_B(\.[^.]+)?\.weight|(lora\.|lora_linear_layer\.)?up\.weight|lora_up\.weight", "lora_up.weight"),
        (r"lora_B(\.[^.]+)?\.bias", "lora_up.bias"),
        (r"lora_magnitude_vector(\.[^.]+)?(\.weight)?", "dora_scale"),
        (r"(lora\.|lora_linear_layer\.)?alpha", "alpha"),
    )
)
_NAMED_PART = re.compile(r"(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))\.[^.]+")

_DOTTED_KEY = re.compile(
    r"""(?P<path>.+?)
    (?:\.processor)?
    (?:\.(?P<old>to_[qkv]|to_out)_lora)?
    \.(?P<part>lora_[AB](?:\.[^.]+)?\.weight|lora_B(?:\.[^.]+)?\.bias
        |(?:lora\.|lora_linear_layer\.)?(?:(?:up|down)\.weight|alpha)
        |lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|lora_(?:up|down|mid)\.weight|scale|dora_scale|diff|diff_b|bias
        |w_norm|b_norm|(?:hada|lokr)_\w+(?:\.[^.]+)?|oft_blocks|oft_diag|rescale|on_input|[ab][12]\.weight|bm\.weight)""",
    re.VERBOSE,
)
