"""One text encoder: rows of 77 tokens -> hidden states, and how tokens are weighed."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..options import WEBUI_OPTIONS
from .chunks import EmbeddingIndex, PromptChunk, embedding_index
from .clip_tokenizer import FragmentTokenizer


_CACHED_ROWS = 256  # of one 77-token chunk each: 60 MB for SD 1.x in float32


@dataclass(frozen=True)
class PromptSettings:
    """How text becomes numbers. Names and defaults are the webui's options."""

    emphasis: str = WEBUI_OPTIONS["emphasis"]  # "None", "Ignore", "Original", "No norm"
    comma_padding_backtrack: int = WEBUI_OPTIONS["comma_padding_backtrack"]  # tokens
    CLIP_stop_at_last_layers: int = WEBUI_OPTIONS["CLIP_stop_at_last_layers"]  # from the end: diffusers' clip_skip + 1
    sdxl_clip_l_skip: bool = WEBUI_OPTIONS["sdxl_clip_l_skip"]
    use_old_scheduling: bool = WEBUI_OPTIONS["use_old_scheduling"]
    enable_prompt_comments: bool = WEBUI_OPTIONS["enable_prompt_comments"]
    clip_skip: int | None = None  # diffusers' argument, for prompts alone and for every encoder; not None: it counts
    zeros_for_empty: bool = True  # SDXL: an empty negative prompt is zeros


@dataclass
class RowCache:
    """Encoded rows of 77 tokens by everything they depend on, and texts as such rows. Kept by a pipeline between
    calls."""

    rows: OrderedDict[tuple, tuple[Tensor, Tensor | None]] = field(default_factory=OrderedDict)
    cut: OrderedDict[tuple, tuple[FragmentTokenizer, EmbeddingIndex, list[PromptChunk]]] = field(
        default_factory=OrderedDict
    )
    indexes: dict[int, tuple] = field(default_factory=dict)  # of textual inversions, by tokenizer

    def embedding_index(
        self, tokenizer: FragmentTokenizer, embeddings: Mapping[str, Mapping[str, Tensor]]
    ) -> EmbeddingIndex:
        """Textual inversions by the tokens of their names; read anew only for another tokenizer or other names."""
        known = self.indexes.get(id(tokenizer))
        same = known is not None and known[0] is tokenizer
        state = list(embeddings), [id(vectors) for vectors in embeddings.values()]
        if same and known[1] == state:
            return known[3]
        counts = {name: len(embedding_part(parts, "clip_g")) for name, parts in embeddings.items()}
        names = list(counts.items())
        index = known[3] if same and known[2] == names else embedding_index(counts, tokenizer)
        held = list(embeddings.values())  # so that no other object gets one of the ids in `state`
        self.indexes[id(tokenizer)] = (tokenizer, state, names, index, held)
        return index

    def put_cut(self, key: tuple, chunks: tuple[FragmentTokenizer, EmbeddingIndex, list[PromptChunk]]) -> None:
        """Remember a text's chunks, with what cut them, and forget the oldest ones beyond the limit."""
        self.cut[key] = chunks
        while len(self.cut) > _CACHED_ROWS:
            self.cut.popitem(last=False)

    def put(self, key: tuple, row: tuple[Tensor, Tensor | None]) -> None:
        """Remember a row, and forget the oldest ones beyond the limit."""
        self.rows[key] = row
        while len(self.rows) > _CACHED_ROWS:
            self.rows.popitem(last=False)


