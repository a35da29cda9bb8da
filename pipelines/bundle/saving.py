"""A saved pipeline brings its code: the folder reloads with `from_pretrained(folder, trust_remote_code=True)`.

<folder>/model_index.json         names our class as ["webui_txt2img", "WebUITxt2ImgPipeline"]
<folder>/webui_txt2img.py         that class and all it needs, in one file
<folder>/pipeline.py              the same, for `custom_pipeline=<folder>` with another model
<folder>/upscaler/webui_txt2img.py, ...   the same beside each component of a class of ours
"""

import json
import sys
from pathlib import Path
from typing import Any

from ...loaders.data_files import BUNDLE_DIGEST, BUNDLE_NAME
from ...loaders.utils import LOGGER, require


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
    if origin is not None and library.partition(".")[0] not in ("diffusers", "transformers"):
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
