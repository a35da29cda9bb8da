"""Texts of other programs in pictures, in the webui's words.

program     told by                                          read
webui       "parameters"                                     as it is
ComfyUI     "prompt" (a graph of nodes), "workflow"          the sampler node and what leads to it
InvokeAI    "invokeai_metadata", "sd-metadata", "Dream"      all the usual fields
NovelAI     "Software: NovelAI", "Comment"                   all the usual fields

What is read says how such a picture was made. The same arguments draw another picture here: noise and weights of the
prompt are another program's.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .write import format_infotext


class ToolText(NamedTuple):
    """What a picture's texts say. Fields as in PictureText."""

    text: str
    tool: str
    notes: tuple[str, ...] = ()
    raw: Mapping[str, str] = {}


_K_SAMPLER_NAMES = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s": "DPM++ 2S a",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "ddim": "DDIM",
    "ddim_v3": "DDIM",
    "plms": "PLMS",
    "uni_pc": "UniPC",
    "unipc": "UniPC",
    "lcm": "LCM",
    "restart": "Restart",
}
_K_SCHEDULE_NAMES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
}
_OTHER_NOISE = "its noise and prompt weights are its own, so the same arguments draw another picture here"


def read_tool_text(texts: Mapping[str, str]) -> ToolText:
    """What the texts of a picture, by their names in the file, say; and which program wrote them."""
    for mark, tool, read in _TOOL_MARKS:
        if mark not in texts or (tool == "NovelAI" and "NovelAI" not in texts[mark]):
            continue
        try:
            settings, notes = read(texts)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            settings, notes = {}, (f"`{mark}` is not as {tool} writes it ({error})",)
        text = settings if isinstance(settings, str) else _written_settings(settings)
        return ToolText(text, tool, notes, {} if tool == "webui" else dict(texts))
    return ToolText("", "", (), dict(texts))


def _written_settings(settings: Mapping[str, Any]) -> str:
    known = {name: value for name, value in settings.items() if value not in (None, "", {})}
    return format_infotext({**known, "version": None}) if known else ""


