"""Files that calls name, found in a webui's folder or single ones before anything is loaded; and what is missing."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...loaders.utils import near_names
from .common import HeadedOption, add_options
from .models import ModelSetup
from .sources import SourceCall


# Option -> what lies there. Without dashes it is WebUIFolder's argument.
_FOLDERS = {
    "--models-folder": "Checkpoints.",
    "--lora-folder": "LoRA and LyCORIS files.",
    "--vae-folder": "VAEs.",
    "--embeddings-folder": "Textual inversions.",
    "--upscaler-folder": "Upscalers.",
    "--face-folder": "GFPGAN, CodeFormer.",
    "--controlnet-folder": "ControlNets.",
    "--detector-folder": "Detectors of faces and things.",
}
_VARIABLES = {"--webui": "WEBUI_DIFFUSERS_WEBUI", "--lora-folder": "WEBUI_DIFFUSERS_LORAS"}
_HEADING = "Where files are looked for, by name and hash"
_PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
_PART_KINDS = {
    "model": "checkpoint",
    "vae": "vae",
    "refiner": "checkpoint",
    "upscaler": "upscaler",
    "face_restorer": "face_restorer",
}
# Of loaders/detectors/library.py, which needs torch.
SHIPPED_FACE_DETECTORS, FACE_DETECTOR_FILES = ("face", "mtcnn", "retinaface"), ("mediapipe_face", "face_yolov8")
_FIELDS_OF_KIND = {"taesd": {"VAE Decoder", "VAE Encoder"}, "hypernetwork": {"Hypernet", "<hypernet"}}
_VAE_LABELS = ("VAE Decoder", "VAE Encoder", "VAE")
_PATH_ARGUMENTS = {"upscaler": "hires_upscaler", "face_restorer": "restore_faces"}


def _folder_option(name: str, text: str) -> Any:
    options = {"type": click.Path(path_type=Path), "metavar": "FOLDER", "envvar": _VARIABLES.get(name)}
    return click.option(name, cls=HeadedOption, heading=_HEADING, help=text, **options)


folder_options = add_options(
    _folder_option("--webui", "A webui's folder: its models, networks, embeddings and all else."),
    *(_folder_option(name, text) for name, text in _FOLDERS.items()),
)
library_options = add_options(
    folder_options,
    click.option(
        "--without-missing",
        is_flag=True,
        cls=HeadedOption,
        heading=_HEADING,
        help="Draw without the files that are missing, and say which; otherwise nothing is drawn.",
    ),
)


def read_library(values: Mapping[str, Any]) -> Any:
    """The WebUIFolder that a command's options name, or None. Raises ValueError for folders that are not there."""
    folders = {name.strip("-").replace("-", "_"): name for name in _FOLDERS}
    named = {argument: values[argument] for argument in folders if values.get(argument) is not None}
    if values.get("webui") is None and not named:
        return None
    from ...loaders.library.folder import WebUIFolder

    return WebUIFolder(values.get("webui"), **named)


