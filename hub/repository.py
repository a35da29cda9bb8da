"""A repository's folder on this machine: what is written into it, and whether it works from there."""

import json
import os
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path

from webui_diffusers.loaders.data_files import PACKAGE_FILES, package_file
from webui_diffusers.pipelines.bundle.build import (
    BLOCKS,
    PACK_ROOT,
    PIPELINES,
    bundle,
    bundle_module_name,
    bundle_sources,
    pack_version,
)
from webui_diffusers.pipelines.bundle.sources import BUNDLE_REQUIREMENTS

from .block_files import write_block_index
from .model_files import ModelFilesError, model_files, read_index, without_paths
from .sending import UploadError


HUB_FOLDER = Path(__file__).parent
ENTRIES = {**PIPELINES, **BLOCKS}
ENDPOINTS = ("webui-txt2img", "webui-img2img")
"""The pipelines that `hub/endpoint/handler.py` can serve."""

ALWAYS_REQUIRED = ("accelerate", "diffusers", "torch", "transformers")
_MODEL_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # the last: of the safety checker
_SHOWN_FILES = 20
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


def available_pipelines() -> list[str]:
    """The names of the pipelines and sets of blocks that can be put on the Hub."""
    known = [name for name, entry in ENTRIES.items() if (PACK_ROOT / entry.file).is_file()]
    return [name for name in known if (HUB_FOLDER / "cards" / f"{name}.md").is_file()]


