"""Networks of a call: one mix for all of its images, or one for each; and how a batch of mixes is drawn.

    loras                                          which image is drawn with what
    {"a": 0.8}                                     all with a
    [("a", 0.8), ("b", 0.5, 0.7)]                  all with a and b
    [{"a": 0.8}, None, [("a", 1), ("b", 1)]]       the first with a, the second without, the third with both

A list of mixes has one for every image of the batch, or one for every prompt. `<lora:name:0.8>` in a prompt holds for
that prompt's images, before those of `loras`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..loaders.lora.kept import keep_networks_on, kept_merger, release_networks
from ..loaders.lora.keys import embedding_name
from ..loaders.lora.library import NetworkLibrary, lora_hashes_text, network_mentions
from ..loaders.lora.merge import NetworkMerger
from ..loaders.lora.peft_mix import AdapterMixer
from ..loaders.lora.plan import NetworkReport
from ..loaders.lora.read import Network
from ..loaders.utils import LOGGER, unknown_choice
from .call_state import own_call, stock_changes_models
from .infotext.from_call import file_label
from .prompt.network_tags import NetworkTag, split_network_tags


# `lora_backend` -> the rules by which networks are merged. The webui's leave out files in diffusers' and PEFT's
# layouts; "auto" reads those by their own. None: PEFT adapters beside the weights.
LORA_BACKENDS: dict[str, str | None] = {"webui": "auto", "reference": "reference", "peft": None}


class LoraUse(NamedTuple):
    """One network of a pass."""

    name: str  # as the tag or the argument has it: a file's, an alias, a path
    use: tuple  # (network, te, unet[, dyn][, blocks]), as the loaders take it
    start: int = 0  # the first step of the pass that it is on in
    stop: int | None = None  # the first step that it is off in again

    @property
    def network(self) -> Network:
        """What was read from the file."""
        return self.use[0]


def lora_uses(library: NetworkLibrary, tags: Sequence[NetworkTag], loras: Mapping | Iterable | None) -> list[LoraUse]:
    """The networks of a pass in the order of application: those of the prompt's tags, then those of `loras`.

    loras: {name or path: multiplier} or [(name or path, te, unet[, dyn][, blocks])]. Raises NetworkError for an
    unknown name, ValueError for an entry of another form.
    """
    mentions = network_mentions(tags)
    found = [
        LoraUse(mention.name, use, mention.start, mention.stop)
        for mention, use in zip(mentions, library.uses(mentions), strict=True)
    ]
    for entry in list(loras.items()) if isinstance(loras, Mapping) else loras or []:
        if isinstance(entry, str) or not 2 <= len(entry) <= 5:
            raise ValueError(
                f"`loras` has the entry {entry!r}. Each must be (name, weight) or (name, te, unet[, dyn][, "
                "blocks]). A dict {name: weight} will do too."
            )
        name, te, *rest = entry
        network = _named_network(library, name)
        found.append(LoraUse(network.name if network is name else str(name), (network, te, *(rest or [te]))))
    return found


def lora_hashes(loras: Iterable[LoraUse]) -> str:
    """The field "Lora hashes": `NAME: hash, …` of networks in use, by the names they were asked for by."""
    return lora_hashes_text({file_label(lora.name): lora.network.short_hash for lora in loras}.items())


class ActiveLoras:
    """The networks that are on in a block of `networks_on`."""

    def __init__(self, backend: str, holder: NetworkMerger | AdapterMixer):
        self._holder, self._rules = holder, LORA_BACKENDS[backend]
        self._any = isinstance(holder, NetworkMerger) and holder.active  # from the call before
        self._loras: list[LoraUse] = []
        self._on: list[tuple] = []

    def switch(self, loras: Sequence[LoraUse]) -> list[NetworkReport]:
        """Make these, and no others, the networks of a pass, and those on that begin with it; -> what became of each.

        One that is off at the pass's first step is no part of its texts.
        """
        self._loras = list(loras)
        later = [lora.use for lora in loras if not _is_on(lora, 0)]
        reports = self._switch([lora.use for lora in loras]) if later else []  # refused before the first step
        on = self._switch([lora.use for lora in loras if _is_on(lora, 0)])
        return reports or on

    def before_step(self, step: int) -> None:
        """Switch on and off what begins or ends with this step of the pass (0, 1, 2, ...)."""
        on = [lora.use for lora in self._loras if _is_on(lora, step)]
        if on != self._on:
            self._switch(on)

    def _switch(self, uses: list[tuple]) -> list[NetworkReport]:
        self._on = uses
        if not uses and not self._any:
            return []
        self._any = True
        if isinstance(self._holder, AdapterMixer):
            return self._holder.switch(uses)
        return self._holder.switch(uses, self._rules)

    def switch_images(self, mixes: Sequence[Sequence[LoraUse]]) -> list[NetworkReport] | None:
        """Make mixes[i] the networks of image i of a batch; None where that cannot be done in one pass."""
        uses = [[lora.use for lora in mix] for mix in mixes]
        if not isinstance(self._holder, AdapterMixer) or not self._holder.one_pass(uses):
            return None
        self._any = True
        return self._holder.switch_images(uses)


def _is_on(lora: LoraUse, step: int) -> bool:
    return lora.start <= step and (lora.stop is None or step < lora.stop)


@contextmanager
def networks_on(pipe: Any, backend: str) -> Iterator[ActiveLoras]:
    """Networks for one block of code, to be switched inside it; then everything is as before, whatever happens.

    backend: a key of LORA_BACKENDS. Raises ValueError for another. Networks merged by a pipeline with `keep_networks`
    stay on after the block, for the next one; an error takes them out, and so does any other block on its models.
    """
    check_lora_backend(backend)
    merges = LORA_BACKENDS[backend] is not None
    keeps = merges and getattr(pipe, "keep_networks", False)
    kept = kept_merger(pipe) if keeps else None
    if kept is None:
        release_networks(pipe)
    holder = (kept or NetworkMerger(pipe)) if merges else AdapterMixer(pipe)
    try:
        yield ActiveLoras(backend, holder)
        if keeps and isinstance(holder, NetworkMerger):
            keep_networks_on(pipe, holder)
    except BaseException:
        keeps = False
        raise
    finally:
        if not keeps:
            holder.restore()


def check_lora_backend(backend: str) -> None:
    """Raises ValueError for a name that is no key of LORA_BACKENDS."""
    if backend not in LORA_BACKENDS:
        raise ValueError(unknown_choice("`lora_backend`:", backend, LORA_BACKENDS))


@dataclass(frozen=True)
class MixedCall:
    """A call's arguments without tags, and the networks of every image."""

    arguments: dict[str, Any]  # of diffusers' own pipeline
    mixes: list[list[LoraUse]]  # by image
    prompts: int  # how many prompts; the images of each stand together

    @property
    def alike(self) -> bool:
        """Whether all images have the same mix."""
        return all(_same_mix(mix, self.mixes[0]) for mix in self.mixes)


