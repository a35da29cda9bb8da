"""What a user attaches to a pipeline by name, and prompts and arguments then call for: networks, embeddings,
upscalers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..loaders.lora.library import NetworkLibrary, lora_hashes_text, network_mentions
from ..loaders.lora.merge import NetworkMerger
from ..loaders.lora.plan import NetworkReport
from ..loaders.lora.read import Network
from ..loaders.textual_inversion import TextualInversion, read_embedding, read_embedding_folder
from ..loaders.upscaler import load_upscaler
from ..loaders.utils import LOGGER, unknown_choice
from .images.hires import DEFAULT_HIRES_UPSCALER, LATENT_UPSCALERS
from .images.upscale import PIXEL_FILTERS, UpscalerModel
from .loras import AdaptedNetworks
from .prompt.encode import PromptEncoder
from .prompt.network_tags import NetworkTag
from .prompt.text_encoder import RowCache


NetworkUses = list[tuple]  # (Network, te, unet[, dyn][, blocks]), in the order of application

# `lora_backend` -> the rules by which networks are merged. The webui's leave out files in diffusers' and PEFT's
# layouts; "auto" reads those by their own.
LORA_BACKENDS = {"webui": "auto", "reference": "reference"}


class Attachments:
    """One pipeline's named files, each read once."""

    def __init__(self) -> None:
        self.library = NetworkLibrary()
        self.embeddings: dict[str, TextualInversion] = {}
        self.embeddings_folder: Path | None = None
        self.upscalers: dict[str, Any] = {}
        self.face_models: dict[str, Any] = {}
        self.row_cache = RowCache()
        self._networks_seen: list[Network] = []
        self._mentioned: dict[int, str] = {}  # id of a network -> its name in the last prompt or argument
        self._folder_states: dict[tuple, dict[str, TextualInversion]] = {}

    def add_embedding(self, path: str | Path, name: str | None = None) -> str:
        """Make a textual inversion known by `name`, by default its own. Returns the name."""
        found = read_embedding(path)
        self.embeddings[name or found.name] = found
        return name or found.name

    def network_uses(self, tags: Sequence[NetworkTag], loras: Mapping | Iterable | None) -> NetworkUses:
        """The networks of a pass: the prompt's tags, then those of the argument `loras`.

        loras: {name or path: weight} or [(name or path, te, unet[, dyn][, blocks])]. Raises NetworkError for an
        unknown name and ValueError for an entry of another form, before anything is changed.
        """
        mentions = network_mentions(tags)
        uses: NetworkUses = list(self.library.uses(mentions))
        self._mentioned = {id(use[0]): mention.name for use, mention in zip(uses, mentions, strict=True)}
        entries = [(name, weight) for name, weight in loras.items()] if isinstance(loras, Mapping) else loras or []
        for entry in entries:
            if isinstance(entry, str) or not 2 <= len(entry) <= 5:
                raise ValueError(
                    f"`loras` has the entry {entry!r}. Each must be (name, weight) or (name, te, unet[, dyn]"
                    "[, blocks]). A dict {name: weight} will do too."
                )
            name, te, *rest = entry
            uses.append((self._network(name), te, *(rest or [te])))
        return uses

    def encoder(self, pipe: Any, uses: NetworkUses = ()) -> PromptEncoder:
        """The encoder of prompts, knowing the embeddings that were added and those inside networks in use.

        An embedding for another model is left out, and its name stays text, as in the webui; the log says so.
        """
        encoder = PromptEncoder.from_pipe(pipe, cache=self.row_cache)
        parts, widths = [e.part for e in encoder.encoders], [e.width for e in encoder.encoders]
        known = self._known_embeddings(widths)
        for name, found in known.items():
            try:
                encoder.embeddings[name] = dict(zip(parts, found.for_encoders(widths), strict=True))
            except ValueError as error:
                LOGGER.warning("%s Its name is read as plain text.", error)
        self._networks_seen = [network for network, *_ in uses]
        for network in self._networks_seen:
            for name, vectors in network.embeddings.items():
                fitting = _fitting_vectors(vectors, parts, widths)
                if name not in known and fitting is not None:
                    encoder.embeddings[name] = fitting
        return encoder

    def embedding_hashes(self) -> dict[str, str]:
        """The hash of each embedding's file, by name; of one inside a network, the network's."""
        inside = {name: network.short_hash for network in self._networks_seen for name in network.embeddings}
        return {**inside, **{name: found.hash for name, found in self._known_embeddings().items()}}

    def _known_embeddings(self, widths: Sequence[int] | None = None) -> dict[str, TextualInversion]:
        """All by name: those of the folder, read again only when its files changed, and those added."""
        if self.embeddings_folder is None:
            return dict(self.embeddings)
        files = sorted(path for path in Path(self.embeddings_folder).rglob("*") if path.is_file())
        state = tuple((str(path), path.stat().st_mtime_ns) for path in files), tuple(widths or ())
        if state not in self._folder_states:
            self._folder_states = {state: read_embedding_folder(self.embeddings_folder, widths)[0]}
        return {**self._folder_states[state], **self.embeddings}

    def lora_hashes(self, uses: NetworkUses) -> str:
        """`NAME: hash, …` of networks in use, by the names they were mentioned by."""
        return lora_hashes_text(
            {self._mentioned.get(id(use[0]), use[0].name): use[0].short_hash for use in uses}.items()
        )

    def upscaler(self, name: str | None, component: UpscalerModel | None) -> UpscalerModel | str:
        """What enlarges between the passes: a filter's label, or a model.

        name: the argument `hires_upscaler`; None is the pipeline's component, or "Latent" without one.
        """
        if name is None:
            return DEFAULT_HIRES_UPSCALER if component is None else component
        if name in LATENT_UPSCALERS or name in PIXEL_FILTERS or name == "None":
            return name
        if name not in self.upscalers:
            self.upscalers[name] = load_upscaler(name)
        return self.upscalers[name]

    def face_model(self, name: str, load: Callable[[str], Any]) -> Any:
        """A network for faces by name or path, loaded once by `load`."""
        if name not in self.face_models:
            self.face_models[name] = load(name)
        return self.face_models[name]

    def _network(self, name: str | Path | Network) -> Network:
        if isinstance(name, (str, Path)):
            if self.library.find(str(name)) is None and Path(name).exists():
                return self.library.network(self.library.add(name).name)
            return self.library.network(str(name))
        return name


