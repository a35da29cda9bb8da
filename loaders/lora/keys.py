"""Keys of network files: which layer, which part, which family.

    key                                                       layer                   part
    lora_unet_conv_in.lora_up.weight                          lora_unet_conv_in       lora_up.weight
    unet.conv_in.lora_A.weight             diffusers, PEFT    unet.conv_in            lora_down.weight
    base_model.model.conv_in.lora_B.weight PEFT's own file    unet.conv_in            lora_up.weight
    unet.X.processor.to_out_lora.up.weight first diffusers    unet.X.to_out.0         lora_up.weight
    text_encoder.X.lora_linear_layer.up.weight                text_encoder.X          lora_up.weight
    bundle_emb.token.string_to_param.*                        an embedding named `token`

Everything before the first dot names the layer; in the dotted layouts, everything before the part.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .families import glora_is_new


Shape = tuple[int, ...]


@dataclass(frozen=True)
class NetworkLayer:
    """One layer of a network file: what is there, not yet where it goes."""

    name: str  # as the file names it: "lora_unet_conv_in", "unet.conv_in"
    family: str  # "lora", "loha", "lokr", "full", "norm", "ia3", "glora", "oft"
    keys: Mapping[str, str]  # part -> key in the file
    shapes: Mapping[str, Shape]  # part -> shape
    scale: float | None = None  # where the file says it outside its tensors (PEFT's configuration)
    webui_refuses: str = ""  # why the webui refuses a whole file for the sake of this layer; empty where it does not

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None for a family without a rank, whose alpha is no scale."""
        for part in _RANK_PARTS.get(self.family, ()):
            if part in self.shapes:
                return self.shapes[part][0]
        return None

    @property
    def dora(self) -> bool:
        """Whether the weight is decomposed into length and direction."""
        return "dora_scale" in self.keys

    @property
    def peft(self) -> bool:
        """Whether the layer is in diffusers' or PEFT's layout."""
        return "." in self.name


def split_network_key(key: str) -> tuple[str, str]:
    """(layer, part) of a key. A key of no known form splits at its first dot."""
    dotted = _DOTTED_KEY.fullmatch(key)
    if not dotted:
        layer, _, part = key.partition(".")
        return layer, part
    path, part = dotted["path"], dotted["part"]
    if dotted["old"]:  # the first attention processors: to_out_lora.up.weight
        path, part = f"{path}.{dotted['old']}", f"lora_{part.split('.')[-2]}.weight"
    path = re.sub(r"\.to_out$", ".to_out.0", path)
    return _component_path(path), _PART_NAMES.get(part, part)


def embedding_name(key: str) -> tuple[str, str] | None:
    """(name, what follows it) of a bundled embedding's key; None for any other key. The name ends at its first dot."""
    if not key.startswith("bundle_emb."):
        return None
    name, _, rest = key[len("bundle_emb.") :].partition(".")
    return name, rest


def layer_family(parts: Iterable[str]) -> tuple[str, str] | None:
    """(family, why the webui refuses a file with it) by the parts of one layer; None where they make up no family.

    The order is the webui's. The reference libraries also take a bias without a weight, a norm without a bias and a
    GLoRA without alpha, for which the webui refuses the whole file.
    """
    have = set(parts)
    for family, required in _FAMILY_PARTS:
        if required <= have:
            return family, ""
    if {"lokr_w1"} <= have or {"lokr_w1_a", "lokr_w1_b"} <= have:
        if {"lokr_w2"} <= have or {"lokr_w2_a", "lokr_w2_b"} <= have:
            return "lokr", ""
    for family, required, why in _REFERENCE_PARTS:
        if required <= have:
            return family, why
    return None


def layer_flaw(layer: NetworkLayer) -> str:
    """What is wrong with a layer whatever the model, in words for a message; empty if nothing is."""
    shapes = layer.shapes
    for part in ("alpha", "scale", "on_input"):
        if part in shapes and math.prod(shapes[part]) != 1:
            return f"`{part}` holds {math.prod(shapes[part])} values, and one was expected"
    if any(0 in shape for part, shape in shapes.items()):
        return f"`{next(part for part, shape in shapes.items() if 0 in shape)}` is empty"
    for part, wanted in _PART_DIMS.items():
        if part in shapes and len(shapes[part]) not in wanted:
            return f"`{part}` has shape {shapes[part]}, which is no factor of a weight"
    flaw = _inner_flaw(layer)
    size = delta_size(layer)
    if not flaw and size and layer.rank and layer.rank > max(2 * max(size), 64):
        return f"rank {layer.rank} is absurd for a change of {size[0]} by {size[1]}"
    return flaw