def draw_with_networks(
    pipe: Any,
    draw: Callable[..., Any],
    arguments: Mapping[str, Any],
    library: NetworkLibrary,
    loras: Any,
    backend: str,
) -> tuple[Any, list[NetworkReport]]:
    """What `draw(pipe, **arguments)`, diffusers' own call, gives with networks on; and what became of each.

    backend: "peft" (adapters), or "webui" and "reference" (merged by those rules). Different mixes in one batch are
    drawn in one pass where PEFT can, else in groups of equal mixes, each with the batch's own noise.
    Raises ValueError and NetworkError before anything is changed.
    """
    check_lora_backend(backend)
    known = {*signature(draw).parameters, "callback", "callback_steps", "loras", "lora_backend"}
    for name in arguments:
        if name not in known:
            raise ValueError(unknown_choice("argument", name, known))
    call = mixed_call(library, arguments, loras)
    if not any(call.mixes):
        with own_call(pipe, changes=lambda: stock_changes_models(pipe, call.arguments)):
            release_networks(pipe)
            return draw(pipe, **call.arguments), []
    _warn_of_embeddings(call)
    with own_call(pipe, changes=True), networks_on(pipe, backend) as networks:
        if call.alike:
            reports = networks.switch(call.mixes[0])
            return draw(pipe, **call.arguments), reports
        reports = networks.switch_images(call.mixes)
        if reports is not None:
            return draw(pipe, **by_image(call)), reports
        return _draw_groups(pipe, draw, call, networks)


