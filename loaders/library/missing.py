"""The files that a text or a call names, and those of them that a library does not have. Torch-free.

>>> for missing in missing_files(parse_infotext(text), library):
...     print(missing)
LoRA `ink_a`: not in /webui/models/Lora. Near: `ink`. Used by the prompt (`add_lora`, `lora_folder`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple


class WantedFile(NamedTuple):
    """A file that a text or a call names."""

    kind: str  # of FILE_KINDS: "checkpoint", "vae", "lora", "embedding", "upscaler", ...
    name: str  # as written; "" where only a hash is
    hash: str | None  # hex digits, as many as are written
    argument: str  # what takes it here
    label: str  # where it is named: a field of the text, "prompt", or an argument


class MissingFile(NamedTuple):
    """One that is not there; `str()` says it in a line."""

    kind: str
    name: str
    hash: str | None
    looked_in: tuple[str, ...]  # folders
    near: tuple[str, ...]  # names there that it may be a slip of
    argument: str
    label: str
    note: str = ""  # what else is to be known

    def __str__(self) -> str:
        if self.kind == "hypernetwork":
            return f"Hypernetwork `{self.name}`: {self.note} Named in {self.label}."
        name = " ".join(filter(None, [f"`{self.name}`" if self.name else "", f"[{self.hash}]" if self.hash else ""]))
        where = f"not in {' or '.join(self.looked_in)}" if self.looked_in else "no folder to look in is named"
        near = f" Near: {', '.join(f'`{name}`' for name in self.near)}." if self.near else ""
        note = f" {self.note}" if self.note else ""
        return f"{KIND_TITLES[self.kind]} {name}: {where}.{near}{note} Named in {self.label}; goes to {self.argument}."


def missing_files(
    fields_or_call: Mapping[str, Any], library: Any = None, *, is_sdxl: bool = False
) -> list[MissingFile]:
    """What a text's fields (`parse_infotext`) or a call's arguments name and `library` does not have, all at once.

    library: a WebUIFolder; None has nothing. Nothing is loaded. Files that are downloaded once when they are first
    used (the Real-ESRGAN labels, GFPGAN, CodeFormer with its extra) are not missing. Hypernetworks always are: they
    are not applied here. is_sdxl: which TAESD is meant, where one is.
    """
    missing = []
    for wanted in wanted_files(fields_or_call, library):
        note = _cannot_come_by_itself(wanted)
        if note is None or found_file(wanted, library, is_sdxl=is_sdxl) is not None:
            continue
        if wanted.kind == "hypernetwork":
            note = _hypernetwork_note(wanted, library)
        folders = tuple(str(folder) for folder in library.folders(wanted.kind)) if library is not None else ()
        near = tuple(library.near(wanted.kind, wanted.name)) if library is not None and wanted.name else ()
        missing.append(
            MissingFile(wanted.kind, wanted.name, wanted.hash, folders, near, wanted.argument, wanted.label, note)
        )
    return missing


def found_file(wanted: WantedFile, library: Any, *, is_sdxl: bool = False) -> Any:
    """The library's file for a wanted one, or None. is_sdxl: which TAESD is meant. Of hypernetworks none is."""
    if library is None or wanted.kind == "hypernetwork":
        return None
    if wanted.kind == "taesd":
        return library.find("taesd", "taesdxl_decoder" if is_sdxl else "taesd_decoder")
    return library.find(wanted.kind, wanted.name or None, wanted.hash)