def layer_misfit(layer: NetworkLayer, weight: Shape, on_input: bool = True) -> str:
    """Why the layer does not fit a weight of this shape (out[, in[, kh, kw]]); empty if it does.

    on_input: the value of IA3's part of that name.
    """
    out, row = weight[0], math.prod(weight[1:])
    size = delta_size(layer)
    narrow = len(weight) == 4 and weight[1] == 9 and size == (out, 4 * math.prod(weight[2:]))
    if size and size != (out, row) and not (narrow and not layer.dora and "bias" not in layer.shapes):
        return f"it changes a weight of {size[0]} by {size[1]}, and the model's is {out} by {row} {weight}"
    if layer.family in ("ia3", "glora", "oft") or layer.dora:
        if len(weight) < 2:
            return f"the model's layer is a norm (weight {weight}), which `{layer.family}` does not change"
    flaw = _WEIGHT_CHECKS[layer.family](layer.shapes, weight) if layer.family in _WEIGHT_CHECKS else ""
    if layer.family == "ia3" and math.prod(layer.shapes["weight"]) != weight[int(on_input)]:
        flaw = f"`weight` is {layer.shapes['weight']}, and the model's weight {weight}"
    for part in ("diff_b", "b_norm", "rescale", "lora_up.bias"):
        if part in layer.shapes and math.prod(layer.shapes[part]) != out:
            flaw = flaw or f"`{part}` is {layer.shapes[part]}, and the model's layer has {out} outputs"
    if "bias" in layer.shapes and math.prod(layer.shapes["bias"]) != out * row:
        flaw = flaw or f"`bias` is {layer.shapes['bias']}, and the model's weight {weight}"
    if layer.dora and math.prod(layer.shapes["dora_scale"]) not in (out, weight[1]):
        flaw = flaw or f"`dora_scale` is {layer.shapes['dora_scale']}, and the model's weight {weight}"
    return flaw


def webui_limit(layer: NetworkLayer, weight: Shape, on_input: bool = True) -> str:
    """Why the webui fails on this layer although its file means something; empty where it does not fail.

    on_input: the value of IA3's part of that name.
    """
    if layer.family == "ia3" and len(weight) == 4 and not on_input:
        return "the webui cannot scale the outputs of a convolution (IA3)"
    if layer.family == "glora" and len(weight) == 4:
        return "the webui applies GLoRA to linear layers only"
    if layer.family == "glora" and glora_is_new(layer.shapes, weight):
        return "the webui reads the first GLoRA layout only, and this is today's"
    return ""


def delta_size(layer: NetworkLayer) -> tuple[int, int] | None:
    """(out, in * kh * kw) of the change, from the factors' shapes; None for families that take it from the weight."""
    s = layer.shapes
    if layer.family == "lora":
        mid = math.prod(s["lora_mid.weight"][2:]) if "lora_mid.weight" in s else 1
        return s["lora_up.weight"][0], math.prod(s["lora_down.weight"][1:]) * mid
    if layer.family == "loha":
        if "hada_t1" in s:
            return s["hada_w1_a"][1], s["hada_w1_b"][1] * math.prod(s["hada_t1"][2:])
        return s["hada_w1_a"][0], math.prod(s["hada_w1_b"][1:])
    if layer.family == "lokr":
        w1, w2 = _lokr_sizes(s)
        return w1[0] * w2[0], w1[1] * w2[1]
    for part in ("diff", "w_norm"):
        if layer.family in ("full", "norm") and part in s:
            return (s[part] or (1,))[0], math.prod(s[part][1:])
    return None


def _lokr_sizes(s: Mapping[str, Shape]) -> tuple[tuple[int, int], tuple[int, int]]:
    w1 = s["lokr_w1"] if "lokr_w1" in s else (s["lokr_w1_a"][0], s["lokr_w1_b"][1])
    if "lokr_w2" in s:
        return (w1[0], w1[1]), (s["lokr_w2"][0], math.prod(s["lokr_w2"][1:]))
    if "lokr_t2" in s:
        return (w1[0], w1[1]), (s["lokr_w2_a"][1], s["lokr_w2_b"][1] * math.prod(s["lokr_t2"][2:]))
    return (w1[0], w1[1]), (s["lokr_w2_a"][0], math.prod(s["lokr_w2_b"][1:]))


def _inner_flaw(layer: NetworkLayer) -> str:
    """Factors of one layer that disagree with each other."""
    s = layer.shapes
    pairs = list(_PAIRS.get(layer.family, ()))
    if layer.family == "loha" and "hada_t1" in s:
        pairs = []
        if s["hada_w1_a"] != s["hada_w2_a"] or s["hada_w1_b"] != s["hada_w2_b"] or s.get("hada_t2") != s["hada_t1"]:
            return "its two halves have different shapes"
    if layer.family == "lokr" and "lokr_t2" in s:
        pairs = pairs[:1]
    if "lora_mid.weight" in s:
        n, j = s["lora_mid.weight"][:2]
        if (n, j) != (s["lora_up.weight"][1], s["lora_down.weight"][0]):
            return f"`lora_mid` {s['lora_mid.weight']} joins neither `lora_up` nor `lora_down`"
        pairs = []
    for a, b in pairs:
        if a in s and b in s and math.prod(s[a][1:]) != s[b][0]:
            return f"`{a}` {s[a]} and `{b}` {s[b]} disagree about the rank"
    if layer.family == "oft" and len(set((s["oft_blocks"] if "oft_blocks" in s else s["oft_diag"])[-2:])) != 1:
        return "its rotation blocks are not square"
    return ""