@dataclass(frozen=True)
class ClipEncoder:
    """One text encoder with its tokenizer and the layer that Stable Diffusion reads.

    part: "clip_l" or "clip_g", which vectors of an embedding it takes. state: "normed" (after the final norm, clip
    skip counts; SD 1.x), "last" (after the final norm, always; SD 2.x), "clip_l" and "penultimate" (SDXL). pad: what
    follows the first end token; None: what the model was trained with, whatever the tokenizer's settings say.
    """

    tokenizer: FragmentTokenizer
    model: nn.Module
    part: str
    state: str
    pad: int | None = None

    def encode(
        self, rows: Sequence[PromptChunk], embeddings: Mapping[str, Mapping[str, Tensor]], settings: PromptSettings
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of 77 tokens -> hidden states (rows, 77, dim) and, with a projection, pooled (rows, dim)."""
        device, layer = self.device, self.layer(settings)
        ids = torch.tensor([self._pad_after_end(row.tokens) for row in rows], device=device)
        with self._replaced_embeddings(rows, embeddings):
            if self.state in ("normed", "last") and layer == 1:
                return self.model(ids)[0], None
            out = self.model(ids, output_hidden_states=True)
        z = out.hidden_states[-layer]
        if self.state in ("normed", "last"):
            return getattr(self.model, "text_model", self.model).final_layer_norm(z), None
        return z, self._pooled(rows, out.last_hidden_state) if self.state == "penultimate" else None

    def layer(self, settings: PromptSettings) -> int:
        """Which layer's states are read, counted from the end: 1 is the last."""
        read = 1 if self.state in ("normed", "last") else 2
        if settings.clip_skip is not None:
            return read + settings.clip_skip
        if self.state == "normed" or (self.state == "clip_l" and settings.sdxl_clip_l_skip):
            return max(settings.CLIP_stop_at_last_layers, 1)
        return read

    def _pooled(self, rows: Sequence[PromptChunk], last: Tensor) -> Tensor:
        """The projection of each row's first end token, (rows, dim); last: (rows, 77, dim) after the final norm.

        Row by row: the product of a single vector is added up in another order than that of several, and a text's
        vector shall not depend on its neighbours.
        """
        ends = [row.tokens.index(self.tokenizer.end) for row in rows]
        return torch.cat([self.model.text_projection(last[i : i + 1, end]) for i, end in enumerate(ends)])

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of accelerate's hooks where the model is offloaded, else the weights'.

        Sequential offloading hooks the layers, and leaves the model itself without a device.
        """
        for module in self.model.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.model.config.hidden_size

    def _pad_after_end(self, tokens: Sequence[int]) -> list[int]:
        """OpenCLIP pads with 0 where CLIP repeats the end token: everything after the first end token."""
        pad = self.tokenizer.pad if self.pad is None else self.pad
        if pad == self.tokenizer.end:
            return list(tokens)
        end = list(tokens).index(self.tokenizer.end) + 1
        return [*tokens[:end], *[pad] * (len(tokens) - end)]

    @contextmanager
    def _replaced_embeddings(
        self, rows: Sequence[PromptChunk], embeddings: Mapping[str, Mapping[str, Tensor]]
    ) -> Iterator[None]:
        """Textual inversions: their vectors in place of the token embeddings (positions are added after), for this
        thread's texts: others may encode theirs with the same model meanwhile."""
        thread = threading.get_ident()

        def put_vectors(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if threading.get_ident() != thread:
                return None
            output = output.clone()
            for row, chunk in enumerate(rows):
                for fix in chunk.fixes:
                    vectors = embedding_part(embeddings[fix.name], self.part).to(output)
                    start = fix.offset + 1
                    output[row, start : start + len(vectors)] = vectors[: output.shape[1] - start]
            return output

        if not any(row.fixes for row in rows):
            yield
            return
        handle = self.model.get_input_embeddings().register_forward_hook(put_vectors)
        try:
            yield
        finally:
            handle.remove()


WITHOUT_SHARED_MEAN = ("None", "Ignore", "No norm")  # emphases under which a text's encoding depends on no other text


def weigh_tokens(z: Tensor, weights: Tensor, emphasis: str) -> Tensor:
    """Emphasis: z (b, 77, dim) by the tokens' weights (b, 77).

    "Original" (and any unknown name) puts the mean back: one mean over the whole batch, so a text's encoding depends
    on the other variants of its prompt. webui 1.10.1; shared pictures depend on it.
    """
    if emphasis in ("None", "Ignore"):
        return z
    weighted = z * weights[..., None]
    return weighted if emphasis == "No norm" else weighted * (z.mean() / weighted.mean())


def weight_versions(model: nn.Module) -> tuple | None:
    """What changes when weights are written in place, replaced, or adapted: versions, addresses, active adapters.

    None for weights that cannot be read here (offloaded to the meta device): nothing is cached then.
    """
    parameters = list(model.parameters())
    if any(p.is_meta for p in parameters):
        return None
    adapters = []
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "scaling"):
            state = (tuple(module.active_adapters), tuple(sorted(module.scaling.items())), module.disable_adapters)
            adapters.append((name, *state))
    return tuple((p.data_ptr(), p._version) for p in parameters), tuple(adapters)


def weight_norms(model: nn.Module) -> tuple[float, ...]:
    """The norm of each tensor: catches writes that leave no trace in its version (through `.data`). Reads them all."""
    norms = torch._foreach_norm([p.detach() for p in model.parameters()])
    return tuple(torch.stack([norm.float() for norm in norms]).tolist())


def embedding_part(vectors: Mapping[str, Tensor], part: str) -> Tensor:
    """The vectors of a textual inversion that are for the encoder `part`; a file with one set serves any encoder."""
    return vectors[part] if part in vectors else next(iter(vectors.values()))
