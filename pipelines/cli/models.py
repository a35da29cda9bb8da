"""Pipelines for the commands that draw: from a folder, a checkpoint file or the Hub."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from .common import HeadedOption, add_options, choose_device, choose_dtype


_HUB_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ModelSetup:
    """What is loaded before a call, and where to. Paths, labels and Hub ids as the user wrote them."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    vae: str | None = None
    refiner: str | None = None
    upscaler: str | None = None
    face_restorer: str | None = None
    face_detector: str | None = None
    lora_folder: Path | None = None
    embeddings: tuple[str, ...] = ()


def _model_option(*names: str, **more: Any) -> Any:
    return click.option(*names, cls=HeadedOption, heading="The model", **more)


MODEL_OPTIONS = {
    "model": _model_option(
        "--model", "-m", envvar="WEBUI_DIFFUSERS_MODEL", help="Folder, .safetensors or .ckpt file, or Hub id."
    ),
    "device": _model_option("--device", help="cuda, cuda:1, mps, cpu."),
    "dtype": _model_option(
        "--dtype",
        type=click.Choice(_DTYPES),
        default="auto",
        show_default=True,
        help="Of the weights.",
    ),
    "vae": _model_option("--vae", help="VAE: folder, file or Hub id."),
    "refiner": _model_option("--refiner", help="Folder, file or Hub id."),
    "upscaler": _model_option("--upscaler", help="Component for hires fix: label, file."),
    "face_restorer": _model_option("--face-restorer", help="GFPGAN, CodeFormer, a file."),
    "face_detector": _model_option(
        "--face-detector",
        type=click.Choice(["mtcnn", "retinaface"]),
        help="What finds faces for detail passes whose own detector is not there.",
    ),
    "embeddings": _model_option(
        "--embedding", "embeddings", multiple=True, help="Textual inversion file; may be repeated."
    ),
}
model_options = add_options(*MODEL_OPTIONS.values())


def read_setup(values: Mapping[str, Any]) -> ModelSetup:
    """The model's options among a command's values."""
    return ModelSetup(**{field.name: values[field.name] for field in fields(ModelSetup) if field.name in values})


def model_problem(argument: str, source: str) -> str | None:
    """Why a folder, file or Hub id cannot be loaded, as far as its name tells; None where it may."""
    path = Path(source).expanduser()
    if path.is_file():
        return None
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _CHECKPOINT_SUFFIXES)
        if (path / "model_index.json").is_file() or (path / "config.json").is_file() or argument != "--model":
            return None
        there = f" Name a file in it, such as `{path / inside[0]}`." if inside else " Name another."
        return f"`{argument} {source}`: this folder has no model_index.json, so it is no diffusers model.{there}"
    named_as_path = source.startswith(("/", ".", "~")) or path.suffix.lower() in _CHECKPOINT_SUFFIXES
    if named_as_path or not _HUB_MODEL.fullmatch(source):
        return f"`{argument} {source}`: no such file or folder. Check the spelling, and where it lies."
    return None


def load_txt2img(setup: ModelSetup, *, bars: bool = True) -> Any:
    """A WebUITxt2ImgPipeline on its device. bars: whether it shows its own progress. Raises ValueError, OSError."""
    from ..txt2img import WebUITxt2ImgPipeline

    return load_pipeline(WebUITxt2ImgPipeline, setup, bars=bars)


def load_img2img(setup: ModelSetup, *, bars: bool = True) -> Any:
    """A WebUIImg2ImgPipeline, in the same way."""
    from ..img2img import WebUIImg2ImgPipeline

    return load_pipeline(WebUIImg2ImgPipeline, setup, bars=bars)