def build_repository(name: str, folder: Path, repo: str, *, model: Path | None = None, endpoint: bool = False) -> Path:
    """Write a repository's files into `folder`, which is emptied first; the folder.

    name: of a pipeline; repo: its future name on the Hub, "org/name"; model: a folder with weights that go along;
    endpoint: with handler.py, by which Inference Endpoints draw. Raises UploadError for weights that the pipeline
    cannot take, and for a pipeline that has no handler.
    """
    if endpoint and (name not in ENDPOINTS or model is None):
        raise UploadError(
            f"An endpoint needs {' or '.join(ENDPOINTS)} with weights, not {name}{'' if model else ' without'}: "
            "choose with --only, and name a model with --with-weights."
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry, text = ENTRIES[name], bundle(name, home=repo)
    for file in ("block.py" if name in BLOCKS else "pipeline.py", f"{bundle_module_name(name)}.py"):
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    sources = bundle_sources(entry.file)
    read_by = {source.name for source in sources}
    for file in (file for file, reader in PACKAGE_FILES.items() if reader in read_by):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package_file(file), folder / file)
    packages = {item.module.partition(".")[0] for source in sources for item in source.others}
    (folder / "requirements.txt").write_text(requirements_text(packages), encoding="utf-8")
    card = string.Template((HUB_FOLDER / "cards" / f"{name}.md").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(card.substitute(repo=repo, version=pack_version()), encoding="utf-8")
    shutil.copyfile(HUB_FOLDER.parent / "LICENSE", folder / "LICENSE")
    if endpoint:
        shutil.copyfile(HUB_FOLDER / "endpoint" / "handler.py", folder / "handler.py")
    if name in BLOCKS:
        write_block_index(entry, folder)
    if model is not None:
        _add_weights(name, folder, model)
    elif name == "face-restore":
        _add_detector(name, folder)
    return folder


def requirements_text(packages: set[str]) -> str:
    """requirements.txt for what a bundle imports, with the versions that the pack's own metadata asks for.

    >>> requirements_text({"torch", "PIL", "re"}).splitlines()[-2:]
    ['torch>=2.6', 'transformers>=5.0']
    """
    lines = [line for line in requires("webui-diffusers") or [] if ";" not in line]  # without the extras'
    asked = {re.split(r"[^\w.-]", line)[0].lower(): line for line in lines}
    wanted = {BUNDLE_REQUIREMENTS[package] for package in packages if package in BUNDLE_REQUIREMENTS}
    return "".join(f"{asked.get(name, name)}\n" for name in sorted({*wanted, *ALWAYS_REQUIRED}))


def _add_weights(name: str, folder: Path, model: Path) -> None:
    """What a model is made of beside the code, and an index that names our class. Prints what is left out."""
    try:
        index, (parts, files, left_out) = read_index(model), model_files(model)
    except ModelFilesError as error:
        raise UploadError(str(error)) from error
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if part not in parts]
    is_xl = "text_encoder_2" in parts
    wrong_size = {"multi-lora": is_xl, "multi-lora-xl": not is_xl}.get(name, False)
    if missing or wrong_size or name == "face-restore" or name in BLOCKS:
        why = f"it lacks {', '.join(missing)}" if missing else "it is made for another kind of model"
        why = "blocks are published as code alone" if name in BLOCKS else why
        raise UploadError(
            f"The weights of `{model}` ({index.get('_class_name')}) cannot go with {name}: {why}. Choose the "
            "pipelines that they fit with --only."
        )
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        if file.endswith("config.json"):
            config = without_paths(json.loads((model / file).read_text(encoding="utf-8")))
            (folder / file).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            _linked_or_copied(str(model / file), str(folder / file))
    entries = {part: _index_entry(name, folder, part, entry) for part, entry in parts.items()}
    settings = {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
    empty = {key: [None, None] for key, value in index.items() if isinstance(value, list) and key[0] != "_"}
    _write_index(name, folder, {**empty, **entries, **settings})
    if left_out:
        shown = ", ".join(left_out[:_SHOWN_FILES]) + (" ..." if len(left_out) > _SHOWN_FILES else "")
        print(f"{name}: left out of `{model}`, because the model does not need it: {shown} ({len(left_out)})")


def _index_entry(name: str, folder: Path, part: str, entry: Sequence[str]) -> list[str]:
    """A component's library and class. A class of ours comes from this bundle, which then lies in its folder too."""
    library, class_name = entry
    if library in _MODEL_LIBRARIES:
        return list(entry)
    module = bundle_module_name(name)
    text = (folder / f"{module}.py").read_text(encoding="utf-8")
    if not library.startswith("webui_") or f"\nclass {class_name}(" not in text:
        raise UploadError(
            f"The component `{part}` is a {class_name} of `{library}`, code that does not come from this pack, so it "
            "is not published. Take the component out of the model's folder and index."
        )
    shutil.copyfile(folder / f"{module}.py", folder / part / f"{module}.py")
    return [module, class_name]


def _add_detector(name: str, folder: Path) -> None:
    """The one part of face restoration that ships, so that the folder loads alone; the restorer is the caller's."""
    from webui_diffusers.loaders.faces.load import load_face_detector

    detector, module = load_face_detector(), bundle_module_name(name)
    detector.save_pretrained(folder / "face_detector")
    shutil.copyfile(folder / f"{module}.py", folder / "face_detector" / f"{module}.py")
    empty = {part: [None, None] for part in ("face_restorer", "face_parser", "upscaler")}
    _write_index(name, folder, {**empty, "face_detector": [module, type(detector).__name__]})


def _write_index(name: str, folder: Path, parts: Mapping[str, object]) -> None:
    from diffusers import __version__ as diffusers_version

    head = {
        "_class_name": [bundle_module_name(name), PIPELINES[name].class_name],
        "_diffusers_version": diffusers_version,
    }
    text = json.dumps({**head, **parts}, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")


def _linked_or_copied(source: str, target: str) -> str:
    """Weights are large: another name for the same file where the disk allows it."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def try_repository(name: str, folder: Path, model: Path | None) -> str:
    """Load the pipeline from its folder in a process that does not know the package, and draw one picture; a summary.

    model: with whose weights; None where the folder has its own. Raises UploadError with what that process said.
    """
    class_name = ENTRIES[name].class_name
    command = [sys.executable, str(HUB_FOLDER / "try_folder.py"), str(folder), class_name]
    with tempfile.TemporaryDirectory() as modules:
        known = {key: value for key, value in os.environ.items() if key not in _TOKEN_VARIABLES}
        done = subprocess.run(
            [*command, *([] if model is None else [str(model)])],
            env={**known, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise UploadError(f"{name} does not work from its own folder `{folder}`, so nothing was sent:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]
