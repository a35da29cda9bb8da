"""Another checkpoint or VAE for a part of a call: `hires_model`, `ad_checkpoint`, `ad_vae`."""

from collections.abc import Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline

from ..loaders.model_lock import loaded_once
from ..loaders.utils import NameFromText, unknown_choice
from .prompt.text_encoder import RowCache


class OtherModels:
    """Checkpoints and VAEs that a pipeline knows by name, as pipelines of its own class; each is made once."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], Any] = {}
        self._made: dict[tuple, Any] = {}

    def add(self, kind: str, model: Any, name: str | None) -> str:
        """Make a "checkpoint" or "VAE" known: loaded, or the path of a file or folder. Returns its name."""
        if name is None:
            source = model if isinstance(model, (str, Path)) else getattr(model.config, "_name_or_path", "")
            name = Path(str(source)).stem
        if not name:
            raise ValueError(f"This {kind} comes from no file whose name it could have: pass `name`.")
        self._given[kind, name] = model
        return name

    def find(self, kind: str, name: str, argument: str) -> Any:
        """A "checkpoint" or "VAE" by name or path, as it was given; a name out of somebody's text is
        no path. Raises ValueError where there is none."""
        given = list(self._given.items())  # another thread may add one meanwhile
        for (own_kind, known), model in given:
            if own_kind == kind and name in (known, Path(known).stem, f"{known}.safetensors"):
                return model
        if Path(name).expanduser().exists() and not isinstance(name, NameFromText):
            return Path(name).expanduser()
        known_names = [known for (own_kind, known), _ in given if own_kind == kind]
        adder = "add_checkpoint" if kind == "checkpoint" else "add_vae"
        raise ValueError(
            f"{unknown_choice(f'`{argument}`:', name, known_names)} Make the {kind} known with "
            f"`pipe.{adder}(path or model, name={name!r})`, or switch it off."
        )

    def pipe(self, pipe: Any, checkpoint: Any = None, vae: Any = None, name: str | None = None) -> Any:
        """A pipeline of `pipe`'s class with another checkpoint, VAE, or both: pipelines, models or paths. name: what
        texts call the checkpoint, where nothing tells where it came from."""
        key = tuple(part if isinstance(part, (Path, str)) else id(part) for part in (checkpoint, vae))

        def load() -> tuple[Any, Any, Any]:
            made = _with_models(pipe, checkpoint, vae)
            if checkpoint is not None:
                source = getattr(checkpoint, "config", {}).get("_name_or_path") or name
                made.register_to_config(
                    _name_or_path=str(checkpoint if isinstance(checkpoint, Path) else source or "")
                )
            return made, checkpoint, vae  # held, so that ids stay theirs

        return loaded_once(self._made, key, load)[0]


def hires_pipe(pipe: Any, model: Any) -> Any:
    """The pipeline with the checkpoint of the second pass; None for the call's own."""
    if model is None or model == "Use same checkpoint":
        return None
    models, named = pipe.attached.models, isinstance(model, str)
    found = models.find("checkpoint", model, "hires_model") if named else model
    return models.pipe(pipe, found, name=model if named else None)


def _with_models(pipe: Any, checkpoint: Any, vae: Any) -> Any:
    kind = type(pipe)
    components = dict(pipe.components)
    config = {name: pipe.config[name] for name in ("force_zeros_for_empty_prompt",) if name in pipe.config}
    if checkpoint is not None:
        other = _loaded_checkpoint(pipe, checkpoint)
        own = other if isinstance(other, Mapping) else other.components
        for name in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
            components[name] = own.get(name)
    if vae is not None:
        components["vae"] = _loaded_vae(vae, pipe)
    components["scheduler"] = deepcopy(components["scheduler"])  # it counts its steps: not those of two calls
    made = kind(**components, requires_safety_checker=False, **config)
    made.attached = copy(pipe.attached)
    made.attached.row_cache = RowCache()
    return made


def _loaded_checkpoint(pipe: Any, checkpoint: Any) -> Any:
    if not isinstance(checkpoint, (str, Path)):
        return checkpoint
    path = Path(checkpoint)
    dtype = pipe.unet.dtype
    if path.is_file():
        return type(pipe).from_single_file(str(path), dtype=dtype).to(pipe._execution_device)
    return DiffusionPipeline.from_pretrained(str(path), dtype=dtype).to(pipe._execution_device)


def _loaded_vae(vae: Any, pipe: Any) -> Any:
    if not isinstance(vae, (str, Path)):
        return vae
    path = Path(vae)
    load = AutoencoderKL.from_single_file if path.is_file() else AutoencoderKL.from_pretrained
    return load(str(path), dtype=pipe.vae.dtype).to(pipe._execution_device)
