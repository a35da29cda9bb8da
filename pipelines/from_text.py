"""A pipeline with all that a picture's text names, out of a library of files.

text -> fields -> what is missing, all at once -> checkpoint, VAE, networks, embeddings, upscaler, faces, refiner
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..loaders.checkpoint.describe import describe_checkpoint
from ..loaders.checkpoint.load import read_refiner
from ..loaders.checkpoint.vae import load_vae
from ..loaders.faces.load import load_face_restorer
from ..loaders.library.missing import WantedFile, found_file, missing_files, wanted_files
from ..loaders.upscaler import load_upscaler
from .infotext.read import parse_infotext
from .infotext.tidy import tidy_infotext
from .infotext.to_call import call_arguments


def pipeline_from_text(pipeline: Any, text: str | Mapping[str, Any], library: Any, **kwargs: Any) -> Any:
    """A pipeline of class `pipeline` in which `text` (or its fields) finds every file by the name that it has there.

    library: a WebUIFolder. kwargs: of `from_single_file`. Raises ValueError that lists all that is missing before
    anything is loaded, and for a picture of a model that is no Stable Diffusion.
    """
    fields = parse_infotext(tidy_infotext(text)) if isinstance(text, str) else text
    call_arguments(fields)  # refuses pictures of other families of models
    wanted = wanted_files(fields, library)
    is_sdxl = _is_sdxl(wanted, library)
    problems = [str(missing) for missing in missing_files(fields, library, is_sdxl=is_sdxl)]
    if not any(file.kind == "checkpoint" and file.label == "`Model`" for file in wanted):
        problems.insert(0, "The text names no checkpoint (`Model`, `Model hash`): load one with from_single_file.")
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"{len(problems)} things that the text names are missing, and nothing was loaded:\n  {lines}")
    found = {file: found_file(file, library, is_sdxl=is_sdxl) for file in wanted}
    checkpoint = next(found[file] for file in wanted if file.kind == "checkpoint" and file.label == "`Model`")
    pipe = pipeline.from_single_file(checkpoint.path, **kwargs)
    for file, place in found.items():
        if place is not None:  # None: downloaded when it is first used
            _attach(pipe, file, place.path, checkpoint.path)
    return pipe


def _is_sdxl(wanted: Sequence[WantedFile], library: Any) -> bool:
    """Whether the checkpoint is an SDXL, where TAESD is asked for, of which there is one for each base."""
    if not any(file.kind == "taesd" for file in wanted):
        return False
    named = next((file for file in wanted if file.kind == "checkpoint" and file.label == "`Model`"), None)
    place = None if named is None else found_file(named, library)
    return place is not None and describe_checkpoint(place.path).base.startswith("sdxl")


def load_from_library(pipeline: Any, library: Any, name: str, *, like: Any = None, **kwargs: Any) -> Any:
    """A pipeline of class `pipeline` from a library's checkpoint, by name, title or hash.

    like: another pipeline, whose device and dtype it gets, and whose networks and embeddings it shares.
    kwargs: of `from_single_file`. Raises ValueError, with near names, where there is no such checkpoint.
    """
    file = WantedFile("checkpoint", name, None, "the model", "`name`")
    place = found_file(file, library)
    if place is None:
        near = library.near("checkpoint", name)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"No checkpoint is called {name!r}.{hint}")
    if like is not None and "torch_dtype" not in kwargs:
        kwargs = {"dtype": like.unet.dtype, **kwargs}
    pipe = pipeline.from_single_file(place.path, **kwargs)
    if like is not None:
        pipe.attached = like.attached
        pipe.to(like.device)
    return pipe


def _attach(pipe: Any, file: WantedFile, path: Path, checkpoint: Path) -> None:
    """Load one file and make it known to `pipe` by the name that the text has for it."""
    if file.kind in ("vae", "taesd"):
        pipe.register_modules(vae=load_vae(path, like=pipe.vae))
    elif file.kind == "lora":
        pipe.add_lora(path, file.name)
    elif file.kind == "embedding":
        pipe.add_embedding(path, file.name)
    elif file.kind == "upscaler":
        pipe.attached.upscalers[file.name] = load_upscaler(path).to(pipe.device)
    elif file.kind == "face_restorer":
        pipe.attached.face_models[file.name] = load_face_restorer(path)
    elif file.kind == "controlnet":
        pipe.add_controlnet(path, file.name)
    elif file.label == "`Hires checkpoint`":
        pipe.add_checkpoint(path, file.name)
    elif file.argument == "`refiner`":
        own = describe_checkpoint(checkpoint).base
        refiner = read_refiner(path, like=own, dtype=pipe.unet.dtype)
        refiner.register_to_config(_name_or_path=str(path))
        pipe.register_modules(refiner=refiner)
