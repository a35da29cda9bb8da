"""A saved pipeline brings its code: the folder reloads without the pack, and with the pack without running its code.

DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)   runs the folder's code
WebUITxt2ImgPipeline.from_pretrained(folder)                        runs the imported class, nothing of the folder

<folder>/model_index.json         names our class as ["webui_txt2img", "WebUITxt2ImgPipeline"]
<folder>/webui_txt2img.py         that class and all it needs, in one file
<folder>/pipeline.py              the same, for `custom_pipeline=<folder>` with another model
<folder>/upscaler/webui_txt2img.py, ...   the same beside each component of a class of ours
"""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from ...loaders.data_files import BUNDLE_DIGEST, BUNDLE_NAME
from ...loaders.utils import LOGGER, require


# component classes of the pack -> the module that defines them
OWN_COMPONENTS = {
    "ImageUpscaler": "webui_diffusers.loaders.upscaler",
    "FaceDetector": "webui_diffusers.loaders.faces.mtcnn",
    "FaceParser": "webui_diffusers.loaders.faces.parsenet",
    "FaceRestorer": "webui_diffusers.loaders.faces.restorer",
    "RetinaFaceDetector": "webui_diffusers.loaders.faces.retinaface",
}
_LIBRARIES = ("diffusers", "transformers")


class SavedWithCode:
    """Goes before diffusers' pipeline among the bases of a pipeline of the pack. It is no pipeline itself."""

    def save_config(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own, which `save_pretrained` and `push_to_hub` end with; and the code, so that it reloads."""
        super().save_config(save_directory, *args, **kwargs)  # type: ignore[misc]
        save_pipeline_code(self, save_directory)

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The index of a folder as this class reads it: diffusers looks there for code to run before it loads."""
        return index_without_code(super()._dict_from_json_file(*args, **kwargs), cls.__name__)  # type: ignore[misc]

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """diffusers' own. A repository whose index names components of the pack is fetched by its folders, since
        diffusers takes only files beside them, and its own and transformers' classes, for components."""
        place = {name: kwargs[name] for name in _PLACES if kwargs.get(name) is not None}
        index = json.loads(
            Path(hf_hub_download(pretrained_model_name, "model_index.json", **place)).read_text("utf-8")
        )
        pairs = {name: pair for name, pair in index.items() if isinstance(pair, list) and not name.startswith("_")}
        if not any(pair[1] in OWN_COMPONENTS for pair in pairs.values()):
            return super().download(pretrained_model_name, **kwargs)  # type: ignore[misc]
        wanted = [f"{name}/*" for name, pair in pairs.items() if pair[0] is not None and name not in kwargs]
        left_out = ["*.py", "*.bin", "*.ckpt", "*.pt", "*.msgpack", "*.onnx"]
        return snapshot_download(
            pretrained_model_name, allow_patterns=["model_index.json", *wanted], ignore_patterns=left_out, **place
        )


_PLACES = ("revision", "cache_dir", "token", "local_files_only", "force_download")


def index_without_code(index: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """model_index.json for a class that is there already: no file of the folder need run, neither for the pipeline
    nor for a component whose class the pack has. Components of other code are left as they are."""
    own = {**index}
    if isinstance(own.get("_class_name"), (list, tuple)):
        own["_class_name"] = class_name
    for name, pair in index.items():
        if name.startswith("_") or not isinstance(pair, list) or len(pair) != 2 or pair[0] in (None, *_LIBRARIES):
            continue
        home = __name__ if BUNDLE_NAME else OWN_COMPONENTS.get(pair[1])
        if pair[1] in OWN_COMPONENTS and home and hasattr(import_module(home), pair[1]):
            own[name] = [home, pair[1]]
    return own


def save_pipeline_code(pipe: Any, folder: str | Path) -> None:
    """Write the code beside what diffusers saved, and name it in model_index.json.

    pipe: a pipeline of ours, of whatever origin; folder: where its `save_config` has just written model_index.json.
    Raises ValueError when a bundle's own file has been replaced since it was loaded.
    """
    folder = Path(folder)
    module, text = _pipeline_code(type(pipe).__name__)
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = [module, type(pipe).__name__]
    index.pop("_name_or_path", None)  # a path or cache folder of this machine
    for name, pair in index.items():
        if name.startswith("_") or not isinstance(pair, list) or len(pair) != 2 or not (folder / name).is_dir():
            continue
        code = _component_code(pair[0], pair[1], module, text)
        if code is not None:
            index[name] = [code[0], pair[1]]
            _write_code(folder / name / f"{code[0]}.py", code[1])
    for file in (f"{module}.py", "pipeline.py"):
        _write_code(folder / file, text)
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _pipeline_code(class_name: str) -> tuple[str, str]:
    """(module, text) of the file that defines a pipeline: this one, or one made from the package."""
    if BUNDLE_NAME:
        return __name__, _own_text()
    packing = require("webui_diffusers.pipelines.bundle.build", extra="", feature="Saving a pipeline with its code")
    for name, entry in packing.PIPELINES.items():
        if entry.class_name == class_name:
            return packing.bundle_module_name(name), packing.bundle(name)
    raise ValueError(
        f"`{class_name}` is none of the pack's pipelines, so there is no file to save beside it. Save an instance of "
        f"one "
        f"of {', '.join(entry.class_name for entry in packing.PIPELINES.values())}."
    )


def _component_code(library: str, class_name: str, module: str, text: str) -> tuple[str, str] | None:
    """(module, text) of the file that defines a component's class; None for diffusers' and transformers' own."""
    origin = sys.modules.get(library)
    ours = library.startswith("webui_diffusers.") or hasattr(origin, "BUNDLE_NAME")
    if ours and f"\nclass {class_name}(" in text:
        return module, text
    if library.startswith("webui_diffusers."):
        packing = require(
            "webui_diffusers.pipelines.bundle.build", extra="", feature="Saving a component with its code"
        )
        file = library.removeprefix("webui_diffusers.").replace(".", "/") + ".py"
        return packing.bundle_module_name(Path(file).stem), packing.bundle(file)
    if origin is not None and ours:
        return origin.__name__, Path(str(origin.__file__)).read_text(encoding="utf-8")
    if origin is not None and library.partition(".")[0] not in _LIBRARIES:
        LOGGER.warning(
            "The class `%s` of a component comes from `%s`, whose code cannot be saved along. Whoever loads the "
            "folder "
            "has to import that module before, or pass the component.",
            class_name,
            library,
        )
    return None


def _own_text() -> str:
    """The text of the bundle that runs here, if its file still holds it."""
    text = Path(__file__).read_text(encoding="utf-8")
    if f"content {BUNDLE_DIGEST}\n" not in text[:400]:
        raise ValueError(
            f"`{__file__}` no longer holds the code of this pipeline ({BUNDLE_NAME} {BUNDLE_DIGEST}): another file "
            f"of that "
            "name was loaded since, and diffusers keeps one copy of each name. Load the pipeline again, then save."
        )
    return text


def _write_code(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
