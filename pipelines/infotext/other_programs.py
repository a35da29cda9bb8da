"""Texts of other programs in pictures, in the webui's words.

program               told by                                        read
webui                 "parameters"                                   as it is
ComfyUI               "prompt" (a graph of nodes), "workflow"        the sampler node and what leads to it
InvokeAI              "invokeai_metadata", "sd-metadata", "Dream"    all the usual fields
NovelAI               "Software: NovelAI", "Comment"                 all the usual fields
Fooocus               JSON with "metadata_scheme" or "full_prompt"   what was really drawn: styles and expansion in
SwarmUI, Draw Things, Easy Diffusion, Civitai, the webui's API       JSON of one level, by its usual keys

What is read says how such a picture was made. The same arguments draw another picture here: noise and weights of the
prompt are another program's.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .comfy import comfy_settings, file_stem
from .flat_settings import flat_settings, settings_text, single_value, with_lora_tags
from .programs import PROGRAMS, program_line


class ToolText(NamedTuple):
    """What a picture's texts say. Fields as in PictureText."""

    text: str
    tool: str
    notes: tuple[str, ...] = ()
    raw: Mapping[str, str] = {}


Found = tuple[dict[str, Any], tuple[str, ...]]
_BAD_JSON = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


def read_tool_text(texts: Mapping[str, str]) -> ToolText:
    """What the texts of a picture, by their names in the file, say; and which program wrote them.

    Of the webui's it is the text as it is, which `tidy_infotext` then reads.
    """
    for mark, tool, read in _TOOL_MARKS:
        if mark not in texts or (tool == "NovelAI" and "NovelAI" not in texts[mark]):
            continue
        if tool == "webui":
            return ToolText(texts[mark], tool)
        try:
            settings, notes = read(texts)
        except _BAD_JSON as error:
            settings, notes = {}, (f"`{mark}` is not as {tool} writes it ({type(error).__name__}: {str(error)[:80]})",)
        return _tool_text(tool, settings, notes, texts)
    return ToolText("", "", (), dict(texts))


def read_json_text(text: str) -> ToolText | None:
    """A text that is JSON of some program; None for any other text.

    >>> read_json_text('{"c": "a kite", "uc": "blurry", "steps": 4, "seed": 7}').tool
    'Draw Things'
    """
    stripped = text.strip()
    if stripped[:1] not in ("{", "[") or stripped[-1:] not in ("}", "]"):
        return None
    try:
        data = json.loads(stripped)
    except RecursionError:
        return ToolText("", "another program", ("its JSON is nested too deep to be read",), {"parameters": text})
    except ValueError:
        return None
    if isinstance(data, list) and data and isinstance(data[0], Mapping):
        data = data[0]
    if not isinstance(data, Mapping):
        return None
    tool = next((tool for tool, tells in _JSON_MARKS if tells(data)), "")
    if not tool:
        return ToolText("", "another program", ("its JSON has none of the usual keys",), {"parameters": text})
    if tool == "webui":
        infotexts = data.get("infotexts") or [settings_text(_api_settings(data))]
        return ToolText(str(infotexts[0]), tool, (), {"parameters": text})
    try:
        settings, notes = _JSON_READERS.get(tool, _read_flat)(data)
    except _BAD_JSON as error:
        settings, notes = {}, (f"it is not as {tool} writes it ({type(error).__name__}: {str(error)[:80]})",)
    return _tool_text(tool, settings, notes, {"parameters": text})


def read_command_text(text: str) -> ToolText | None:
    """A text that is a command line of InvokeAI's beginnings; None for any other text."""
    if not re.fullmatch(r'\s*"(?:\\.|[^"\\])*"(?:\s+--?\w+(?:\s+[\w.-]+)?){3,}\s*', text) or " -s" not in text:
        return None
    settings, notes = _read_dream(text.strip())
    return _tool_text("InvokeAI", settings, notes, {"parameters": text})