class CallFiles:
    """The files of some calls: `find` looks for them, `missing` has what is not there, `attach` gives what was found
    to a pipeline. Nothing is loaded before `attach`.

    library: a WebUIFolder or None. own: names of arguments that the user gave; they may be paths and Hub ids, where
    a source's are names only. without_missing: what is missing is left out of a call; else it stays there.
    """

    def __init__(self, library: Any, own: Collection[str], *, without_missing: bool = False) -> None:
        self.library, self.own, self.without_missing = library, own, without_missing
        self.missing: dict[tuple[str, str], str] = {}  # (kind, name) -> a line about it
        self._found: dict[tuple[str, str], Path] = {}
        self._attached: set[tuple[int, str, str]] = set()

    def find(
        self, source: SourceCall, setup: ModelSetup, *, usual_model: bool = False
    ) -> tuple[SourceCall, ModelSetup]:
        """The call and the setup with what was found for them.

        usual_model: the setup's model is only for texts that name none, or one that is not found.
        """
        from ...loaders.library.missing import found_file, missing_files, wanted_files

        call, setup = self._with_hires_model(source.arguments), self._named(setup)
        seen: set[tuple[str, str, str]] = set()
        is_sdxl = self._wants_sdxl_taesd(source.fields or {}, setup)
        labels: set[str] = set()
        if setup.upscaler and "hires_upscaler" not in self.own:
            call.pop("hires_upscaler", None)  # the component takes its place
        for place in filter(None, (source.fields, call)):
            lines = {(file.kind, file.name): str(file) for file in missing_files(place, self.library, is_sdxl=is_sdxl)}
            for wanted in wanted_files(place, self.library):
                key = wanted.kind, wanted.name
                if (*key, wanted.argument) in seen or self._is_given(wanted, call, setup, usual_model):
                    continue
                seen.add((*key, wanted.argument))
                labels |= _FIELDS_OF_KIND.get(wanted.kind, {wanted.label.strip("`")})
                file = found_file(wanted, self.library, is_sdxl=is_sdxl)
                file = self._detector(wanted) if wanted.kind == "detector" else file
                if file is not None:
                    self._found[key] = file.path
                    setup = _with_found(wanted, file.path, setup)
                elif key in lines and not (wanted.kind == "checkpoint" and wanted.label == "`Model`" and setup.model):
                    self.missing[key] = _with_labels(wanted, lines[key])
                    call = without_file(call, *key) if self.without_missing else call
        return source._replace(arguments=call, report=_without_labels(source.report, labels)), setup

    def attach(self, pipe: Any, call: Mapping[str, Any]) -> None:
        """Make what was found for a call known to a pipeline, under the names that the call has."""
        from ...loaders.faces.load import load_face_restorer
        from ...loaders.library.missing import wanted_files
        from ...loaders.upscaler import load_upscaler

        names = {(wanted.kind, wanted.name) for wanted in wanted_files(call, self.library)}
        for kind, name in names & set(self._found):
            if (id(pipe), kind, name) in self._attached:
                continue
            self._attached.add((id(pipe), kind, name))
            path = self._found[kind, name]
            if kind == "lora":
                pipe.add_lora(path, name)
            elif kind == "embedding":
                pipe.add_embedding(path, name)
            elif kind == "upscaler":
                pipe.attached.upscalers[name] = load_upscaler(path).to(pipe.device)
            elif kind == "face_restorer":
                pipe.attached.face_models[name] = load_face_restorer(path)
            elif kind == "controlnet":
                pipe.add_controlnet(path, name)
            elif kind == "detector":
                pipe.detector_folder = path.parent

    def _wants_sdxl_taesd(self, fields: Mapping[str, Any], setup: ModelSetup) -> bool:
        """Whether a text asks for TAESD with a model that is an SDXL."""
        if self.library is None or not any("taesd" in str(fields.get(label)).lower() for label in _VAE_LABELS):
            return False
        from ...loaders.checkpoint.describe import describe_checkpoint

        hashed = str(fields.get("Model hash") or "") or None
        named = setup.model or self.library.find("checkpoint", fields.get("Model"), hashed)
        path = Path(str(getattr(named, "path", named)))
        return path.is_file() and describe_checkpoint(path).base.startswith("sdxl")

    def _detector(self, wanted: Any) -> Any:
        """The .onnx file of a detector; others run their maker's code, and are never opened."""
        files = () if self.library is None else self.library.files("detector")
        stem = Path(wanted.name).stem
        return next((file for file in files if file.path.suffix.lower() == ".onnx" and file.path.stem == stem), None)

    def _named(self, setup: ModelSetup) -> ModelSetup:
        """The setup with files of the library in place of their names."""
        if self.library is None:
            return setup
        changed = {}
        for part, kind in _PART_KINDS.items():
            name = getattr(setup, part)
            if name and not Path(name).expanduser().exists() and (file := self.library.find(kind, name)) is not None:
                changed[part] = str(file.path)
        return replace(setup, **changed)

    def _with_hires_model(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The call with the file of its `hires_model` in place of its name."""
        name = call.get("hires_model")
        if self.library is None or not name or Path(name).expanduser().exists():
            return dict(call)
        file = self.library.find("checkpoint", name)
        return {**call, "hires_model": name if file is None else str(file.path)}

    def _is_given(self, wanted: Any, call: Mapping[str, Any], setup: ModelSetup, usual_model: bool) -> bool:
        """Whether the user named the file, or the call does not use it after all."""
        if wanted.kind == "checkpoint" and wanted.label == "`Model`":
            return setup.model is not None and not usual_model
        if wanted.argument.startswith("`hires_model`"):
            return not call.get("hires_model") or Path(call["hires_model"]).expanduser().exists()
        if wanted.kind == "checkpoint":
            return wanted.label != "`Refiner`" or setup.refiner is not None or not call.get("refiner_switch_at")
        if wanted.kind in ("vae", "taesd"):
            return setup.vae is not None
        if wanted.kind == "lora":
            loras = call.get("loras") or {}
            own = [entry if isinstance(loras, Mapping) else entry[0] for entry in loras]
            return (
                wanted.name not in own
                and not _is_tagged(call, wanted.name)
                or (wanted.name in own and Path(wanted.name).expanduser().exists())
            )
        if wanted.kind == "controlnet":
            models = [str(unit.get("model")) for unit in call.get("control_units") or ()]
            used = any(model.partition(" [")[0] == wanted.name for model in models)
            return not used or Path(wanted.name).expanduser().exists()
        if wanted.kind == "detector":
            name = wanted.name.lower()
            stands_in = setup.face_detector is not None and name.startswith(FACE_DETECTOR_FILES)
            return name in SHIPPED_FACE_DETECTORS or stands_in or Path(wanted.name).expanduser().suffix == ".onnx"
        if wanted.kind == "embedding":
            return any(Path(file).stem.lower() == wanted.name.lower() for file in setup.embeddings)
        if wanted.kind in _PATH_ARGUMENTS:
            argument = _PATH_ARGUMENTS[wanted.kind]
            component = setup.face_restorer if wanted.kind == "face_restorer" else None
            by_path = argument in self.own and ("/" in wanted.name or Path(wanted.name).expanduser().exists())
            return call.get(argument) != wanted.name or by_path or component is not None
        return False


def _without_labels(lines: list[str], labels: set[str]) -> list[str]:
    """A report without lines about files that were found, or are said to be missing."""
    return [line for line in lines if line.partition(":")[0] not in labels]


def _with_labels(wanted: Any, line: str) -> str:
    """A line about a missing upscaler, with the labels that its name may be a slip of."""
    from ...loaders.library.missing import BUILT_IN_UPSCALERS, DOWNLOADED_UPSCALERS

    if wanted.kind == "detector" and wanted.name.startswith(FACE_DETECTOR_FILES):
        return f"{line} Or let faces be found by --face-detector mtcnn."
    if wanted.kind != "upscaler":
        return line
    near = near_names(wanted.name, (*BUILT_IN_UPSCALERS, *DOWNLOADED_UPSCALERS))
    return f"{line} Did you mean {', '.join(map(repr, near))}?" if near else line


def without_file(call: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """A call without what a missing file is for. An embedding's name stays in the prompt, as words."""
    call = dict(call)
    if kind in ("lora", "hypernetwork"):
        words = "lora|lyco" if kind == "lora" else "hypernet"
        tag = re.compile(rf"<({words}):{re.escape(name)}(:[^<>]*)?>")
        for argument in _PROMPTS:
            text = call.get(argument)
            if text:
                call[argument] = tag.sub("", text) if isinstance(text, str) else [tag.sub("", one) for one in text]
    if kind == "lora":
        loras = call.get("loras") or {}
        if isinstance(loras, Mapping):
            call["loras"] = {own: weight for own, weight in loras.items() if own != name}
        else:
            call["loras"] = [entry for entry in loras if entry[0] != name]
    elif kind in _PATH_ARGUMENTS:
        call.pop(_PATH_ARGUMENTS[kind], None)
    elif kind == "checkpoint":
        call.pop("hires_model" if call.get("hires_model") == name else "refiner_switch_at", None)
    elif kind == "detector":
        call["detailers"] = [one for one in call.get("detailers") or () if one.get("ad_model") != name]
    elif kind == "controlnet":
        units = call.get("control_units") or ()
        call["control_units"] = [unit for unit in units if str(unit.get("model")).partition(" [")[0] != name]
    lists = ("loras", "detailers", "control_units")
    return {argument: value for argument, value in call.items() if argument not in lists or value}


def _is_tagged(call: Mapping[str, Any], name: str) -> bool:
    texts = [call.get(argument) or "" for argument in _PROMPTS]
    written = "\n".join(text if isinstance(text, str) else "\n".join(text) for text in texts)
    return re.search(rf"<(lora|lyco):{re.escape(name)}[:>]", written) is not None


def _with_found(wanted: Any, path: Path, setup: ModelSetup) -> ModelSetup:
    if wanted.kind == "checkpoint":
        return replace(setup, **{"model" if wanted.label == "`Model`" else "refiner": str(path)})
    return replace(setup, vae=str(path)) if wanted.kind in ("vae", "taesd") else setup