def _read_webui(texts: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    return texts["parameters"], ()


# --- ComfyUI: a graph of nodes, {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}}}


def _read_comfy(texts: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    graph = json.loads(texts["prompt"])
    nodes = {str(key): node for key, node in graph.items() if isinstance(node, dict) and "inputs" in node}
    samplers = [node for node in nodes.values() if {"sampler_name", "steps"} & set(node["inputs"])]
    if not samplers:
        return {}, (f"its graph of {len(nodes)} nodes has no sampler of a known kind",)
    notes = [_OTHER_NOISE]
    if len(samplers) > 1:
        notes.append(f"its graph has {len(samplers)} samplers; the text is about the first")
    inputs = {name: _comfy_value(nodes, value) for name, value in samplers[0]["inputs"].items()}
    size = _comfy_inputs(nodes, samplers[0]["inputs"].get("latent_image"), "width")
    loader = _comfy_inputs(nodes, samplers[0]["inputs"].get("model"), "ckpt_name")
    sampler, schedule = str(inputs.get("sampler_name", "")), str(inputs.get("scheduler", ""))
    settings = {
        "prompt": _comfy_text(nodes, samplers[0]["inputs"].get("positive")),
        "negative_prompt": _comfy_text(nodes, samplers[0]["inputs"].get("negative")),
        "steps": inputs.get("steps"),
        "sampler_name": _K_SAMPLER_NAMES.get(sampler, sampler),
        "scheduler": _K_SCHEDULE_NAMES.get(schedule, schedule),
        "cfg_scale": inputs.get("cfg"),
        "seed": inputs.get("seed", inputs.get("noise_seed")),
        "width": size.get("width"),
        "height": size.get("height"),
        "model_name": re.sub(r"^.*[/\\]|\.\w+$", "", str(loader.get("ckpt_name", ""))),
        "opt_randn_source": "CPU",
    }
    denoise = inputs.get("denoise")
    if denoise not in (None, 1, 1.0):
        settings["denoising_strength"] = denoise
    return settings, tuple(notes)


def _comfy_value(nodes: Mapping[str, Any], value: Any) -> Any:
    """An input's value: itself, or what the node that it is linked to holds under a usual name."""
    if not _is_comfy_link(value):
        return value
    inputs = nodes.get(str(value[0]), {"inputs": {}})["inputs"]
    return next((inputs[n] for n in ("seed", "value", "noise_seed", "text", "string") if n in inputs), None)


def _comfy_inputs(nodes: Mapping[str, Any], link: Any, wanted: str, seen: frozenset[str] = frozenset()) -> dict:
    """The inputs of the nearest node up the links that has the wanted one as a value."""
    if not _is_comfy_link(link) or str(link[0]) in seen or str(link[0]) not in nodes:
        return {}
    inputs = nodes[str(link[0])]["inputs"]
    if wanted in inputs and not _is_comfy_link(inputs[wanted]):
        return inputs
    for value in inputs.values():
        if found := _comfy_inputs(nodes, value, wanted, seen | {str(link[0])}):
            return found
    return {}


def _comfy_text(nodes: Mapping[str, Any], link: Any) -> str:
    for name in ("text", "text_g", "string", "value"):
        value = _comfy_inputs(nodes, link, name).get(name)
        if isinstance(value, str):
            return value
    return ""


def _is_comfy_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


# --- InvokeAI: flat JSON since 3.0, {"image": {...}} before, a command line in the beginning


def _read_invoke(texts: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if "invokeai_metadata" in texts:
        data = json.loads(texts["invokeai_metadata"])
    elif "sd-metadata" in texts:
        whole = json.loads(texts["sd-metadata"])
        data = {**whole, **whole.get("image", {})}
    else:
        return _read_dream(texts["Dream"])
    model, prompt = data.get("model") or {}, data.get("positive_prompt", data.get("prompt", ""))
    if isinstance(prompt, list):
        prompt = prompt[0].get("prompt", "") if prompt else ""
    sampler = str(data.get("scheduler", data.get("sampler", "")))
    stem, has_karras = re.sub(r"_k(arras)?$|^k_", "", sampler), sampler.endswith("_k")
    settings = {
        "prompt": prompt,
        "negative_prompt": data.get("negative_prompt"),
        "steps": data.get("steps"),
        "sampler_name": _K_SAMPLER_NAMES.get(stem, sampler),
        "scheduler": "Karras" if has_karras else None,
        "cfg_scale": data.get("cfg_scale"),
        "seed": data.get("seed"),
        "width": data.get("width"),
        "height": data.get("height"),
        "model_name": model.get("name", model.get("model_name")) if isinstance(model, dict) else model,
        "denoising_strength": data.get("strength"),
        "opt_randn_source": "CPU",
    }
    return settings, (_OTHER_NOISE,)


def _read_dream(line: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`"a cat" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms`"""
    prompt = re.match(r'\s*"((?:\\.|[^"\\])*)"', line)
    found = dict(re.findall(r"\s-([sSWHCA])\s*(\S+)", line[prompt.end() if prompt else 0 :]))
    sampler = found.get("A", "")
    return {
        "prompt": prompt[1] if prompt else line.partition(" -")[0],
        "steps": found.get("s"),
        "sampler_name": _K_SAMPLER_NAMES.get(sampler.removeprefix("k_"), sampler),
        "cfg_scale": found.get("C"),
        "seed": int(found["S"]) if found.get("S", "").isdecimal() else None,
        "width": found.get("W"),
        "height": found.get("H"),
    }, (_OTHER_NOISE,)


# --- NovelAI: the prompt in "Description", the rest as JSON in "Comment"


def _read_novel(texts: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    data = json.loads(texts.get("Comment", "{}"))
    sampler, schedule = str(data.get("sampler", "")), str(data.get("noise_schedule", ""))
    settings = {
        "prompt": texts.get("Description") or data.get("prompt", ""),
        "negative_prompt": data.get("uc"),
        "steps": data.get("steps"),
        "sampler_name": _K_SAMPLER_NAMES.get(sampler.removeprefix("k_"), sampler),
        "scheduler": _K_SCHEDULE_NAMES.get(schedule),
        "cfg_scale": data.get("scale"),
        "seed": data.get("seed"),
        "width": data.get("width"),
        "height": data.get("height"),
        "denoising_strength": data.get("strength") if data.get("request_type") == "Img2ImgRequest" else None,
        "model_name": texts.get("Source"),
    }
    return settings, (_OTHER_NOISE, "its {brackets} weigh by 1.05, not 1.1, and mean nothing here")


_TOOL_MARKS: tuple[tuple[str, str, Callable[[Mapping[str, str]], tuple[Any, tuple[str, ...]]]], ...] = (
    ("invokeai_metadata", "InvokeAI", _read_invoke),
    ("sd-metadata", "InvokeAI", _read_invoke),
    ("Dream", "InvokeAI", _read_invoke),
    ("Software", "NovelAI", _read_novel),
    ("parameters", "webui", _read_webui),
    ("prompt", "ComfyUI", _read_comfy),
    ("workflow", "ComfyUI", lambda texts: ({}, ("only its workflow is there, not the graph that was run",))),
)