def _tool_text(tool: str, settings: dict[str, Any], notes: tuple[str, ...], raw: Mapping[str, str]) -> ToolText:
    program = next((program for program in PROGRAMS if program.name == tool), None)
    if program is not None and settings:
        settings = {"noise": program.noise, "version": tool, **settings}
        notes = (program_line(program), *notes)
    return ToolText(settings_text(settings), tool, notes, dict(raw))


# --- JSON of one level: the same things under many names


def _api_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """A request of the webui's API, whose strength means a hires pass or nothing where there is no picture."""
    settings = flat_settings(data)
    given = data.get("override_settings")
    overrides: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    for option, name in _OVERRIDES.items():
        settings |= {name: overrides[option]} if overrides.get(option) not in (None, "") else {}
    if data.get("enable_hr"):
        names = {"Hires upscale": "hr_scale", "Hires steps": "hr_second_pass_steps", "Hires upscaler": "hr_upscaler"}
        settings["extra"] |= {label: data.get(name) for label, name in names.items()}
    elif not data.get("init_images"):
        settings.pop("denoising_strength", None)
    return settings


# Of the API's `override_settings`: what a text says of them.
_OVERRIDES = {
    "CLIP_stop_at_last_layers": "clip_skip",
    "sd_model_checkpoint": "model_name",
    "sd_vae": "vae_name",
    "randn_source": "noise",
}


def _read_flat(data: Mapping[str, Any]) -> Found:
    settings = flat_settings(data)
    strength = single_value(settings.get("denoising_strength"))
    if isinstance(strength, (int, float)) and strength >= 1 or not data.get("init_image", True):
        settings.pop("denoising_strength")
    loras = data.get("lora") or data.get("loras") or []
    return with_lora_tags(settings, loras, data.get("loraweights") or data.get("lora_alpha") or []), ()


# --- the programs


def _read_comfy(texts: Mapping[str, str]) -> Found:
    return comfy_settings(json.loads(texts["prompt"]))


def _read_comfy_json(data: Mapping[str, Any]) -> Found:
    graph = data.get("prompt", data)
    if "nodes" in data and "links" in data:
        return {}, ("only its workflow is there, not the graph that was run",)
    return comfy_settings(json.loads(graph) if isinstance(graph, str) else graph)


def _read_invoke(texts: Mapping[str, str]) -> Found:
    """Flat JSON since 3.0, {"image": {...}} before, a command line in the beginning."""
    if "invokeai_metadata" in texts:
        return _read_invoke_json(json.loads(texts["invokeai_metadata"]))
    if "sd-metadata" in texts:
        whole = json.loads(texts["sd-metadata"])
        return _read_invoke_json({"model": whole.get("model_weights"), **whole, **whole.get("image", {})})
    return _read_dream(texts.get("Dream") or texts["dream"])


def _read_invoke_json(data: Mapping[str, Any]) -> Found:
    prompt, model = data.get("positive_prompt", data.get("prompt", "")), data.get("model") or {}
    if isinstance(prompt, list):
        prompt = prompt[0].get("prompt", "") if prompt else ""
    settings = flat_settings({**data, "prompt": prompt, "sampler": data.get("scheduler", data.get("sampler", ""))})
    for name in ("scheduler", "clip_skip"):
        settings.pop(name, None)
    settings["clip_skip"] = (data.get("clip_skip") or 0) + 1
    if data.get("vae"):
        settings["vae_name"] = data["vae"].get("name", data["vae"].get("model_name"))
    base = model.get("base", model.get("base_model")) if isinstance(model, Mapping) else None
    settings["extra"] = {"Base model": base} if base else {}
    if data.get("cfg_rescale_multiplier"):
        settings["extra"]["CFG rescale"] = data["cfg_rescale_multiplier"]
    if data.get("app_version"):
        settings["version"] = f"InvokeAI {data['app_version']}"
    if "generation_mode" in data and "img2img" not in str(data["generation_mode"]) and not data.get("init_image"):
        settings.pop("denoising_strength", None)
    notes = []
    if data.get("hrf_enabled") or data.get("hrf_strength"):
        notes.append("its high resolution fix enlarged the picture and drew over it, which is not done here")
    if data.get("controlnets") or data.get("control_layers"):
        notes.append("it was drawn with ControlNets, which need their images")
    return with_lora_tags(settings, data.get("loras")), tuple(notes)


