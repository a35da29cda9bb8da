"""Which module of a pipeline a layer of a network file means.

    in the file                                              module (component, path)
    lora_unet_down_blocks_0_attentions_0_proj_in             unet, down_blocks.0.attentions.0.proj_in
    lora_unet_input_blocks_1_1_proj_in                       the same, by its name in the original code
    lora_te_text_model_encoder_layers_0_mlp_fc1              text_encoder, text_model.encoder.layers.0.mlp.fc1
    lora_te1_... lora_te2_...                                SDXL's text_encoder and text_encoder_2
    oft_unet_input_blocks_1_1_proj_in                        kohya's OFT, UNet only
    lycoris_down_blocks_0_attentions_0_proj_in               LyCORIS' own prefix
    unet.down_blocks.0.attentions.0.proj_in                  diffusers and PEFT
    unet.input_blocks.1.1.proj_in                            OneTrainer and ComfyUI, once its prefix is read

The webui reads fewer names than the files have. Nothing is dropped here: a target that the webui leaves out says why,
and the caller decides.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from .keys import LayerPrefix, layer_prefix


class LayerTarget(NamedTuple):
    """The place of one layer of a network file in a pipeline."""

    component: str  # attribute of the pipeline: "unet", "text_encoder" or "text_encoder_2"
    path: str  # the module's path in it; a text encoder's always begins with "text_model." or is "text_projection"
    passed_over: str = ""  # why the webui leaves this layer out; empty where it applies it
    foreign: bool = False  # named as no trainer of the webui's names does (diffusers, PEFT, `lycoris_`)


class PipeLayers:
    """The modules of a pipeline that a network can change, by name.

    pipe: any object with some of `unet`, `text_encoder`, `text_encoder_2`; modules on the meta device will do.
    """

    def __init__(self, pipe: object):
        self.components = pipe_models(pipe)
        self.modules: dict[tuple[str, str], nn.Module] = {}
        for component, model in self.components.items():
            for path, module in _changeable_modules(model):
                self.modules[component, _text_path(path) if component != "unet" else path] = module
        self.base = pipe_base(self.components)
        self._deep_first_up = ("unet", "up_blocks.0.attentions.0.norm") in self.modules
        self._names = {component: self._underscored(component) for component in self.components}

    def target(self, layer: str, *, file_base: str | None = None) -> LayerTarget | None:
        """Where `layer` goes, or None where this pipeline has no such module.

        file_base: "SD1", "SD2" or "SDXL" by the file's own word; it counts only where the models do not tell SD1 from
        SD2 (pipe_base returns None).
        """
        if "." in layer:
            return self._dotted_target(layer)
        row = layer_prefix(layer)
        return None if row is None else self._prefixed_target(row, layer, self.base or file_base or "SD1")

    def is_fused(self, target: LayerTarget, file_base: str | None = None) -> bool:
        """Whether the webui holds this attention projection in one fused matrix, to be had all four or not at all."""
        encoder = "text_encoder" if (self.base or file_base) == "SD2" else "text_encoder_2"
        return target.component == encoder and ".self_attn." in target.path

    def block(self, target: LayerTarget) -> str:
        """The label of the block a module belongs to: "BASE" for text encoders, "IN00".."IN11", "M00",
        "OUT00".."OUT11"; empty for a UNet module outside its blocks."""
        if target.component != "unet":
            return "BASE"
        kind, _, rest = original_unet_name(target.path, up_slot=2).partition("_blocks_")
        if kind in ("input", "output"):
            return f"{'IN' if kind == 'input' else 'OUT'}{int(rest.split('_')[0]):02d}"
        return "M00" if kind.startswith("middle_block") else ""

    def weight_shape(self, key: tuple[str, str]) -> tuple[int, ...]:
        """Shape of a module's weight, by (component, path); of a quantised one, as if it were not."""
        return tuple(plain_shape(self.modules[key]))

    def fused_projection(self, key: tuple[str, str]) -> tuple[nn.Linear, slice] | None:
        """The layer that computes an attention's q, k or v instead of the one by that name, and the rows of it.

        After `fuse_qkv_projections()`, self-attention has `to_qkv`, and cross-attention `to_kv`.
        """
        component, path = key
        parent, _, name = path.rpartition(".")
        if component != "unet" or name not in ("to_q", "to_k", "to_v"):
            return None
        attention = self.components[component].get_submodule(parent)
        if not type(getattr(attention, "processor", None)).__name__.startswith("Fused"):
            return None
        for fused, order in (("to_qkv", ("to_q", "to_k", "to_v")), ("to_kv", ("to_k", "to_v"))):
            layer = getattr(attention, fused, None)
            if layer is not None and name in order:
                start = sum(
                    self.weight_shape((component, f"{parent}.{before}"))[0] for before in order[: order.index(name)]
                )
                return innermost_layer(layer), slice(start, start + self.weight_shape(key)[0])
        return None

    def module_path(self, component: str, key: str) -> str:
        """A parameter's key in a component's own file, with the path that network files have."""
        return key if component == "unet" else _text_path(key)

    def checkpoint_place(self, key: str) -> tuple[str, str] | None:
        """(component, parameter) that a key of a single-file checkpoint means, where it means all of one."""
        layer, _, name = key.rpartition(".")
        row = layer_prefix(layer)
        if row is None or row.kept or row.component not in self._names:
            return None
        inner = layer[len(row.text) :]
        path = self._names[row.component].get(inner.replace(".", "_"), ("", False))[0]
        return (row.component, f"{path}.{name}") if path else None

    def _underscored(self, component: str) -> dict[str, tuple[str, bool]]:
        """Name without prefix -> (path, whether it is diffusers' spelling)."""
        names: dict[str, tuple[str, bool]] = {}
        paths = [path for owner, path in self.modules if owner == component]
        for path in paths if component == "unet" else []:
            names[original_unet_name(path, self._up_slot(path))] = (path, False)
        for path in paths:
            name = path.replace(".", "_")
            # below an attention both spellings are one only where the block's name is
            names[name] = (path, name not in names)
        return names

    def _up_slot(self, path: str) -> int:
        """Where the original up block holds its upsampler: after the attention, or in its place."""
        block = path.split(".upsamplers.")[0]
        return 2 if ("unet", f"{block}.attentions.0.norm") in self.modules else 1

    def _dotted_target(self, layer: str) -> LayerTarget | None:
        component, _, path = layer.partition(".")
        path = path if component == "unet" else _text_path(path)
        if (component, path) not in self.modules:  # the original names, with dots
            path = self._names.get(component, {}).get(path.replace(".", "_"), ("", False))[0]
        if not path:
            return None
        return LayerTarget(
            component, path, "the webui does not read layouts with dots (diffusers', PEFT's, ...)", True
        )

    def _prefixed_target(self, row: LayerPrefix, layer: str, base: str) -> LayerTarget | None:
        name, component = layer[len(row.text) :], row.component
        if row.text == "lora_te_" and base == "SDXL":
            return None
        if not component:
            component = "text_encoder" if name.startswith("text_model_") else "unet"
        if name not in self._names.get(component, {}):
            return None
        path, diffusers_spelling = self._names[component][name]
        if not row.webui:
            return LayerTarget(component, path, "the webui does not read the prefix `lycoris_`", True)
        if component == "unet":
            return LayerTarget(component, path, self._unet_passed_over(row.text, path, diffusers_spelling, base))
        return LayerTarget(component, path, _text_passed_over(row.text, component, path, base))

    def _unet_passed_over(self, prefix: str, path: str, diffusers_spelling: bool, base: str) -> str:
        if not diffusers_spelling:
            return ""
        if prefix == "oft_unet_":
            return "the webui reads kohya's OFT by original names only"
        if path == "conv_norm_out":
            return "the webui reads this layer as `lora_unet_out_0` only"
        if base == "SDXL" and path.startswith("add_embedding."):
            return "the webui reads this layer as `lora_unet_label_emb_...` only"
        if path == "up_blocks.0.upsamplers.0.conv" and self._deep_first_up:
            return "the webui looks for SDXL's first up-sampler in the wrong place"
        return ""