def load_pipeline(pipeline: Any, setup: ModelSetup, *, bars: bool = True) -> Any:
    """A pipeline of this class on its device, with what the setup names. Raises ValueError, OSError."""
    setup = with_model_checked(setup)
    if not bars:
        _hide_loading_bars()
    device = choose_device(setup.device)
    dtype = choose_dtype(setup.dtype, device)
    parts = _extra_parts(setup, dtype)
    loaded = {name: parts[name] for name in ("vae",) if name in parts}
    file = Path(str(setup.model)).expanduser()
    if file.is_file():
        pipe = pipeline.from_single_file(str(file), dtype=dtype, **loaded)
        pipe.register_to_config(_name_or_path=str(file))  # for the picture's "Model" and "Model hash"
    else:
        pipe = pipeline.from_pretrained(str(file) if file.is_dir() else setup.model, dtype=dtype, **loaded)
    if setup.vae and "vae" not in loaded:
        pipe.load_vae(setup.vae)
    if others := {name: part for name, part in parts.items() if name not in loaded}:
        pipe.register_modules(**others)
    if setup.lora_folder is not None:
        pipe.lora_folder = setup.lora_folder
    for embedding in setup.embeddings:
        pipe.add_embedding(embedding)
    if setup.face_detector is not None:
        pipe.attached.detectors.fallback = setup.face_detector
    pipe.set_progress_bar_config(disable=not bars)
    return pipe.to(device)


def with_model_checked(setup: ModelSetup) -> ModelSetup:
    """The setup. Raises ValueError where no model is named, or none lies there."""
    if not setup.model:
        raise ValueError(
            "no model is named. Give --model with a folder, a .safetensors file or a Hub id, or set the environment "
            "variable WEBUI_DIFFUSERS_MODEL."
        )
    for argument, source in (("--model", setup.model), ("--vae", setup.vae), ("--refiner", setup.refiner)):
        if source and (problem := model_problem(argument, source)):
            raise ValueError(problem)
    return setup


def _hide_loading_bars() -> None:
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()


def _extra_parts(setup: ModelSetup, dtype: Any) -> dict[str, Any]:
    """Components that do not come with the model."""
    parts: dict[str, Any] = {}
    if setup.vae and not Path(setup.vae).expanduser().exists():
        from diffusers import AutoencoderKL

        parts["vae"] = AutoencoderKL.from_pretrained(setup.vae, dtype=dtype)
    if setup.refiner:
        parts["refiner"] = _load_refiner(setup.refiner, dtype)
    if setup.upscaler:
        from ...loaders.upscaler import load_upscaler

        parts["upscaler"] = load_upscaler(setup.upscaler)
    if setup.face_restorer:
        from ...loaders.faces.load import load_face_restorer

        parts["face_restorer"] = load_face_restorer(setup.face_restorer)
    return parts


def _load_refiner(source: str, dtype: Any) -> Any:
    """The refiner's UNet, of a whole pipeline or alone."""
    from diffusers import UNet2DConditionModel

    from ...loaders.checkpoint.load import read_refiner

    path = Path(source).expanduser()
    if path.is_file():
        return read_refiner(path, dtype=dtype)
    alone = path.is_dir() and (path / "config.json").is_file()
    place = {} if alone else {"subfolder": "unet"}
    return UNet2DConditionModel.from_pretrained(source, **place, dtype=dtype)


class PipelineCache:
    """The pipeline of the setup asked for last, so that calls with one model load it once.

    load: makes a pipeline of a setup.
    """

    def __init__(self, load: Callable[[ModelSetup], Any]) -> None:
        self._load = load
        self._loaded: tuple[ModelSetup, Any] | None = None

    def pipe(self, setup: ModelSetup) -> Any:
        """The pipeline of a setup. The one before is let go first: two may be more than the memory holds."""
        if self._loaded is None or self._loaded[0] != setup:
            self._loaded = None
            self._loaded = (setup, self._load(setup))
        return self._loaded[1]


def draw_call(pipe: Any, call: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """Pictures and their texts of one call with these arguments."""
    output = pipe(**call)
    return output.images, output.infotexts
