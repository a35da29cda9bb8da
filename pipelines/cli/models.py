"""Pipelines for the commands that draw: from a folder, a checkpoint file or the Hub."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import choose_device, choose_dtype


_MODEL_PANEL = "The model"


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
    lora_folder: Path | None = None
    embeddings: tuple[str, ...] = ()


MODEL_OPTIONS: dict[str, tuple[Any, Any]] = {
    "model": (
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar="WEBUI_DIFFUSERS_MODEL",
            help="Folder, .safetensors or .ckpt file, or Hub id.",
            rich_help_panel=_MODEL_PANEL,
        ),
    ),
    "device": (str | None, typer.Option("--device", help="cuda, cuda:1, mps, cpu.", rich_help_panel=_MODEL_PANEL)),
    "dtype": (str, typer.Option("--dtype", help="float32, float16, bfloat16.", rich_help_panel=_MODEL_PANEL)),
    "vae": (str | None, typer.Option("--vae", help="VAE: folder, file or Hub id.", rich_help_panel=_MODEL_PANEL)),
    "refiner": (str | None, typer.Option("--refiner", help="Folder, file or Hub id.", rich_help_panel=_MODEL_PANEL)),
    "upscaler": (
        str | None,
        typer.Option("--upscaler", help="Component for hires fix: label, file.", rich_help_panel=_MODEL_PANEL),
    ),
    "face_restorer": (
        str | None,
        typer.Option("--face-restorer", help="GFPGAN, CodeFormer, a file.", rich_help_panel=_MODEL_PANEL),
    ),
    "lora_folder": (
        Path | None,
        typer.Option("--lora-folder", envvar="WEBUI_DIFFUSERS_LORAS", rich_help_panel=_MODEL_PANEL),
    ),
    "embeddings": (
        list[str] | None,
        typer.Option("--embedding", help="Textual inversion; may be repeated.", rich_help_panel=_MODEL_PANEL),
    ),
}


def with_model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of MODEL_OPTIONS, in place of its parameter `setup`."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "setup"]
    usual = {field.name: field.default for field in fields(ModelSetup)} | {"embeddings": None}
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=usual[name], annotation=Annotated[kind, option]
        )
        for name, (kind, option) in MODEL_OPTIONS.items()
    ]

    def run(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in MODEL_OPTIONS}
        command(setup=ModelSetup(**{**chosen, "embeddings": tuple(chosen["embeddings"] or ())}), **values)

    variable = [p for p in own if p.kind is p.VAR_KEYWORD]
    plain = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*plain, *added, *variable])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*plain, *added)}
    return run


def load_txt2img(setup: ModelSetup, *, bars: bool = True) -> Any:
    """A WebUITxt2ImgPipeline on its device. bars: whether it shows its own progress. Raises ValueError, OSError."""
    if not setup.model:
        raise ValueError(
            "no model is named. Give --model with a folder, a .safetensors file or a Hub id, or set the environment "
            "variable WEBUI_DIFFUSERS_MODEL."
        )
    from ..txt2img import WebUITxt2ImgPipeline

    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    if not bars:
        _hide_loading_bars()
    device = choose_device(setup.device)
    dtype = choose_dtype(setup.dtype, device)
    parts = _extra_parts(setup, dtype)
    loaded = {name: parts[name] for name in ("vae",) if name in parts}
    file = Path(setup.model).expanduser()
    if file.is_file():
        pipe = WebUITxt2ImgPipeline.from_single_file(str(file), torch_dtype=dtype, **loaded)
        pipe.register_to_config(_name_or_path=str(file))  # for the picture's "Model" and "Model hash"
    else:
        pipe = WebUITxt2ImgPipeline.from_pretrained(setup.model, torch_dtype=dtype, **loaded)
    if others := {name: part for name, part in parts.items() if name not in loaded}:
        pipe.register_modules(**others)
    if setup.lora_folder is not None:
        pipe.lora_folder = setup.lora_folder
    for embedding in setup.embeddings:
        pipe.add_embedding(embedding)
    pipe.set_progress_bar_config(disable=not bars)
    return pipe.to(device)


def _hide_loading_bars() -> None:
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()


def _extra_parts(setup: ModelSetup, dtype: Any) -> dict[str, Any]:
    """Components that do not come with the model."""
    parts: dict[str, Any] = {}
    if setup.vae:
        from diffusers import AutoencoderKL

        single = Path(setup.vae).expanduser().is_file()
        load = AutoencoderKL.from_single_file if single else AutoencoderKL.from_pretrained
        parts["vae"] = load(setup.vae, torch_dtype=dtype)
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
        return read_refiner(path, torch_dtype=dtype)
    alone = path.is_dir() and (path / "config.json").is_file()
    return UNet2DConditionModel.from_pretrained(source, torch_dtype=dtype, **({} if alone else {"subfolder": "unet"}))


class PipelineCache:
    """The pipeline of the model asked for last, so that jobs with one model load it once."""

    def __init__(self, setup: ModelSetup) -> None:
        self._setup = setup
        self._loaded: tuple[str | None, Any] | None = None

    def pipe(self, model: str | None = None) -> Any:
        """The pipeline of `model`, or of the setup's."""
        wanted = model or self._setup.model
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None
            values = {field.name: getattr(self._setup, field.name) for field in fields(ModelSetup)}
            self._loaded = (wanted, load_txt2img(ModelSetup(**{**values, "model": wanted}), bars=False))
        return self._loaded[1]


def draw_call(pipe: Any, call: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """Pictures and their texts of one call with these arguments."""
    output = pipe(**call)
    if output.infotexts:
        return output.images, output.infotexts
    from ..infotext.from_call import call_infotexts, model_facts

    picture = output.images[0]
    factor = float(call.get("hires_scale") or 1)
    first_size = (round(picture.width / factor), round(picture.height / factor))
    width, height = call.get("width") or first_size[0], call.get("height") or first_size[1]
    defaults = {"num_inference_steps": 50, "guidance_scale": 5.0 if pipe.is_sdxl else 7.5}
    scheduler = {} if call.get("sampler") else {"sampler_name": type(pipe.scheduler).__name__}
    facts = {"width": width, "height": height, **model_facts(pipe), **scheduler}
    return output.images, call_infotexts({**defaults, **call}, output.seeds, None, facts)