def pipe_models(pipe: object) -> dict[str, nn.Module]:
    """The models of a pipeline that networks can change, by component; of a compiled one, the plain model inside."""
    models = {name: _unwrapped(pipe, name) for name in _NETWORK_COMPONENTS}
    return {name: model for name, model in models.items() if model is not None}


def pipe_base(components: dict[str, nn.Module]) -> str | None:
    """One of "SDXL", "SD2" and "SD1"; None where widths are neither SD1's nor SD2's and only the file could tell."""
    unet = components.get("unet")
    config = getattr(unet, "config", None)
    if "text_encoder_2" in components or getattr(config, "addition_embed_type", None) == "text_time":
        return "SDXL"
    width = getattr(config, "cross_attention_dim", None)
    if unet is None and "text_encoder" in components:
        width = getattr(getattr(components["text_encoder"], "config", None), "hidden_size", None)
    return {768: "SD1", 1024: "SD2"}.get(width if isinstance(width, int) else 0)


def original_unet_name(path: str, up_slot: int) -> str:
    """The name of a UNet module in the original (ldm, sgm) code, dots as underscores.

    path: diffusers' module path; up_slot: which part of its block an upsampler is, 1 or 2. Stage i's part j is block
    3i + j on the way up and 3i + j + 1 on the way down, however many resnets the model has.

    >>> original_unet_name("down_blocks.1.resnets.0.conv1", up_slot=2)
    'input_blocks_4_0_in_layers_2'
    """
    if path in _ORIGINAL_ENDS:
        return _ORIGINAL_ENDS[path]
    sampler = _SAMPLER_PATH.fullmatch(path)
    if sampler:
        block = 3 * int(sampler[2])
        return (
            f"input_blocks_{block + 3}_0_op" if sampler[1] == "down" else f"output_blocks_{block + 2}_{up_slot}_conv"
        )
    part = _BLOCK_PATH.fullmatch(path)
    if not part:
        return path.replace(".", "_")
    way, stage, kind, index, rest = part.groups()
    j, slot = int(index), int(kind == "attentions")
    inner = _ORIGINAL_RESNET.get(rest, rest) if kind == "resnets" else rest.replace(".", "_")
    if way == "mid_block":
        return f"middle_block_{1 if slot else 2 * j}_{inner}"
    block = 3 * int(stage[1:]) + j
    return (
        f"input_blocks_{block + 1}_{slot}_{inner}" if way == "down_blocks" else f"output_blocks_{block}_{slot}_{inner}"
    )