class MergedNetworks:
    """A set of networks merged into the weights, exchanged by `switch`."""

    def __init__(self, merger: NetworkMerger, semantics: str):
        self.merger, self.semantics = merger, semantics

    def switch(self, uses: NetworkUses) -> list[NetworkReport]:
        """Make these the networks that are on; -> what became of each."""
        if not uses and not self.merger.active:
            return []
        return self.merger.switch(uses, self.semantics)


@contextmanager
def networks_on(pipe: Any, backend: str) -> Iterator[MergedNetworks | AdaptedNetworks]:
    """Networks for one block of code, to be switched inside it; then everything is as before, whatever happens.

    backend: "peft" for adapters beside the weights, or whose numbers are merged into them: a key of LORA_BACKENDS.
    """
    if backend not in (*LORA_BACKENDS, "peft"):
        raise ValueError(unknown_choice("`lora_backend`:", backend, (*LORA_BACKENDS, "peft")))
    if backend == "peft":
        with AdaptedNetworks(pipe) as networks:
            yield networks
        return
    merger = NetworkMerger(pipe)
    try:
        yield MergedNetworks(merger, LORA_BACKENDS[backend])
    finally:
        merger.restore()


def _fitting_vectors(vectors: Tensor | Mapping[str, Tensor], parts: list[str], widths: list[int]) -> dict | None:
    """A network's own embedding by encoder, or None if it is for other encoders."""
    sides = list(vectors.values()) if isinstance(vectors, Mapping) else [vectors]
    by_part = dict(vectors) if isinstance(vectors, Mapping) else dict(zip(parts, sides))
    fits = [by_part[part].shape[1] for part in parts if part in by_part] == widths
    return {part: by_part[part].float() for part in parts} if fits else None