def _read_dream(line: str) -> Found:
    """`"a cat" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms`"""
    prompt = re.match(r'\s*"((?:\\.|[^"\\])*)"', line)
    found = dict(re.findall(r"\s-([sSWHCA])\s*(\S+)", line[prompt.end() if prompt else 0 :]))
    return {
        "prompt": prompt[1] if prompt else line.partition(" -")[0],
        "steps": found.get("s"),
        "sampler_name": found.get("A"),
        "cfg_scale": found.get("C"),
        "seed": found.get("S"),
        "width": found.get("W"),
        "height": found.get("H"),
    }, ()


def _read_novel(texts: Mapping[str, str]) -> Found:
    """The prompt in "Description", the rest as JSON in "Comment"."""
    data = json.loads(texts.get("Comment", "{}"))
    return _read_novel_json(
        {**data, "prompt": texts.get("Description") or data.get("prompt", ""), "model": texts.get("Source")}
    )


def _read_novel_json(data: Mapping[str, Any]) -> Found:
    if isinstance(data.get("Comment"), str):
        return _read_novel({name: str(value) for name, value in data.items()})
    settings = flat_settings(data)
    settings["extra"] = {"CFG rescale": data["cfg_rescale"]} if data.get("cfg_rescale") else {}
    if data.get("request_type") != "Img2ImgRequest" and not data.get("image"):
        settings.pop("denoising_strength", None)
    return settings, ("its {brackets} weigh by 1.05, not 1.1, and mean nothing here",)


def _read_fooocus(data: Mapping[str, Any]) -> Found:
    settings = flat_settings(data)
    for name, key in (("prompt", "full_prompt"), ("negative_prompt", "full_negative_prompt")):
        if isinstance(data.get(key), list) and data[key]:
            settings[name] = ", ".join(str(part) for part in data[key] if part)
    performance = str(data.get("performance", data.get("Performance", ""))).lower()
    settings.setdefault("steps", _FOOOCUS_STEPS.get(performance))
    if str(data.get("vae", "Default")).startswith("Default"):
        settings.pop("vae_name", None)
    if "fooocus" in str(data.get("version", "")).lower():
        settings["version"] = data["version"]
    if str(data.get("refiner_model", "None")) not in ("None", ""):
        settings["extra"]["Refiner"] = file_stem(data["refiner_model"])
        settings["extra"]["Refiner switch at"] = data.get("refiner_switch")
    combined = [
        str(value).rpartition(" : ")[::2]
        for key, value in data.items()
        if re.match(r"lora_combined|LoRA \d", str(key))
    ]
    loras = data.get("loras") or [list(pair) for pair in combined]
    if isinstance(loras, str):  # of RuinedFooocus: a line each
        loras = [list(line.strip().rpartition(" - ")[::2]) for line in loras.split("\n") if " - " in line]
    return with_lora_tags(settings, loras), ()


_FOOOCUS_STEPS = {"quality": 60, "speed": 30, "extreme speed": 8, "lightning": 4, "hyper-sd": 4}


def _read_swarm(data: Mapping[str, Any]) -> Found:
    image = data.get("sui_image_params", data)
    settings, notes = _read_flat(image)
    return {**settings, "version": f"SwarmUI {image.get('swarm_version', '')}".strip()}, notes


def _read_easy(data: Mapping[str, Any]) -> Found:
    settings, notes = _read_flat(data)
    if not data.get("init_image"):
        settings.pop("denoising_strength", None)
    names = data.get("use_lora_model")
    weights = data.get("lora_alpha")
    names, weights = ([part] if not isinstance(part, list) else part for part in (names, weights))
    return with_lora_tags(settings, [name for name in names if name], weights), notes


