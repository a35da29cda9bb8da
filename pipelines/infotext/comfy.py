"""What drew a picture of ComfyUI, from its graph: {"3": {"class_type": "KSampler", "inputs": {"model": ["4", 0]}}}.

The graph is walked from the sampler up its links, the nearest node that has a value giving it. Every walk visits a
node once. Of several samplers it is the one that no other comes before; the others refine what it drew.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any


MOST_SAMPLERS = 16  # of a graph that are looked at
_TEXTS = ("text", "text_g", "populated_text", "prompt", "string", "value", "text1", "wildcard_text", "positive")
_VALUES = ("seed", "noise_seed", "value", "int", "float", "number", *_TEXTS)
_LORAS = re.compile(r"lora_name(_\d+)?")


def comfy_settings(graph: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings of `format_infotext`, and notes, from a graph. Raises AttributeError or TypeError for what is none."""
    nodes = {
        str(key): node["inputs"]
        for key, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    samplers = [key for key, inputs in nodes.items() if _is_sampler(inputs)]
    if not samplers:
        return {}, (f"its graph of {len(nodes)} nodes has no sampler of a known kind",)
    chosen = next((key for key in samplers[:MOST_SAMPLERS] if not _refines(nodes, key, samplers)), samplers[0])
    notes: tuple[str, ...] = ()
    if len(samplers) > 1:
        notes = (f"its graph has {len(samplers)} samplers; the text is about the first, the others are not drawn",)
    return _settings_from(nodes, chosen), notes


def _settings_from(nodes: Mapping[str, Any], key: str) -> dict[str, Any]:
    def nearest(*names: str) -> Any:
        return _nearest(nodes, [key], names)

    sides = {side: _nearest_input(nodes, key, names) for side, names in _SIDES.items()}
    prompt = _text(nodes, sides["positive"])
    tags = "".join(_comfy_tags(nodes, key))
    settings = {
        "prompt": f"{prompt}{tags}",
        "negative_prompt": _text(nodes, sides["negative"]),
        "steps": nearest("steps"),
        "sampler_name": nearest("sampler_name"),
        "scheduler": nearest("scheduler"),
        "cfg_scale": nearest("cfg"),
        "seed": nearest("seed", "noise_seed"),
        "width": nearest("width", "empty_latent_width"),
        "height": nearest("height", "empty_latent_height"),
        "model_name": nearest("ckpt_name", "unet_name", "base_ckpt_name"),
    }
    denoise = nearest("denoise")
    if isinstance(denoise, (int, float)) and denoise < 1:
        settings["denoising_strength"] = denoise
    return settings


_SIDES = {"positive": ("positive", "conditioning", "cond"), "negative": ("negative",)}


def _is_sampler(inputs: Mapping[str, Any]) -> bool:
    if "latent_image" in inputs and ({"steps", "sigmas", "sampler_name"} & set(inputs)):
        return True
    return "sampler_name" in inputs and "steps" in inputs


def _refines(nodes: Mapping[str, Any], key: str, samplers: list[str]) -> bool:
    """Whether another sampler's result leads to this one."""
    start = [str(v[0]) for name in ("latent_image", "image") if _is_link(v := nodes[key].get(name))]
    others = set(samplers) - {key}
    return any(found in others for found in _upstream(nodes, start))


def _upstream(nodes: Mapping[str, Any], start: list[str]) -> Iterator[str]:
    """Nodes up the links, the nearest first, each once."""
    waiting, seen = deque(start), set(start)
    while waiting:
        key = waiting.popleft()
        if key not in nodes:
            continue
        yield key
        for value in nodes[key].values():
            if _is_link(value) and str(value[0]) not in seen:
                seen.add(str(value[0]))
                waiting.append(str(value[0]))


def _nearest(nodes: Mapping[str, Any], start: list[str], names: tuple[str, ...]) -> Any:
    """The value that the nearest node has under one of these names; of a link, what it leads to."""
    for key in _upstream(nodes, start):
        for name in names:
            value = nodes[key].get(name)
            if _is_link(value):
                value = _nearest_plain(nodes, str(value[0]))
            if isinstance(value, (str, int, float)) and not isinstance(value, bool):
                return value
    return None


def _nearest_plain(nodes: Mapping[str, Any], key: str) -> Any:
    """What a node of a single value holds under a usual name."""
    inputs = nodes.get(key, {})
    return next((inputs[name] for name in _VALUES if name in inputs and not _is_link(inputs[name])), None)


def _nearest_input(nodes: Mapping[str, Any], key: str, names: tuple[str, ...]) -> Any:
    """The link (or text) under one of these names at the sampler, or at the nearest node above that has one."""
    return next((nodes[k][name] for k in _upstream(nodes, [key]) for name in names if name in nodes[k]), None)


def _text(nodes: Mapping[str, Any], source: Any) -> str:
    """The nearest text up a link."""
    if isinstance(source, str):
        return source
    if not _is_link(source):
        return ""
    for key in _upstream(nodes, [str(source[0])]):
        for name in _TEXTS:
            if isinstance(nodes[key].get(name), str) and nodes[key][name]:
                return nodes[key][name]
    return ""


def _comfy_tags(nodes: Mapping[str, Any], key: str) -> Iterator[str]:
    """A tag for each loader of a network before the sampler's model."""
    for found in _upstream(nodes, [str(v[0]) for v in [nodes[key].get("model")] if _is_link(v)]):
        inputs = nodes[found]
        for name in [name for name in inputs if _LORAS.fullmatch(name)]:
            number = _LORAS.fullmatch(name)[1] or ""  # type: ignore[index]
            weight = inputs.get(f"strength_model{number}", inputs.get(f"lora_wt{number}"))
            if isinstance(inputs[name], str) and inputs[name] != "None" and isinstance(weight, (int, float)):
                yield f"<lora:{file_stem(inputs[name])}:{weight}>"


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and type(value[1]) is int


def file_stem(name: Any) -> str:
    """A file's name without folder and ending, as other programs write it."""
    return re.sub(r"^.*[/\\]|\.(safetensors|ckpt|pth?|bin|gguf)$", "", str(name))
