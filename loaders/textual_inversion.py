"""Textual inversion files: embeddings of a word, read from every file the webui reads them from.

    .pt .bin         {"string_to_param": {"*": (v, d)}, "step": ..., "sd_checkpoint": ...}
                     {"clip_l": (v, d), "clip_g": (v, d)}        SDXL, one tensor per text encoder; also under
                                                                 text_encoders_0, text_encoders_1 (diffusers)
                     {"anything": (v, d) or (d,)}                one entry, which is the embedding
    .safetensors     the last two of these
    .png .webp .jxl .avif   the first as JSON (a tensor is {"TORCHTENSOR": nested lists}), as base64 in a text chunk
                     `sd-ti-embedding`, or hidden in the picture's margins (`_json_in_the_margins`)

The word is the file's stem; only pictures are called by the name inside them. Pickles are never run. A picture that
holds no embedding is a picture, and so is `*.preview.png`.
"""

import base64
import binascii
import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .hashes import file_sha256
from .weight_files import WeightFileError, open_weights, read_pickle, weight_file_kind


_EMBEDDING_WEIGHTS = (".pt", ".bin", ".safetensors")
_EMBEDDING_PICTURES = (".png", ".webp", ".jxl", ".avif")
_EMBEDDING_JSON_LIMIT = 1 << 27  # bytes; 75 vectors of 2048 numbers take 4 MB
_JSON_PER_BYTE = 64  # of a packed stream: numbers pack to a half or a third
_PIXELS_PER_BYTE = 64  # of a picture's file


class EmbeddingError(WeightFileError):
    """A file that holds no usable embedding: which file, what it means, what to do."""


@dataclass(frozen=True)
class TextualInversion:
    """One embedding: the word that stands for it, and its vectors."""

    name: str
    vectors: Tensor | dict[str, Tensor]  # (v, d) float32, or {"clip_l": (v, d), "clip_g": (v, d)} of SDXL
    hash: str  # first 12 hex digits of the file's SHA-256, as in the infotext's "TI hashes"
    path: Path
    step: int | None = None  # how long it was trained
    checkpoint: str | None = None  # hash of the model it was trained on
    checkpoint_name: str | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The vectors by encoder; a file with one set of vectors has it under `clip_l`, whatever encoder it is for."""
        return self.vectors if isinstance(self.vectors, dict) else {"clip_l": self.vectors}

    @property
    def count(self) -> int:
        """How many token positions it takes; for SDXL the rows of `clip_g`, as in the webui."""
        return len(self.parts.get("clip_g", self.parts["clip_l"]))

    @property
    def width(self) -> int:
        """Numbers per vector; for SDXL the sum over both encoders."""
        return sum(part.shape[1] for part in self.parts.values())

    def for_encoders(self, widths: Sequence[int]) -> tuple[Tensor, ...]:
        """The vectors of each text encoder, (v, width) each, in the order of `widths`.

        widths: widths of the token embeddings: (768,) SD1, (1024,) SD2, (768, 1280) SDXL.
        Raises EmbeddingError when the embedding was made for other encoders.
        """
        parts = tuple(self.parts.values())
        if tuple(part.shape[1] for part in parts) != tuple(widths):
            raise EmbeddingError(
                f"`{self.path.name}`: it is {_widths_in_words([part.shape[1] for part in parts])} wide, and "
                f"this model's text {'encoder is' if len(widths) == 1 else 'encoders are'} "
                f"{_widths_in_words(widths)} wide, so it was made for another base model. Use it there."
            )
        return parts

    def __repr__(self) -> str:
        return f"TextualInversion({self.name!r}, {self.count} x {self.width}, {self.hash})"


@dataclass(frozen=True)
class SkippedEmbedding:
    """A file that was passed over, or an embedding for another model; its name stays plain text in prompts."""

    name: str
    path: Path
    reason: str


def read_embedding(path: str | Path) -> TextualInversion:
    """Read one embedding from a file of any of the kinds above.

    Raises EmbeddingError (or WeightFileError) when the file is missing, empty, damaged, would run code, holds no
    embedding or several, or numbers that are not finite.
    """
    found = _embedding_in(Path(path))
    if found is None:
        raise EmbeddingError(
            f"`{path}` is a picture without an embedding in it: neither a text chunk `sd-ti-embedding` nor data in "
            "its margins. Pictures lose both when a site converts them; get the original file."
        )
    return found


def read_embedding_folder(
    folder: str | Path, widths: Sequence[int] | None = None
) -> tuple[dict[str, TextualInversion], list[SkippedEmbedding]]:
    """Read all embeddings under a folder: those that fit, by name, and what was passed over, with the reasons.

    widths: as in `TextualInversion.for_encoders`; None takes all. Files are read in order of their names, folder by
    folder; of two embeddings with one name the first counts. Pictures without an embedding are not mentioned.
    Raises EmbeddingError when there is no such folder.
    """
    loaded: dict[str, TextualInversion] = {}
    skipped: list[SkippedEmbedding] = []
    for location, _ in _embedding_files(Path(folder)):
        path = Path(location)
        name = path.stem
        try:
            found = _embedding_in(path)
            if found is None:
                continue
            name = found.name
            if widths is not None:
                found.for_encoders(widths)
            if name in loaded:
                raise EmbeddingError(
                    f"`{path.name}`: the name `{name}` is taken by `{loaded[name].path}`. Rename one."
                )
            loaded[name] = found
        except Exception as error:  # arbitrary bytes: whatever a file does to its reader, it does not stop the others
            skipped.append(SkippedEmbedding(name, path, str(error) or type(error).__name__))
    return loaded, skipped


def embedding_folder_state(folder: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of change of each file that `read_embedding_folder` reads: another state, other embeddings.

    Raises EmbeddingError when there is no such folder.
    """
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in _embedding_files(Path(folder)))


