"""Fragments of tokens -> rows of 77 that the text encoder reads.

tokens of a prompt                 rows
none                               1, all padding
75                                 1
76                                 2
60 words, comma, 20 words          2: 61 tokens, then 20: near the end of a row the last comma is where it breaks
a BREAK b                          2
BREAK a                            2, the first all padding
a BREAK                            1
name of an embedding               as many places (token 0) as it has vectors, kept in one row
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..options import WEBUI_OPTIONS
from .attention import parse_attention


CHUNK_TOKENS = 75


class EmbeddingFix(NamedTuple):
    """Where a textual inversion goes: rows offset + 1 ... offset + vectors of the chunk's token embeddings."""

    offset: int  # tokens of the chunk before it, start token not counted
    name: str
    vectors: int


class PromptChunk(NamedTuple):
    """One row of the text encoder."""

    tokens: list[int]  # 77 ids: start, 75, end
    weights: list[float]  # 77
    fixes: list[EmbeddingFix]


class EmbeddingName(NamedTuple):
    """A textual inversion's name as the tokenizer cuts it."""

    ids: tuple[int, ...]
    name: str
    vectors: int


TokenFragment = tuple[list[int], float] | None  # (ids, weight); None is a BREAK
EmbeddingIndex = dict[int, list[EmbeddingName]]  # by first id, the longest first


def tokenize_fragments(
    text: str, tokenize: Callable[[str], list[int]], emphasis: str = WEBUI_OPTIONS["emphasis"]
) -> list[TokenFragment]:
    """A plain text (no edits, no ANDs) -> its fragments' token ids and weights; None stands for BREAK.

    emphasis: with "None" brackets, escapes and BREAK are text and the whole is one fragment; with every other mode
    they are read. Raises ValueError for a weight that is no number.
    """
    if emphasis == "None":
        return [(tokenize(text), 1.0)]
    return [
        None if fragment == "BREAK" and weight == -1 else (tokenize(fragment), weight)
        for fragment, weight in parse_attention(text)
    ]


def embedding_index(embeddings: Mapping[str, int], tokenize: Callable[[str], list[int]]) -> EmbeddingIndex:
    """Index textual inversions for `chunk_tokens`. embeddings: name -> number of vectors, in the order of loading."""
    index: EmbeddingIndex = {}
    for name, vectors in embeddings.items():
        ids = tuple(tokenize(name))
        if ids:
            index.setdefault(ids[0], []).append(EmbeddingName(ids, name, vectors))
    return {first: sorted(names, key=lambda entry: -len(entry.ids)) for first, names in index.items()}


def chunk_tokens(
    fragments: Sequence[TokenFragment],
    *,
    start: int,
    end: int,
    comma: int | None,
    backtrack: int = WEBUI_OPTIONS["comma_padding_backtrack"],
    embeddings: EmbeddingIndex | None = None,
) -> tuple[list[PromptChunk], int]:
    """Lay fragments out in chunks of 75 tokens; the result has at least one. Also returns the count a user sees.

    fragments: ids and weight each, None for BREAK. start, end: ids around a chunk; `end` also fills it up. comma: id
    of the token at which a full chunk may break. backtrack: how far from the chunk's end that comma may lie, in tokens
    (0: breaks anywhere; the webui's comma_padding_backtrack). embeddings: see `embedding_index`.
    The count is the tokens of the last chunk plus 75 for each before it. Raises ValueError for a textual inversion of
    more than 75 vectors.

    >>> chunks, count = chunk_tokens([([320, 2368], 1.1)], start=49406, end=49407, comma=267)
    >>> chunks[0].tokens[:4], chunks[0].weights[:4], count
    ([49406, 320, 2368, 49407], [1.0, 1.1, 1.1, 1.0], 2)
    """
    layout = _ChunkLayout(start, end)
    for fragment in fragments:
        if fragment is None:
            layout.close()
            continue
        ids, weight = fragment
        position = 0
        while position < len(ids):
            if ids[position] == comma:
                layout.last_comma = len(layout.tokens)
            elif len(layout.tokens) == CHUNK_TOKENS and 0 <= CHUNK_TOKENS - layout.last_comma <= backtrack:
                layout.close_at_comma()
            if len(layout.tokens) == CHUNK_TOKENS:
                layout.close()
            found = _embedding_at(ids, position, embeddings or {})
            if found:
                layout.add_embedding(found, weight)
            else:
                layout.add([ids[position]], weight)
            position += len(found.ids) if found else 1
    last = len(layout.tokens)
    count = layout.count + last
    if last or not layout.chunks:
        layout.close()
    return layout.chunks, count


def empty_chunk(start: int, end: int) -> PromptChunk:
    """The chunk that stands where a text of a batch has fewer than the others."""
    return PromptChunk([start] + [end] * (CHUNK_TOKENS + 1), [1.0] * (CHUNK_TOKENS + 2), [])


def token_limit(count: int) -> int:
    """How many tokens fit into the chunks that `count` needs: 75, 150, ... (the right number of the webui's 33/75)."""
    return -(-max(count, 1) // CHUNK_TOKENS) * CHUNK_TOKENS


class _ChunkLayout:
    """The chunk being filled, and those that are full."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.chunks: list[PromptChunk] = []
        self.count = 0  # 75 for each closed chunk
        self._open()

    def _open(self) -> None:
        self.tokens: list[int] = []
        self.weights: list[float] = []
        self.fixes: list[EmbeddingFix] = []
        self.last_comma = -CHUNK_TOKENS * 2  # none: farther away than any backtrack

    def add(self, ids: list[int], weight: float) -> None:
        self.tokens += ids
        self.weights += [weight] * len(ids)

    def add_embedding(self, found: EmbeddingName, weight: float) -> None:
        if found.vectors > CHUNK_TOKENS:
            raise ValueError(
                f"textual inversion `{found.name}` has {found.vectors} vectors, and a prompt's chunk holds "
                f"{CHUNK_TOKENS} tokens, so it cannot be read. Take its name out of the prompt."
            )
        if len(self.tokens) + found.vectors > CHUNK_TOKENS:
            self.close()
        self.fixes.append(EmbeddingFix(len(self.tokens), found.name, found.vectors))
        self.add([0] * found.vectors, weight)

    def close(self) -> None:
        """Fill the chunk up and begin the next one."""
        padding = CHUNK_TOKENS - len(self.tokens)
        tokens = [self.start, *self.tokens, *[self.end] * padding, self.end]
        self.chunks.append(PromptChunk(tokens, [1.0, *self.weights, *[1.0] * padding, 1.0], self.fixes))
        self.count += CHUNK_TOKENS
        self._open()

    def close_at_comma(self) -> None:
        """Close behind the last comma; what follows it opens the next chunk.

        As in the webui, the fixes stay: a textual inversion behind the comma is written into the old chunk's padding,
        and its places in the new chunk hold token 0. Pictures depend on it (test_an_embedding_behind_the_comma_stays).
        """
        cut = self.last_comma + 1
        tokens, weights = self.tokens[cut:], self.weights[cut:]
        del self.tokens[cut:], self.weights[cut:]
        self.close()
        self.tokens, self.weights = tokens, weights


def _embedding_at(ids: list[int], position: int, embeddings: EmbeddingIndex) -> EmbeddingName | None:
    for entry in embeddings.get(ids[position], ()):
        if tuple(ids[position : position + len(entry.ids)]) == entry.ids:
            return entry
    return None
