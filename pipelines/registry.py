"""The files that a user makes known to a pipeline by name: networks, embeddings, upscalers, face models. Each is read
once, and nothing about a call is kept."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..loaders.controlnet.load import check_control_base, find_controlnet, load_controlnet
from ..loaders.detectors.library import DetectorLibrary
from ..loaders.hashes import model_hash
from ..loaders.lora.library import NetworkLibrary
from ..loaders.lora.read import Network
from ..loaders.model_lock import loaded_once
from ..loaders.textual_inversion import (
    TextualInversion,
    embedding_folder_state,
    read_embedding,
    read_embedding_folder,
)
from ..loaders.upscaler import load_upscaler
from ..loaders.utils import LOGGER, NameFromText, unknown_choice
from .images.hires import DEFAULT_HIRES_UPSCALER, LATENT_UPSCALERS
from .images.upscale import PIXEL_FILTERS, UpscalerModel
from .infotext.from_call import file_label
from .other_models import OtherModels
from .prompt.encode import PromptEncoder
from .prompt.text_encoder import RowCache


class Attachments:
    """One pipeline's named files."""

    def __init__(self) -> None:
        self.library = NetworkLibrary()
        self.embeddings: dict[str, TextualInversion] = {}
        self.embeddings_folder: Path | None = None
        self.upscalers: dict[str, Any] = {}
        self.face_models: dict[str, Any] = {}
        self.controlnets: dict[str, Any] = {}
        self.controlnet_folder: Path | None = None
        self.detectors = DetectorLibrary()
        self.models = OtherModels()
        self.row_cache = RowCache()
        self._folder_embeddings: tuple[tuple, dict[tuple, dict[str, TextualInversion]]] = ((), {})  # state, by widths
        self._fitting: dict[tuple, tuple[dict[str, dict[str, Tensor]], Any]] = {}  # by encoders and embeddings

    def add_embedding(self, path: str | Path, name: str | None = None) -> str:
        """Make a textual inversion known by `name`, by default its own. Returns the name."""
        found = read_embedding(path)
        self.embeddings[name or found.name] = found
        return name or found.name

    def encoder(self, pipe: Any, networks: Sequence[Network] = (), *, own_padding: bool = False) -> PromptEncoder:
        """The encoder of prompts, knowing the embeddings that were added and those inside `networks`.

        own_padding: of the tokenizers, as diffusers pads.
        An embedding for another model is left out, and its name stays text, as in the webui; the log says so.
        """
        encoder = PromptEncoder.from_pipe(pipe, cache=self.row_cache, own_padding=own_padding)
        parts, widths = [e.part for e in encoder.encoders], [e.width for e in encoder.encoders]
        known = self._known_embeddings(widths)
        encoder.embeddings |= self._fitting_embeddings(known, parts, widths)
        for network in networks:
            for name, vectors in network.embeddings.items():
                fitting = _fitting_vectors(vectors, parts, widths)
                if name not in known and fitting is not None:
                    encoder.embeddings[name] = fitting
        return encoder

    def embedding_hashes(self, networks: Sequence[Network] = ()) -> dict[str, str]:
        """The hash of each embedding's file, by name; of one inside a network, the network's."""
        inside = {name: network.short_hash for network in networks for name in network.embeddings}
        return {**inside, **{name: found.hash for name, found in self._known_embeddings().items()}}

    def _fitting_embeddings(
        self, known: Mapping[str, TextualInversion], parts: list[str], widths: list[int]
    ) -> dict[str, dict[str, Tensor]]:
        """Name -> vectors by text encoder, of those that are for these encoders; worked out once for the same ones."""
        key = (tuple(parts), tuple(widths), *((name, id(found)) for name, found in known.items()))
        fitting, _ = self._fitting.get(key, (None, None))
        if fitting is None:
            fitting = {}
            for name, found in known.items():
                try:
                    fitting[name] = dict(zip(parts, found.for_encoders(widths), strict=True))
                except ValueError as error:
                    LOGGER.warning("%s Its name is read as plain text.", error)
            self._fitting = {key: (fitting, known)}  # these held, so that ids stay theirs
        return fitting

    def _known_embeddings(self, widths: Sequence[int] | None = None) -> dict[str, TextualInversion]:
        """All by name: those of the folder, read again only when its files changed, and those added."""
        if self.embeddings_folder is None:
            return dict(self.embeddings)
        state = embedding_folder_state(self.embeddings_folder)
        known, by_widths = self._folder_embeddings
        if state != known:
            by_widths = {}
            self._folder_embeddings = state, by_widths
        wanted = tuple(widths or ())
        if wanted not in by_widths:
            by_widths[wanted] = read_embedding_folder(self.embeddings_folder, widths)[0]
        return {**by_widths[wanted], **self.embeddings}

    def upscaler(self, name: str | None, component: UpscalerModel | None) -> tuple[str, UpscalerModel | str]:
        """What enlarges between the passes: its label in a text, and a filter's label or a model.

        name: the argument `hires_upscaler`; None is the pipeline's component, or "Latent" without one.
        """
        if name is None:
            if component is None:
                return DEFAULT_HIRES_UPSCALER, DEFAULT_HIRES_UPSCALER
            return upscaler_label(component), component
        if name in LATENT_UPSCALERS or name in PIXEL_FILTERS or name == "None":
            return name, name
        return file_label(name), loaded_once(self.upscalers, name, lambda: load_upscaler(name))

    def add_controlnet(self, model: Any, name: str | None, unet: Any) -> str:
        """Make a control network, or that in a file or folder, known by `name`, by default its own. Returns the name.

        unet: of the pipeline; a network for another base is refused.
        """
        if isinstance(model, (str, Path)):
            path = find_controlnet(model, self.controlnet_folder)
            model, name = load_controlnet(path, unet=unet, dtype=unet.dtype), name or file_label(path.name)
        name = name or Path(str(model.config.get("_name_or_path") or "controlnet")).name
        check_control_base(model, unet, name)
        self.controlnets[name] = model
        return name

    def controlnet(self, name: str, components: Sequence[Any], unet: Any) -> Any:
        """The control network known by `name`, with or without the hash that the webui writes behind: one that was
        added, one of `components` by the file it came from, or one of the folder or a path, which is then loaded."""
        stem = re.sub(r"\s*\[[0-9a-f]{8,}\]$", "", name)
        named = {file_label(Path(str(one.config.get("_name_or_path") or "")).name): one for one in components}
        for known in (self.controlnets, named):
            if name in known or stem in known:
                return known.get(name, known.get(stem))
        if self.controlnet_folder is None and (isinstance(name, NameFromText) or not Path(name).exists()):
            raise ValueError(
                unknown_choice("`control_units`: model", name, [*self.controlnets, *filter(None, named)])
                + " Make one known with `pipe.add_controlnet(path)`, or name their folder: `pipe.controlnet_folder`."
            )
        return loaded_once(self.controlnets, stem, lambda: self.controlnets[self.add_controlnet(name, stem, unet)])

    def face_model(self, name: str, load: Callable[[str], Any]) -> Any:
        """A network for faces by name or path, loaded once by `load`."""
        return loaded_once(self.face_models, name, lambda: load(name))