def _embedding_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    if not folder.is_dir():
        raise EmbeddingError(f"`{folder}` is no folder. Name the folder that holds the embeddings.")
    found: list[tuple[str, os.stat_result]] = []
    _add_embedding_files(str(folder), {os.path.realpath(folder)}, found)
    return found


def _add_embedding_files(folder: str, seen: set[str], found: list[tuple[str, os.stat_result]]) -> None:
    """The files of a folder by name, then those of the folders in it. Links are followed, not in circles."""
    inner = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        with contextlib.suppress(OSError):  # a link that leads nowhere
            if entry.is_dir():
                inner.append(entry.path)
            elif entry.name.lower().endswith((*_EMBEDDING_WEIGHTS, *_EMBEDDING_PICTURES)):
                found.append((entry.path, entry.stat()))
    for place in inner:
        real = os.path.realpath(place)
        if real not in seen:
            seen.add(real)
            _add_embedding_files(place, seen, found)


def _embedding_in(path: Path) -> TextualInversion | None:
    """The embedding in a file, or None for a picture that holds none."""
    kind = path.suffix.lower()
    content: object
    if kind in _EMBEDDING_PICTURES:
        if path.stem.lower().endswith(".preview"):
            return None
        content = _embedding_in_picture(path)
        if content is None:
            return None
    elif kind in _EMBEDDING_WEIGHTS and weight_file_kind(path) == "safetensors":
        with open_weights(path) as file:
            content = {key: file.tensor(key) for key in file.keys()}
    elif kind in _EMBEDDING_WEIGHTS:
        content = read_pickle(path)
    else:
        raise EmbeddingError(
            f"`{path.name}` has the ending `{path.suffix}`, which no embedding has. They come as .pt, .bin, "
            ".safetensors or as pictures."
        )
    return _embedding_from(path, content)


@dataclass(frozen=True)
class _EmbeddingContent:
    """What a file's layout says, before it is checked."""

    tensors: dict[str, object]  # one entry, or clip_l and clip_g
    notes: Mapping[str, object] = field(default_factory=dict)


def _embedding_from(path: Path, content: object) -> TextualInversion:
    layout = _embedding_layout(path, content)
    vectors = {key: _embedding_vectors(path, key, value) for key, value in layout.tensors.items()}
    name, step = layout.notes.get("name"), layout.notes.get("step")
    inside = path.suffix.lower() in _EMBEDDING_PICTURES and isinstance(name, str) and name
    return TextualInversion(
        name=str(name) if inside else path.stem,
        vectors=vectors if len(vectors) == 2 else next(iter(vectors.values())),
        hash=file_sha256(path, cached=False)[:12],
        path=path,
        step=step if isinstance(step, int) and not isinstance(step, bool) else None,
        checkpoint=_embedding_note(layout.notes.get("sd_checkpoint")),
        checkpoint_name=_embedding_note(layout.notes.get("sd_checkpoint_name")),
    )