def plain_shape(module: nn.Module) -> torch.Size:
    """Shape (out, in[, kh, kw]) of a module's weight; of a quantised one, as if it were not."""
    if isinstance(module, nn.Linear):
        return torch.Size((module.out_features, module.in_features))
    weight = module._parameters.get("weight")
    if weight is None and callable(getattr(module, "weight", None)):
        weight = module.weight()  # torch.ao's
    return torch.Size() if weight is None else weight.shape


def on_meta(module: nn.Module) -> bool:
    """Whether accelerate keeps the weight elsewhere."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.device.type == "meta"


def compute_dtype(module: nn.Module) -> torch.dtype:
    """What a module's weight is computed in; for weights stored in fewer bits, what its bias or itself says."""
    said = getattr(module, "compute_dtype", None)
    for value in (module._parameters.get("weight"), module._parameters.get("bias")):
        if type(value) is nn.Parameter and value.is_floating_point() and value.element_size() > 1:
            return value.dtype
    return said if isinstance(said, torch.dtype) else torch.float32


def innermost_layer(module: nn.Module) -> nn.Module:
    """The layer itself, where PEFT has wrapped it."""
    while isinstance(getattr(module, "base_layer", None), nn.Module):
        module = module.base_layer  # type: ignore[assignment]
    return module


def _unwrapped(pipe: object, name: str) -> nn.Module | None:
    model = getattr(pipe, name, None)
    return getattr(model, "_orig_mod", model)  # a compiled model keeps the plain one here


def _changeable_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        layer = innermost_layer(child)
        has_weight = layer._parameters.get("weight") is not None and not isinstance(layer, nn.Embedding)
        has_weight = has_weight or callable(getattr(layer, "weight", None))  # quantised by torch.ao
        if layer is not child or has_weight:
            yield path, layer
        else:
            yield from _changeable_modules(child, f"{path}.")


def _text_path(path: str) -> str:
    """CLIPTextModel's paths begin with `text_model.` before transformers 5.6 only; ours always do."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


def _text_passed_over(prefix: str, component: str, path: str, base: str) -> str:
    is_norm = "layer_norm" in path
    if base == "SD2" and prefix == "lora_te1_":
        return "the webui reads SD2's text encoder as `lora_te_` only"
    if base == "SD2" and is_norm:
        return "the webui does not reach the norms of SD2's text encoder"
    if component == "text_encoder_2" and (is_norm or path == "text_projection"):
        return "the webui reaches neither the norms nor the projection of SDXL's second text encoder"
    if prefix == "lora_te_" and path == "text_model.final_layer_norm":
        return "the webui reads this layer as `lora_te1_...` only"
    return ""


_NETWORK_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

_SAMPLER_PATH = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")
_BLOCK_PATH = re.compile(r"(down_blocks|mid_block|up_blocks)(\.\d+)?\.(resnets|attentions)\.(\d+)\.(.+)")

_ORIGINAL_ENDS = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}

_ORIGINAL_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