def wanted_files(fields_or_call: Mapping[str, Any], library: Any = None) -> list[WantedFile]:
    """Every file that a text's fields or a call's arguments name, each once, in the order in which they are needed.

    library: its embeddings are looked for in the prompts too, where nothing but their name tells that they are meant.
    """
    is_text = "Prompt" in fields_or_call or "Steps" in fields_or_call
    wanted = _wanted_by_text(fields_or_call) if is_text else _wanted_by_call(fields_or_call)
    prompts = _texts_of(fields_or_call, ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt"))
    prompts += _texts_of(fields_or_call, ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt"))
    once: dict[tuple[str, str, str], WantedFile] = {}
    for file in (*wanted, *_named_embeddings(" ".join(prompts), library)):
        second = file.label if file.argument.startswith("`hires_model`") else ""  # stays beside the model of that name
        once.setdefault((file.kind, (file.name or file.hash or "").lower(), second), file)
    return list(once.values())


def _wanted_by_text(fields: Mapping[str, Any]) -> Iterator[WantedFile]:
    hashes = _json_hashes(fields.get("Hashes"))
    model, digest = str(fields.get("Model") or ""), _digits(fields.get("Model hash")) or hashes.get("model")
    if model or digest:
        yield WantedFile("checkpoint", model, digest, "the model", "`Model`")
    modules = [str(value) for label, value in fields.items() if re.fullmatch(r"Module \d+", str(label))]  # of Forge
    vae = str(fields.get("VAE") or next((name for name in modules if "vae" in name.lower()), ""))
    if vae and vae.lower() not in _NO_VAE and "taesd" not in vae.lower():
        yield WantedFile("vae", vae, _digits(fields.get("VAE hash")) or hashes.get("vae"), "`load_vae`", "`VAE`")
    for label in ("VAE Decoder", "VAE Encoder", "VAE"):
        if "taesd" in str(fields.get(label) or "").lower():
            yield WantedFile("taesd", "TAESD", None, "`load_vae`", f"`{label}`")
    for label, argument in (("Refiner", "`refiner`"), ("Hires checkpoint", "`hires_model`, `add_checkpoint`")):
        name, digest = _title(str(fields.get(label) or ""))
        if name and name.lower() not in ("none", "false", "use same checkpoint"):
            yield WantedFile("checkpoint", name, digest, argument, f"`{label}`")
    hashed = _pairs(fields.get("Lora hashes")) + _pairs(fields.get("Lyco hashes"))
    loras = {**hashes, **{f"lora:{name}": digest for name, digest in hashed}}
    yield from _tagged(_texts_of(fields, ("Prompt", "Hires prompt")), loras)
    for name, digest in [pair for label in _EMBEDDINGS for pair in _pairs(fields.get(label))]:
        yield WantedFile("embedding", name, digest, "`add_embedding`", "`TI hashes`")
    for key, digest in hashes.items():
        if key.startswith("embed:"):
            yield WantedFile("embedding", key.removeprefix("embed:"), digest, "`add_embedding`", "`Hashes`")
    yield from _by_argument("upscaler", fields.get("Hires upscaler"), "`hires_upscaler`", "`Hires upscaler`")
    yield from _by_argument("face_restorer", fields.get("Face restoration"), "`restore_faces`", "`Face restoration`")
    for label, value in fields.items():
        unit = re.fullmatch(r"ControlNet( \d+)?", str(label)) and re.search(r"Model: ([^,\"]+)", str(value))
        if unit and unit[1].strip() not in ("None", ""):
            name, digest = _title(unit[1].strip())
            yield WantedFile("controlnet", name, digest, "`controlnet`, `add_controlnet`", f"`{label}`")


def _wanted_by_call(call: Mapping[str, Any]) -> Iterator[WantedFile]:
    yield from _tagged(_texts_of(call, ("prompt", "hires_prompt")), {})
    loras = call.get("loras") or []
    for entry in loras:
        name = (
            entry if isinstance(loras, Mapping) else next(iter(entry), "") if isinstance(entry, tuple | list) else ""
        )
        if isinstance(name, str) and name:
            yield WantedFile("lora", name, None, "`add_lora`, `lora_folder`", "`loras`")
    yield from _by_argument("upscaler", call.get("hires_upscaler"), "`hires_upscaler`", "`hires_upscaler`")
    yield from _by_argument("face_restorer", call.get("restore_faces"), "`restore_faces`", "`restore_faces`")
    if isinstance(call.get("hires_model"), str):
        name, digest = _title(call["hires_model"])
        yield WantedFile("checkpoint", name, digest, "`hires_model`, `add_checkpoint`", "`hires_model`")
    for argument, key, kind in (("control_units", "model", "controlnet"), ("detailers", "ad_model", "detector")):
        for unit in call.get(argument) or []:
            name, digest = _title(str(unit.get(key) or "None")) if isinstance(unit, Mapping) else ("None", None)
            if name != "None" and not name.startswith("mediapipe_"):
                yield WantedFile(kind, name, digest, f"`{argument}`", f"`{argument}`")


def _tagged(prompts: Iterable[str], hashes: Mapping[str, str | None]) -> Iterator[WantedFile]:
    """Networks in `<lora:name:...>` and the like; a hash is kept under the name without `:` and `,`."""
    for word, name in re.findall(r"<(\w+):([^:<>]+)(?::[^<>]*)?>", " ".join(prompts)):
        if word in ("lora", "lyco"):
            digest = hashes.get(f"lora:{name}") or hashes.get(f"lora:{re.sub('[:,]', '', name)}")
            yield WantedFile("lora", name, digest, "`add_lora`, `lora_folder`", "the prompt")
        elif word == "hypernet":
            yield WantedFile("hypernetwork", name, None, "nothing", "the prompt")


def _named_embeddings(text: str, library: Any) -> Iterator[WantedFile]:
    """Embeddings that prompts name: the library's, and well-known ones, which are never meant as words."""
    words = text.lower()
    known = {file.name for file in library.files("embedding")} if library is not None else set()
    for name in (*sorted(known), *WELL_KNOWN_EMBEDDINGS):
        lower = name.lower()
        if lower in words and re.search(rf"(?<![\w.-]){re.escape(lower)}(?![\w-])", words):
            yield WantedFile("embedding", name, None, "`add_embedding`", "the prompt")


def _by_argument(kind: str, value: Any, argument: str, label: str) -> Iterator[WantedFile]:
    name = str(value or "")
    if name and name != "None" and not (kind == "upscaler" and name in BUILT_IN_UPSCALERS):
        yield WantedFile(kind, name, None, argument, label)


def _cannot_come_by_itself(wanted: WantedFile) -> str | None:
    """None for what is downloaded when it is first used; else what to know about it, or ""."""
    if wanted.kind == "upscaler" and wanted.name in DOWNLOADED_UPSCALERS:
        return None
    if wanted.kind == "face_restorer" and wanted.name in DOWNLOADED_RESTORERS:
        module, extra = DOWNLOADED_RESTORERS[wanted.name]
        if not module or find_spec(module) is not None:
            return None
        return f"It needs the package `{module}`: pip install 'webui-diffusers[{extra}]'."
    return ""


def _hypernetwork_note(wanted: WantedFile, library: Any) -> str:
    file = None if library is None else library.find("hypernetwork", wanted.name)
    place = "" if file is None else f"`{file.path}` is one, but "
    return (
        f"{place}hypernetworks are not applied here, because no open description says how. Take `<hypernet:"
        f"{wanted.name}:...>` out of the prompt, or draw without it."
    )


def _texts_of(fields: Mapping[str, Any], labels: Iterable[str]) -> list[str]:
    texts: list[str] = []
    for label in labels:
        value = fields.get(label)
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list | tuple):
            texts += [text for text in value if isinstance(text, str)]
    return texts


def _pairs(written: Any) -> list[tuple[str, str | None]]:
    """Names and hashes of "Lora hashes", "TI hashes" and "Used embeddings": `name: hash, name [hash], name`."""
    found = []
    for entry in str(written or "").strip('"').split(","):
        name, digest = _title(entry.strip())
        if digest is None and ":" in entry:
            name, _, rest = entry.rpartition(":")
            digest = _digits(rest)
        if name.strip():
            found.append((name.strip(), digest))
    return found


def _title(written: str) -> tuple[str, str | None]:
    """Name and hash of `name [hash]`; the hash is None where there is none."""
    found = re.fullmatch(r"(.*?)\s*\[([0-9a-fA-F]{6,64})\]", written.strip(), re.DOTALL)
    return (found[1], found[2].lower()) if found else (written.strip(), None)


def _digits(written: Any) -> str | None:
    text = str(written or "").strip().lower().removeprefix("0x")
    return text if re.fullmatch(r"[0-9a-f]{6,64}", text) else None


def _json_hashes(written: Any) -> dict[str, str]:
    """`{"model": "879db523c3", "lora:x": "...", "embed:y": "..."}`, as model sites write it; also cut short."""
    if isinstance(written, Mapping):
        pairs: Iterable[tuple[Any, Any]] = written.items()
    else:
        pairs = re.findall(r'"([^"]+)":\s*"([0-9a-fA-F]+)"', str(written or ""))
    return {str(key): digest for key, value in pairs if (digest := _digits(value))}


_EMBEDDINGS = ("TI hashes", "Used embeddings", "TI")
_NO_VAE = ("none", "automatic", "default (model)", "default", "baked vae")  # the checkpoint's own

KIND_TITLES = {
    "checkpoint": "Checkpoint",
    "vae": "VAE",
    "lora": "LoRA",
    "embedding": "Embedding",
    "upscaler": "Upscaler",
    "face_restorer": "Face restorer",
    "controlnet": "ControlNet",
    "detector": "Detector",
    "hypernetwork": "Hypernetwork",
    "taesd": "TAESD",
}

# Labels that need no file, and those whose file is downloaded once (`UPSCALER_LABELS`, `FACE_FILES`).
BUILT_IN_UPSCALERS = (
    *("None", "Lanczos", "Nearest", "Latent", "Latent (antialiased)", "Latent (bicubic)"),
    *("Latent (bicubic antialiased)", "Latent (nearest)", "Latent (nearest-exact)"),
)
DOWNLOADED_UPSCALERS = (
    *("R-ESRGAN General 4xV3", "R-ESRGAN General WDN 4xV3", "R-ESRGAN AnimeVideo"),
    *("R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B", "R-ESRGAN 2x+"),
)
DOWNLOADED_RESTORERS = {"GFPGAN": ("", ""), "CodeFormer": ("spandrel_extra_arches", "codeformer")}

# Names that many texts have and that nobody writes as words; without their file they would be read as such.
WELL_KNOWN_EMBEDDINGS = (
    *("EasyNegative", "EasyNegativeV2", "badhandv4", "bad-hands-5", "bad_prompt", "bad_prompt_version2"),
    *("ng_deepnegative_v1_75t", "verybadimagenegative_v1.3", "BadDream", "UnrealisticDream", "FastNegativeV2"),
    *("negative_hand-neg", "bad-artist", "bad-artist-anime", "bad-picture-chill-75v", "bad-image-v2-39000"),
    *("CyberRealistic_Negative", "epiCNegative", "JuggernautNegative-neg", "negativeXL_D", "unaestheticXLv31"),
    *("ziprealism_neg", "SimplePositiveXLv1", "zPDXL", "FastNegativeEmbedding", "Asian-Less-Neg", "bad_pictures"),
)
