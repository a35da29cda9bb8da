"""What a pasted text or a dropped picture says, and what of it this server has. Nothing is loaded or drawn.

text  ->  PageReading(call, missing, notes)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...loaders.detectors.library import FACE_DETECTOR_NAMES, FACE_MODELS
from ...loaders.library.missing import KIND_TITLES, WantedFile, found_file, wanted_files
from ...loaders.utils import NameFromText
from ..cli.library import without_file
from ..images.hires import LATENT_UPSCALERS
from ..infotext.files import read_infotext
from ..infotext.read import parse_infotext
from ..infotext.tidy import PictureText, tidy_infotext
from ..infotext.to_call import call_arguments, call_report
from ..registry import model_facts
from .requests import MAX_PIXELS, MAX_TEXT
from .shelf import ModelShelf


USUAL = {"num_inference_steps": 20, "guidance_scale": 7.0}  # what the webui's page shows before anything is set
MAX_PICTURE = 64 * 2**20  # bytes of a file
_CHECKED_LABELS = ("Model", "Model hash", "Lora hashes", "TI hashes", "VAE", "Refiner", "Hires upscaler")
_INSTEAD = {
    "vae": "The model's own VAE is used.",
    "lora": "It is drawn without it.",
    "embedding": "Its name is read as plain words.",
    "upscaler": "Latents are enlarged in its place.",
    "face_restorer": "Faces stay as they are drawn.",
    "detector": "That pass is left out.",
}


@dataclass(frozen=True)
class PageReading:
    """A text as the page shows and draws it."""

    text: str = ""
    tool: str = ""  # the program that wrote it
    said: dict[str, Any] = field(default_factory=dict)  # arguments as the text has them
    call: dict[str, Any] = field(default_factory=dict)  # the same without what is missing; empty: nothing to draw
    settings: dict[str, Any] = field(default_factory=dict)  # the server's to change for it: model and VAE
    refiner: str | None = None
    model: str = ""  # the name of what draws it
    missing: tuple[str, ...] = ()  # a line for each file
    notes: tuple[str, ...] = ()  # what will differ
    refusal: str = ""  # why it cannot be drawn


def text_of_picture(path: str | Path) -> PictureText:
    """The text inside a picture that was sent to the page. Raises ValueError, without its path, for what is none."""
    path = Path(path)
    if path.stat().st_size > MAX_PICTURE:
        raise ValueError(f"This file is larger than {MAX_PICTURE >> 20} MiB. Paste its text instead.")
    try:
        if path.suffix.lower() != ".txt":
            _check_pixels(path)
        found = read_infotext(path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("This file is no picture that can be read. Give a PNG, JPEG, WebP or AVIF.") from error
    except ValueError as error:
        raise ValueError(str(error).replace(f"`{path}`", "This file")) from error
    if not found:
        why = (
            f" that can be read: {'; '.join(found.notes)}." if found.notes else ", as after most messengers and sites."
        )
        raise ValueError(f"This picture holds no parameters{why} Paste its text if you have it.")
    return found


def _check_pixels(path: Path) -> None:
    with Image.open(path) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"This picture has more than {MAX_PIXELS} pixels. Paste its text instead.")


def read_page_text(text: str, notes: tuple[str, ...], shelf: ModelShelf) -> PageReading:
    """What a text says, and what of it the server has. notes: what reading its picture told."""
    if not text.strip():
        return PageReading()
    if len(text) > MAX_TEXT:
        return PageReading(text, refusal=f"This text has more than {MAX_TEXT} characters. Paste one picture's.")
    tidied = tidy_infotext(text)
    fields = parse_infotext(tidied)
    told = (*notes, *(note for note in tidied.notes if note not in notes))
    try:
        call = call_arguments(fields, extensions=True)
    except ValueError as error:
        return PageReading(text, tidied.tool, notes=told, refusal=str(error))
    if call.pop("control_units", None):
        told += ("ControlNet: the text does not hold the control pictures; it is drawn without them.",)
    report = [line for line in call_report(fields) if _is_news(line, told, call)]
    said = {**USUAL, **call}
    reading = PageReading(text, tidied.tool, said, said, model=_model_name(shelf), notes=(*told, *report))
    wanted = {(file.kind, file.label, file.name): file for file in wanted_files(fields, shelf.library)}
    for file in wanted_files({"detailers": call.get("detailers", [])}, shelf.library):
        wanted[file.kind, file.label, file.name] = file
    for file in wanted.values():
        reading = _with_file(reading, file, shelf)
    return reading


def _is_news(line: str, told: tuple[str, ...], call: Mapping[str, Any]) -> bool:
    """Whether a line of the report says what nothing else on the page does."""
    if line.partition(":")[0] in _CHECKED_LABELS or any(line in note or note in line for note in told):
        return False
    return not (line.startswith("ADetailer redrew") and "detailers" in call)


def _with_file(reading: PageReading, file: WantedFile, shelf: ModelShelf) -> PageReading:
    """The reading with a file that its text names: found, or missing and drawn without."""
    if file.kind == "checkpoint":
        return _with_model(reading, file, shelf) if file.label == "`Model`" else _with_refiner(reading, file, shelf)
    if file.kind in ("controlnet", "hypernetwork") or _is_known(file, shelf):
        return reading
    found = found_file(file, shelf.library)
    if found is not None and file.kind == "vae":
        return replace(reading, settings={**reading.settings, "sd_vae": found.name})
    if found is not None and file.kind != "detector":
        if found.name == file.name:
            return reading
        note = f"{KIND_TITLES[file.kind]} `{file.name}` is called `{found.name}` here."
        call = _renamed(reading.call, file.kind, file.name, found.name)
        return replace(reading, call=call, notes=(*reading.notes, note))
    near = shelf.library.near(file.kind, file.name) if shelf.library is not None and file.name else ()
    hint = f" Near: {', '.join(f'`{name}`' for name in near)}." if near else ""
    line = f"{KIND_TITLES[file.kind]} {_named(file)}. {_INSTEAD[file.kind]}{hint}"
    call = without_file(reading.call, file.kind, file.name)
    return replace(reading, call=call, missing=(*reading.missing, line))


def _with_model(reading: PageReading, file: WantedFile, shelf: ModelShelf) -> PageReading:
    found = found_file(file, shelf.library)
    if found is not None:
        return replace(reading, model=found.name, settings={**reading.settings, "sd_model_checkpoint": found.title})
    if shelf.library is None and _is_own_model(file, shelf):
        return reading
    return replace(
        reading, missing=(f"Checkpoint {_named(file)}. `{reading.model}` draws in its place.", *reading.missing)
    )


def _with_refiner(reading: PageReading, file: WantedFile, shelf: ModelShelf) -> PageReading:
    if not reading.call.get("refiner_switch_at"):
        return reading
    found = found_file(file, shelf.library)
    if found is not None:
        return replace(reading, refiner=found.name)
    call = without_file(reading.call, "checkpoint", file.name)
    line = f"Refiner {_named(file)}. It is drawn without it."
    return replace(reading, call=call, missing=(*reading.missing, line))


def _is_known(file: WantedFile, shelf: ModelShelf) -> bool:
    """Whether a file needs no library: it ships, is downloaded by its label, or the pipeline in hand has it."""
    pipe = shelf.in_hand
    if file.kind == "upscaler":
        return file.name in LATENT_UPSCALERS or file.name in shelf.upscalers()
    if file.kind == "detector":
        names = {path.stem for path in pipe.attached.detectors.files()} if pipe is not None else set()
        names |= {Path(name).stem for name in shelf.names("detector")}
        stands_in = pipe is not None and pipe.attached.detectors.fallback and file.name.startswith(FACE_MODELS)
        return file.name.lower() in FACE_DETECTOR_NAMES or Path(file.name).stem in names or bool(stands_in)
    if pipe is None:
        return False
    if file.kind == "lora" and shelf.library is None:
        return pipe.networks.find(file.name) is not None
    if file.kind == "embedding":
        return file.name in pipe.attached.embedding_hashes()
    if file.kind == "face_restorer":
        return pipe.face_restorer is not None or file.name in pipe.attached.face_models
    return False


def _is_own_model(file: WantedFile, shelf: ModelShelf) -> bool:
    """Whether the one model of the server is what the text names: by hash where both have one, else by name."""
    facts = model_facts(shelf.in_hand, hashed=bool(file.hash))
    if file.hash and facts.get("model_hash"):
        return facts["model_hash"].startswith(file.hash[:10]) or file.hash.startswith(facts["model_hash"])
    return file.name == facts.get("model_name")


def _model_name(shelf: ModelShelf) -> str:
    """The server's model as people call it: without folder, ending and hash."""
    title = re.sub(r"\s*\[[0-9a-f]+\]$", "", str(shelf.settings["sd_model_checkpoint"]))
    return re.sub(r"\.(safetensors|ckpt)$", "", title.rpartition("/")[2]) or "the server's model"


def _named(file: WantedFile) -> str:
    return " ".join(filter(None, [f"`{file.name}`" if file.name else "", f"[{file.hash}]" if file.hash else ""]))


def _renamed(call: Mapping[str, Any], kind: str, old: str, new: str) -> dict[str, Any]:
    """The call with the library's name of a file in place of the text's."""
    arguments = {"upscaler": "hires_upscaler", "face_restorer": "restore_faces"}
    if kind in arguments:
        return {**call, arguments[kind]: NameFromText(new)}
    pattern = (
        rf"(<(?:lora|lyco):){re.escape(old)}(?=[:>])" if kind == "lora" else rf"(?<![\w.-])(){re.escape(old)}(?![\w-])"
    )
    prompts = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
    return {
        name: re.sub(pattern, lambda found: found[1] + new, value) if name in prompts and value else value
        for name, value in call.items()
    }