def upscaler_label(upscaler: Any) -> str:
    """What a text calls an upscaler that was given as a component: the label or file it was loaded from, else its
    class."""
    config = getattr(upscaler, "config", None)
    source = getattr(config, "source", None) or getattr(config, "_name_or_path", None)
    return file_label(source) if source else type(upscaler).__name__


def model_facts(pipe: Any, *, hashed: bool = True) -> dict[str, str]:
    """`model_name` and, where the model is one file, `model_hash`, as texts have them.

    The name is that of the file, folder or Hub repository the pipeline was loaded from. hashed: a file of several GiB
    takes seconds the first time; the hash is kept in the user's cache then.
    """
    source = str(getattr(getattr(pipe, "config", None), "_name_or_path", None) or "")
    if not source:
        return {}
    path = Path(source)
    if path.name in ("unet", "refiner") and path.parent.name:  # a component's folder in that of its pipeline
        path = path.parent
    facts = {"model_name": file_label(path.name)}
    if hashed and path.is_file():
        facts["model_hash"] = model_hash(path)
    return facts


def vae_facts(pipe: Any) -> dict[str, str]:
    """`vae_name` and `vae_hash` of a VAE that was loaded from a file of its own, as texts have them; else none."""
    source = getattr(getattr(pipe.vae, "config", None), "_name_or_path", None)
    path = Path(str(source or ""))
    if not source or not path.is_file() or str(path) == str(getattr(pipe.config, "_name_or_path", None)):
        return {}
    return {"vae_name": path.name, "vae_hash": model_hash(path)}


def model_label(model: Any, otherwise: str) -> str:
    """What the fields "Refiner" and "Hires checkpoint" say: `name [hash]` of a file, the name of a folder or Hub
    repository; `otherwise` where nothing tells where it came from."""
    found = model_facts(model)
    name = found.get("model_name") or otherwise
    return f"{name} [{found['model_hash']}]" if "model_hash" in found else name


def _fitting_vectors(vectors: Tensor | Mapping[str, Tensor], parts: list[str], widths: list[int]) -> dict | None:
    """A network's own embedding by encoder, or None if it is for other encoders."""
    sides = list(vectors.values()) if isinstance(vectors, Mapping) else [vectors]
    by_part = dict(vectors) if isinstance(vectors, Mapping) else dict(zip(parts, sides))
    fits = [by_part[part].shape[1] for part in parts if part in by_part] == widths
    return {part: by_part[part].float() for part in parts} if fits else None