def _glora_misfit(s: Mapping[str, Shape], weight: Shape) -> str:
    a1, a2, b1, b2 = (s[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if glora_is_new(s, weight):
        a1, a2, b1, b2 = a2, a1, b2, b1
    row = math.prod(b1[1:]) * (math.prod(s["bm.weight"][2:]) if "bm.weight" in s else 1)
    fits = a2[0] == a1[1] == weight[1] and a2[1] == a1[0] and b2[0] == weight[0] and row == math.prod(weight[1:])
    return "" if fits and b2[1] == b1[0] else f"its factors fit no weight of shape {weight}"


def _oft_misfit(s: Mapping[str, Shape], weight: Shape) -> str:
    blocks = s["oft_blocks"] if "oft_blocks" in s else s["oft_diag"]
    if blocks[-3] * blocks[-1] != weight[0]:
        return f"its rotation turns {blocks[-3] * blocks[-1]} outputs, and the model's layer has {weight[0]}"
    if len(blocks) == 4 and (blocks[-1] % 2 or 2 ** (blocks[0] - 1) * blocks[-1] > weight[0]):
        return f"{blocks[0]} butterfly stages of blocks of {blocks[-1]} do not go into {weight[0]} outputs"
    return ""


def _component_path(path: str) -> str:
    """The path with its component in front; PEFT's own files name none."""
    if path.split(".")[0] in ("unet", "text_encoder", "text_encoder_2"):
        return path
    return f"text_encoder.{path}" if path.startswith(("text_model.", "encoder.")) else f"unet.{path}"


_FAMILY_PARTS = (
    ("lora", {"lora_up.weight", "lora_down.weight"}),
    ("loha", {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
    ("ia3", {"weight", "on_input"}),
    ("full", {"diff"}),
    ("norm", {"w_norm", "b_norm"}),
    ("glora", {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}),
    ("oft", {"oft_blocks"}),
    ("oft", {"oft_diag"}),
)

# what only the reference libraries take: family, parts, why the webui does not
_REFERENCE_PARTS = (
    ("full", {"diff_b"}, "it takes no `diff_b` without `diff`"),
    ("norm", {"w_norm"}, "it takes no `w_norm` without `b_norm`"),
    ("glora", {"a1.weight", "a2.weight", "b1.weight", "b2.weight"}, "it takes no GLoRA without `alpha`"),
)

_RANK_PARTS = {
    "lora": ("lora_down.weight",),
    "loha": ("hada_w1_b",),
    "lokr": ("lokr_w2_b", "lokr_w1_b"),
}

# (columns of this, rows of that) must agree
_PAIRS = {
    "lora": (("lora_up.weight", "lora_down.weight"),),
    "loha": (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")),
    "lokr": (("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
}

_PART_DIMS = {
    "lora_up.weight": (2, 4),
    "lora_down.weight": (2, 4),
    "lora_mid.weight": (4,),
    "hada_w1_a": (2,),
    "hada_w1_b": (2, 4),
    "hada_w2_a": (2,),
    "hada_w2_b": (2, 4),
    "hada_t1": (4,),
    "hada_t2": (4,),
    "lokr_w1": (2,),
    "lokr_w1_a": (2,),
    "lokr_w1_b": (2,),
    "lokr_w2": (2, 4),
    "lokr_w2_a": (2,),
    "lokr_w2_b": (2, 4),
    "lokr_t2": (4,),
    "oft_blocks": (3, 4),
    "oft_diag": (3,),
    "a1.weight": (2, 4),
    "a2.weight": (2, 4),
    "b1.weight": (2, 4),
    "b2.weight": (2, 4),
}

_WEIGHT_CHECKS = {"glora": _glora_misfit, "oft": _oft_misfit}

_PART_NAMES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora_B.bias": "lora_up.bias",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
}

_DOTTED_KEY = re.compile(
    r"""(?:base_model\.model\.)?
    (?P<path>(?:unet|text_encoder(?:_2)?|down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding
        |text_model|encoder|text_projection)(?:\..+?)?)
    (?:\.processor)?
    (?:\.(?P<old>to_[qkv]|to_out)_lora)?
    \.(?P<part>(?:lora_[AB](?:\.default)?\.weight|lora_B\.bias|(?:lora\.|lora_linear_layer\.)?(?:up|down)\.weight
        |lora_magnitude_vector(?:\.weight)?|lora_(?:up|down|mid)\.weight|alpha|scale|dora_scale|diff|diff_b
        |w_norm|b_norm|hada_\w+|lokr_\w+|oft_blocks|oft_diag|rescale))""",
    re.VERBOSE,
)
