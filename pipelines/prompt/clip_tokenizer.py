"""Text -> CLIP token ids, as the webui's own tokenizers cut it.

The webui runs the slow CLIP tokenizer with ftfy, and open_clip's for SD 2.x and the second encoder of SDXL. Today's
tokenizers in transformers leave ftfy out, cut some punctuation differently, and know no open_clip. So only their
vocabulary and byte pairs are used here; what stands around is CLIP's own recipe (openai/CLIP,
clip/simple_tokenizer.py; mlfoundations/open_clip, src/open_clip/tokenizer.py; both MIT).

    written        cut from
    A  Cat         a cat
    ，             ,             fullwidth forms, curly quotes and ligatures become plain
    &amp;amp;      &             open_clip only; CLIP reads &amp;
"""

import html
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import ftfy
import regex
from ftfy.fixes import fix_surrogates

from ...loaders.model_lock import tokenizers_alone


_CLIP_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
_FRAGMENT_TOKENIZERS: WeakKeyDictionary[Any, dict[tuple[bool, int], "FragmentTokenizer"]] = WeakKeyDictionary()
_OPEN_CLIP_SPECIALS = ("<start_of_text>", "<end_of_text>")


class FragmentTokenizer:
    """Ids of a piece of text, without start, end, padding, truncation or warnings.

    tokenizer: any CLIP tokenizer of transformers, slow or fast, whatever its padding. open_clip: cut as open_clip does
    (SD 2.x, the second encoder of SDXL) instead of as OpenAI's CLIP. Words that were added to the vocabulary
    (`load_textual_inversion`) stay whole.

    start, end, comma: token ids. pad: what a row is filled with behind its first end: `end`, or 0 for open_clip.
    """

    def __init__(self, tokenizer: Any, *, open_clip: bool = False) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        comma = tokenizer.get_vocab().get(",</w>") if backend is None else backend.token_to_id(",</w>")
        special_ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        missing = [name for name, id_ in zip(("bos_token", "eos_token"), special_ids) if id_ is None]
        if missing or comma is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no {' and no '.join(missing) or 'token `,</w>`'}, so it is no CLIP "
                "tokenizer. Pass the tokenizer of the model's CLIP text encoder."
            )
        self.start, self.end = special_ids
        self.pad = 0 if open_clip else self.end
        self.comma: int = comma
        specials = _OPEN_CLIP_SPECIALS if open_clip else _CLIP_SPECIALS
        self._open_clip = open_clip
        self._specials = dict(zip(specials, special_ids))
        self._words = regex.compile("|".join([*map(regex.escape, specials), _CLIP_WORD]), regex.IGNORECASE)
        self._byte_pairs = _byte_pair_encoder(tokenizer)
        # CLIP's slow tokenizer takes its special tokens out before it cleans the text
        self._whole = _added_words(tokenizer) | ({} if open_clip else self._specials)
        longest_first = sorted(self._whole, key=len, reverse=True)
        self._whole_words = regex.compile(f"({'|'.join(map(regex.escape, longest_first))})") if longest_first else None

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`, any number of them."""
        if self._whole_words is None:
            return list(self._ids(text))
        ids: list[int] = []
        for part in self._whole_words.split(text):
            ids += [self._whole[part]] if part in self._whole else self._ids(part)
        return ids

    def _ids(self, text: str) -> Iterator[int]:
        clean = ftfy.fix_text(text)
        if self._open_clip:
            clean = html.unescape(html.unescape(clean))
        for word in self._words.findall(" ".join(clean.split()).lower()):
            if word in self._specials:
                yield self._specials[word]
            else:
                yield from self._byte_pairs("".join(_BYTE_SIGNS[byte] for byte in word.encode("utf-8")))


def fragment_tokenizer(tokenizer: Any, *, open_clip: bool) -> FragmentTokenizer:
    """The `FragmentTokenizer` of a tokenizer; made anew only for another one, or when words were added."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:  # a slow one would be kept alive by its own merges
        return FragmentTokenizer(tokenizer, open_clip=open_clip)
    known, words = _FRAGMENT_TOKENIZERS.setdefault(tokenizer, {}), len(tokenizer)
    if (open_clip, words) not in known:
        known[open_clip, words] = FragmentTokenizer(tokenizer, open_clip=open_clip)
    return known[open_clip, words]


def _byte_pair_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Word in byte signs -> ids, by the tokenizer's own merges: of the Rust model, or of the slow class."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return partial(_rust_ids, backend.model)
    return partial(_slow_ids, tokenizer, tokenizer.get_vocab())


def _rust_ids(model: Any, word: str) -> list[int]:
    return [token.id for token in model.tokenize(word)]


def _slow_ids(tokenizer: Any, vocabulary: dict[str, int], word: str) -> list[int]:
    return [vocabulary.get(token, tokenizer.unk_token_id) for token in tokenizer.bpe(word).split(" ")]


def _added_words(tokenizer: Any) -> dict[str, int]:
    """Words that somebody added behind the vocabulary; special tokens lie inside it or are the recipe's matter."""
    added = tokenizer.get_added_vocab()
    base = len(tokenizer) - len(added)
    specials = set(tokenizer.all_special_tokens)
    return {word: id_ for word, id_ in added.items() if id_ >= base and word and word not in specials}


def _byte_signs() -> list[str]:
    """A printable sign for every byte: itself where it is one, else the next free code point from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_BYTE_SIGNS = _byte_signs()


def multi_vector_words(pipe: Any) -> Callable[[str], str] | None:
    """How diffusers writes out words of several vectors (`load_textual_inversion`): <cat> as <cat> <cat>_1 ...; None
    where there are none."""
    tokenizer = next(
        t for t in (getattr(pipe, "tokenizer", None), getattr(pipe, "tokenizer_2", None)) if t is not None
    )
    added = tokenizer.get_added_vocab()
    if not hasattr(pipe, "maybe_convert_prompt") or not any(f"{word}_1" in added for word in added):
        return None

    def written_out(text: str) -> str:
        with tokenizers_alone(tokenizer):
            return pipe.maybe_convert_prompt(fix_surrogates(text), tokenizer)  # it cuts tokens, of whole signs only

    return written_out