def _read_civitai(data: Mapping[str, Any]) -> Found:
    """What Civitai's site and generator give for a picture."""
    inner = data.get("meta")
    meta: Mapping[str, Any] = inner if isinstance(inner, Mapping) else data
    settings = flat_settings(meta)
    resources = meta.get("civitaiResources") or meta.get("resources")
    if resources:
        settings["extra"]["Civitai resources"] = json.dumps(resources, ensure_ascii=False)
    return settings, ()


def _is_fooocus(data: Mapping[str, Any]) -> bool:
    return (
        "full_prompt" in data
        or any(str(key).startswith("Fooocus") for key in data)
        or "fooocus" in f"{data.get('metadata_scheme')} {data.get('version')} {data.get('software')}".lower()
    )


def _is_invoke(data: Mapping[str, Any]) -> bool:
    return ("app_version" in data and "scheduler" in data) or "generation_mode" in data


def _is_novel(data: Mapping[str, Any]) -> bool:
    return "NovelAI" in str(data.get("Software", "")) or ("uc" in data and "scale" in data and "c" not in data)


def _is_civitai(data: Mapping[str, Any]) -> bool:
    meta = data.get("meta")
    return bool(
        {"cfgScale", "negativePrompt", "civitaiResources"} & {*data, *(meta if isinstance(meta, dict) else ())}
    )


def _is_comfy(data: Mapping[str, Any]) -> bool:
    graph = data.get("prompt", data)
    nodes = graph.values() if isinstance(graph, Mapping) else data.values()
    return {"nodes", "links"} <= set(data) or any(isinstance(n, Mapping) and "class_type" in n for n in nodes)


_JSON_MARKS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("webui", lambda data: isinstance(data.get("infotexts"), list) and bool(data["infotexts"])),
    ("SwarmUI", lambda data: "sui_image_params" in data or "swarm_version" in data),
    ("Fooocus", _is_fooocus),
    ("InvokeAI", _is_invoke),
    ("NovelAI", _is_novel),
    ("Draw Things", lambda data: "c" in data and ("uc" in data or "v2" in data)),
    ("Easy Diffusion", lambda data: "use_stable_diffusion_model" in data or "used_random_seed" in data),
    ("Civitai's generator", _is_civitai),
    ("ComfyUI", _is_comfy),
    ("webui", lambda data: "prompt" in data and bool({"cfg_scale", "sampler_name", "sampler_index"} & set(data))),
    ("another program", lambda data: "prompt" in data and bool({"steps", "seed", "num_inference_steps"} & set(data))),
)
_JSON_READERS: dict[str, Callable[[Mapping[str, Any]], Found]] = {
    "ComfyUI": _read_comfy_json,
    "InvokeAI": _read_invoke_json,
    "NovelAI": _read_novel_json,
    "Fooocus": _read_fooocus,
    "SwarmUI": _read_swarm,
    "Easy Diffusion": _read_easy,
    "Civitai's generator": _read_civitai,
}


_TOOL_MARKS: tuple[tuple[str, str, Callable[[Mapping[str, str]], Found]], ...] = (
    ("invokeai_metadata", "InvokeAI", _read_invoke),
    ("sd-metadata", "InvokeAI", _read_invoke),
    ("Dream", "InvokeAI", _read_invoke),
    ("dream", "InvokeAI", _read_invoke),
    ("Software", "NovelAI", _read_novel),
    ("parameters", "webui", lambda texts: ({}, ())),
    ("use_stable_diffusion_model", "Easy Diffusion", _read_easy),
    ("generation_data", "webui", lambda texts: ({}, ())),
    ("prompt", "ComfyUI", _read_comfy),
    ("workflow", "ComfyUI", lambda texts: ({}, ("only its workflow is there, not the graph that was run",))),
)