def _embedding_layout(path: Path, content: object) -> _EmbeddingContent:
    """Find the tensors, in the order in which the webui looks for them."""
    if not isinstance(content, Mapping) or not content:
        raise EmbeddingError(f"`{path.name}` holds no table of tensors, so no embedding. Check what it was made for.")
    if "string_to_param" in content and not isinstance(content["string_to_param"], Tensor):
        return _EmbeddingContent(_only_embedding(path, _terms(path, content["string_to_param"])), content)
    for first, second in (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")):
        if first in content and second in content:
            return _EmbeddingContent({"clip_l": content[first], "clip_g": content[second]})
    # A Parameter instead of a tensor is no embedding to the webui either; see test_a_parameter_is_not_a_tensor.
    if type(next(iter(content.values()))) is Tensor:
        return _EmbeddingContent(_only_embedding(path, content))
    keys = ", ".join(f"`{key}`" for key in list(content)[:4])
    raise EmbeddingError(
        f"`{path.name}` holds {keys}: neither `string_to_param`, nor `clip_l` and `clip_g`, nor one tensor, so it is "
        "no embedding. Check what it was made for: LoRA files are loaded as networks."
    )


def _terms(path: Path, table: object) -> dict[object, object]:
    """`string_to_param`, which is a table, or torch's ParameterDict with whatever the file put into it."""
    try:
        return dict(table.items()) if isinstance(table, Mapping | torch.nn.ParameterDict) else {}
    except (AttributeError, KeyError, TypeError) as error:
        raise EmbeddingError(f"`{path.name}`: `string_to_param` is damaged ({error!r}). Fetch it again.") from error


def _only_embedding(path: Path, terms: Mapping) -> dict[str, object]:
    if len(terms) != 1:
        raise EmbeddingError(
            f"`{path.name}` holds {len(terms)} tensors where an embedding has one: it is another kind of file, or "
            "several embeddings in one. Files of LoRA networks are loaded as networks."
        )
    return {str(key): value for key, value in terms.items()}


def _embedding_vectors(path: Path, key: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise EmbeddingError(
            f"`{path.name}`: `{key}` is no tensor of numbers, so the file is damaged. Fetch it again."
        )
    vectors = value.detach().to(torch.float32)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise EmbeddingError(
            f"`{path.name}`: `{key}` has the shape {tuple(value.shape)} where an embedding has (vectors, width): it "
            "is another kind of file. Check what it was made for."
        )
    if not torch.isfinite(vectors).all():
        raise EmbeddingError(
            f"`{path.name}`: `{key}` has numbers that are not finite (NaN or Inf): its training failed, or the file "
            "is damaged. Pictures drawn with it would be black."
        )
    return vectors.clone()


def _embedding_note(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _widths_in_words(widths: Sequence[int]) -> str:
    return " + ".join(str(width) for width in widths)


def _embedding_in_picture(path: Path) -> object:
    """The table in a picture, its tensors built; None when there is none."""
    try:
        with Image.open(path) as opened:
            text, margins = opened.info.get("sd-ti-embedding"), None
            if not text and opened.width * opened.height <= _PIXELS_PER_BYTE * path.stat().st_size:
                opened.load()  # more pixels than that hide nothing: numbers in the margins do not pack
                text = opened.info.get("sd-ti-embedding")
                margins = None if text else _json_in_the_margins(np.asarray(opened.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EmbeddingError(
            f"`{path.name}` cannot be opened as a picture ({error}): it is damaged, or of a kind that Pillow does not "
            "read here. Save it as .png without changing its size."
        ) from error
    if not text and margins is None:
        return None
    try:
        raw = base64.b64decode(text, validate=False) if text else margins
        return json.loads(raw or b"", object_hook=_tensor_from_json)
    except (binascii.Error, ValueError, TypeError, RecursionError, RuntimeError, OverflowError) as error:
        raise EmbeddingError(
            f"`{path.name}` has an embedding in it that cannot be read ({error}): it is damaged. Get the original."
        ) from error


def _tensor_from_json(table: dict[str, object]) -> object:
    return torch.tensor(table["TORCHTENSOR"], dtype=torch.float32) if "TORCHTENSOR" in table else table


def _json_in_the_margins(pixels: np.ndarray) -> bytes | None:
    """Text hidden left and right of a picture, or None. pixels: (h, w, 3) uint8 RGB.

    strip | black column | picture | black column | strip

    The low nibbles of the left strip, row by row, are the low halves of bytes, those of the right strip the high
    halves. Both are masked with x mod 255 for x from x' = 1664525 x + 1013904223 mod 2**32 (the generator of
    Numerical Recipes, from 0 on). The bytes are a zlib stream, and noise behind it. Layout and numbers are facts of
    the file format, found by analysing such pictures; the recorded one among the tests holds them.
    """
    nibbles = pixels & 15
    black = np.flatnonzero(nibbles.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        return None
    low, high = nibbles[:, : black[0]].ravel(), nibbles[:, black[-1] + 1 :].ravel()
    if len(low) != len(high) or not len(low):
        return None
    mask = _margin_mask(len(low))
    stream = ((low ^ mask) | (high ^ mask) << 4).astype(np.uint8).tobytes()
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(stream, min(_EMBEDDING_JSON_LIMIT, _JSON_PER_BYTE * len(stream) + 4096))
    except zlib.error:
        return None  # two dark columns in an ordinary picture
    return text if inflate.eof else None


def _margin_mask(length: int) -> np.ndarray:
    """(length,) uint8 in 0..15: what hides the nibbles of a margin. x_n = 1013904223 (1 + a + ... + a^(n-1))."""
    powers = np.cumprod(np.full(length, 1664525, dtype=np.uint32), dtype=np.uint32)
    sums = np.cumsum(np.concatenate([[1], powers[:-1]]), dtype=np.uint32)
    return (sums * np.uint32(1013904223) % np.uint32(255)).astype(np.uint8) & 15