def mixed_call(library: NetworkLibrary, arguments: Mapping[str, Any], loras: Any) -> MixedCall:
    """The arguments without tags and the mixes by image. Raises NetworkError for an unknown name, ValueError for
    `loras` of another form."""
    arguments = dict(arguments)
    tags: list[list[NetworkTag]] = []
    for key in ("prompt", "prompt_2"):
        given = arguments.get(key)
        if given is None:
            continue
        texts = [split_network_tags(text) for text in ([given] if isinstance(given, str) else given)]
        arguments[key] = texts[0][0] if isinstance(given, str) else [text for text, _ in texts]
        tags = tags or [[] for _ in texts]
        for own, (_, found) in zip(tags, texts):
            names = {tag.positional[:1] for tag in own}
            own += [tag for tag in found if tag.positional[:1] not in names or key == "prompt"]
    embeds = arguments.get("prompt_embeds")
    prompts = len(tags) or (1 if embeds is None else len(embeds))
    each = arguments.get("num_images_per_prompt") or 1
    wanted = _mixes_by_image(loras, prompts, each)
    tags = tags or [[] for _ in range(prompts)]
    mixes = [lora_uses(library, tags[i // each], mix) for i, mix in enumerate(wanted)]
    for lora in (lora for mix in mixes for lora in mix if lora.start or lora.stop is not None):
        raise ValueError(
            f"`<lora:{lora.name}...>` asks for steps (start={lora.start}, stop={lora.stop}), and here diffusers' own "
            "loop draws, in which networks are on from the first step to the last. Leave them out, or use "
            "WebUITxt2ImgPipeline."
        )
    return MixedCall(arguments, mixes, prompts)


def by_image(call: MixedCall, images: Sequence[int] | None = None) -> dict[str, Any]:
    """The arguments with a prompt for each of these images, by default all: `num_images_per_prompt` is 1."""
    each = len(call.mixes) // call.prompts
    images = range(len(call.mixes)) if images is None else images
    arguments = {**call.arguments, "num_images_per_prompt": 1}
    for key in _BY_PROMPT:
        value = arguments.get(key)
        if isinstance(value, Tensor):
            arguments[key] = value[[i // each for i in images]]
        elif isinstance(value, list | tuple):
            arguments[key] = [value[i // each] for i in images] if len(value) == call.prompts else value
        elif isinstance(value, str):
            arguments[key] = [value] * len(images)
    for key in ("latents", "generator"):
        value = arguments.get(key)
        if isinstance(value, Tensor):
            arguments[key] = value[list(images)]
        elif isinstance(value, list) and len(value) == len(call.mixes):
            arguments[key] = [value[i] for i in images]
    return arguments


def _mixes_by_image(loras: Any, prompts: int, each: int) -> list[Any]:
    if not isinstance(loras, list | tuple) or not loras or not all(map(_is_mix, loras)):
        return [loras] * (prompts * each)
    if len(loras) == prompts * each:
        return list(loras)
    if len(loras) == prompts:
        return [mix for mix in loras for _ in range(each)]
    raise ValueError(
        f"`loras` lists {len(loras)} mixes for {prompts * each} images of {prompts} prompts. "
        "Give one for every image (None for none), one for every prompt, or a single mix for all."
    )


def _is_mix(entry: Any) -> bool:
    """Whether this entry of `loras` is a mix of its own, and not one network of a mix for all."""
    if entry is None or isinstance(entry, Mapping):
        return True
    return isinstance(entry, list | tuple) and (not entry or isinstance(entry[0], list | tuple))


def _same_mix(mix: Sequence[LoraUse], other: Sequence[LoraUse]) -> bool:
    return [lora.use for lora in mix] == [lora.use for lora in other]


def _named_network(library: NetworkLibrary, name: Any) -> Any:
    if not isinstance(name, str | Path):
        return name
    if library.find(str(name)) is None and Path(name).exists():
        return library.network(library.add(name).name)
    return library.network(str(name))


def _draw_groups(
    pipe: Any, draw: Callable[..., Any], call: MixedCall, networks: ActiveLoras
) -> tuple[Any, list[NetworkReport]]:
    """A batch in groups of equal mixes. The first noise is drawn for all at once, as for a batch of one mix; noise of
    later steps comes from the generators, group after group."""
    call.arguments["latents"] = _batch_noise(pipe, call)
    groups: list[list[int]] = []
    for i, mix in enumerate(call.mixes):
        same = next((group for group in groups if _same_mix(call.mixes[group[0]], mix)), None)
        groups.append([i]) if same is None else same.append(i)
    parts, reports = [], []
    for group in groups:
        reports += networks.switch(call.mixes[group[0]])
        parts.append(draw(pipe, **{**by_image(call, group), "return_dict": True}))
    order = [i for group in groups for i in group]
    fields = {key: _in_order([part[key] for part in parts], order) for key in parts[0]}
    output = type(parts[0])(**{key: fields.get(key) for key in type(parts[0]).__dataclass_fields__})
    if call.arguments.get("return_dict", True):
        return output, reports
    return tuple(getattr(output, key) for key in type(output).__dataclass_fields__), reports


def _in_order(values: list[Any], order: list[int]) -> Any:
    """Parts of a batch as one: row k of all parts, one after the other, goes to place order[k]."""
    if any(value is None for value in values):
        return None
    rows = [row for value in values for row in value]
    rows = [rows[order.index(i)] for i in range(len(order))]
    if isinstance(values[0], Tensor):
        return torch.stack(rows)
    return np.stack(rows) if isinstance(values[0], np.ndarray) else rows


def _warn_of_embeddings(call: MixedCall) -> None:
    """diffusers' own call reads no embeddings that come inside networks."""
    for network in {id(lora.network): lora.network for mix in call.mixes for lora in mix}.values():
        names = sorted({found[0] for key in network.file.keys() if (found := embedding_name(key))})
        if names:
            LOGGER.warning(
                "%s: brings the embeddings %s, which stay plain words here. Load them with `load_textual_inversion`.",
                network.path,
                ", ".join(names),
            )


def _batch_noise(pipe: Any, call: MixedCall) -> Tensor:
    """The latents of the whole batch, as diffusers' `prepare_latents` draws them, before their scale."""
    arguments = call.arguments
    if arguments.get("latents") is not None:
        return arguments["latents"]
    sample = getattr(pipe, "default_sample_size", None) or pipe.unet.config.sample_size
    sides = (sample, sample) if isinstance(sample, int) else tuple(sample)
    asked = [int(arguments.get(key) or 0) // pipe.vae_scale_factor for key in ("height", "width")]
    cells = [size or side for size, side in zip(asked, sides)]
    shape = (len(call.mixes), pipe.unet.config.in_channels, *cells)
    encoder = getattr(pipe, "text_encoder_2", None) or pipe.text_encoder
    dtype = arguments["prompt_embeds"].dtype if arguments.get("prompt_embeds") is not None else encoder.dtype
    return randn_tensor(shape, generator=arguments.get("generator"), device=pipe._execution_device, dtype=dtype)


_BY_PROMPT = (
    "prompt",
    "prompt_2",
    "negative_prompt",
    "negative_prompt_2",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
