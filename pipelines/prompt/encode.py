"""The whole road from prompts to conditioning: grammar, chunks, text encoders, emphasis.

    prompts --pair_texts--> texts --parse_schedule--> a group of variants each --chunk_tokens--> rows of 77 tokens
            --text encoders, all rows of all groups in one batch--> hidden states --emphasis, per group--> Conditioning

SD 1.x, SD 2.x and SDXL differ only in their list of encoders: one, or two whose states are joined on the channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..conditioning import Conditioning, TimedCond, WeightedCond
from .chunks import PromptChunk, chunk_tokens, empty_chunk, tokenize_fragments
from .clip_tokenizer import fragment_tokenizer, multi_vector_words
from .prompt_2 import SecondTexts, TextPair, as_negatives, merge_schedules, paired_sides, second_texts
from .schedule import parse_schedule
from .syntax import has_syntax, single_text
from .text_encoder import (
    WITHOUT_SHARED_MEAN,
    ClipEncoder,
    PromptSettings,
    RowCache,
    weigh_tokens,
    weight_norms,
    weight_versions,
)


CHUNK_LENGTH = 77


class EncodedText(NamedTuple):
    """embeds: (77 * chunks, dim); pooled: (dim,) of the first chunk, SDXL only."""

    embeds: Tensor
    pooled: Tensor | None


class PromptEncoder:
    """The webui's prompts as tensors, for our pipelines and for any other Stable Diffusion or SDXL pipeline.

    >>> other_pipe(**PromptEncoder.from_pipe(other_pipe)("a (red:1.3) fox", "blurry"), num_inference_steps=20)
    """

    def __init__(
        self,
        encoders: Sequence[ClipEncoder],
        *,
        embeddings: Mapping[str, Mapping[str, Tensor]] | None = None,
        convert: Callable[[str], str] | None = None,
        cache: RowCache | None = None,
    ):
        """embeddings: name -> {"clip_l": (vectors, dim), "clip_g": …}. convert: applied to each fragment of text
        before it is tokenized (diffusers' own textual inversions). cache: kept by the caller between calls; without
        one, rows are remembered from the second call of this encoder on."""
        self.encoders = list(encoders)
        self.embeddings = dict(embeddings or {})
        self.convert = convert
        self.cache = cache if cache is not None else RowCache()
        self._remembers = cache is not None
        self._weights: dict[int, tuple[tuple, tuple]] = {}  # id of a model -> its versions and what they stand for

    @classmethod
    def from_pipe(
        cls,
        pipe: Any,
        *,
        embeddings: Mapping | None = None,
        cache: RowCache | None = None,
        own_padding: bool = False,
    ) -> "PromptEncoder":
        """For any diffusers pipeline with a CLIP `text_encoder` (and `text_encoder_2`), and their tokenizers.

        own_padding: rows are filled as the tokenizers' settings say, as diffusers does.
        """
        first, second = getattr(pipe, "text_encoder", None), getattr(pipe, "text_encoder_2", None)
        encoders = []
        if first is not None:
            open_clip = pipe.tokenizer.pad_token_id != pipe.tokenizer.eos_token_id  # SD 2.x
            state = "clip_l" if second is not None else "last" if open_clip else "normed"
            tokenizer = fragment_tokenizer(pipe.tokenizer, open_clip=open_clip)
            pad = pipe.tokenizer.pad_token_id if own_padding else None
            encoders.append(ClipEncoder(tokenizer, first, "clip_l", state, pad))
        if second is not None:
            tokenizer = fragment_tokenizer(pipe.tokenizer_2, open_clip=True)
            pad = pipe.tokenizer_2.pad_token_id if own_padding else None
            encoders.append(ClipEncoder(tokenizer, second, "clip_g", "penultimate", pad))
        if not encoders or any(not hasattr(encoder.model, "get_input_embeddings") for encoder in encoders):
            raise ValueError(
                f"`pipe`: {type(pipe).__name__} has no CLIP text encoder to use. Prompts of the webui are for Stable "
                "Diffusion 1.x, 2.x and SDXL; load such a pipeline, with its text encoders."
            )
        return cls(encoders, embeddings=embeddings, convert=multi_vector_words(pipe), cache=cache)

    @property
    def is_sdxl(self) -> bool:
        """Whether texts have a pooled encoding too."""
        return self.encoders[-1].state == "penultimate"

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> dict[str, Tensor]:
        """Keyword arguments for another pipeline's call: `prompt_embeds`, `negative_prompt_embeds`, for SDXL also
        `pooled_prompt_embeds` and `negative_pooled_prompt_embeds`.

        Shapes: (b, 77 * chunks, dim) and (b, dim); the shorter side is filled with the encoding of the empty prompt.
        prompt_2, negative_prompt_2: other texts for SDXL's second encoder. settings: fields of `PromptSettings`.
        Raises ValueError for prompts that change while drawing ([a:b:0.5], [a|b]) or are drawn from several texts
        (AND): one tensor cannot hold them.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = as_negatives(negative_prompt, len(prompts))
        seconds = second_texts(prompt_2, negative_prompt_2, len(prompts), self.is_sdxl)
        read = PromptSettings(**settings)
        self._weights.clear()  # read anew in every call
        conditioning = self.conditioning(prompts, negatives, 1000, settings=read, seconds=seconds)
        for text, whole in zip(prompts, single_encodings(conditioning), strict=True):
            if not whole:
                raise ValueError(
                    f"`prompt`: {text!r} needs more than one encoding: it has an edit ([a:b:0.5]), an alternation "
                    "([a|b]), AND, or a weight at its end (:2). Draw it with WebUITxt2ImgPipeline, or take that out."
                )
        return self.stacked(conditioning, read)

    def stacked(self, conditioning: Conditioning, settings: PromptSettings) -> dict[str, Tensor]:
        """What `__call__` gives, of a conditioning in which every prompt has one encoding (`single_encodings`)."""
        positive = [pieces[0].schedule[0] for pieces in conditioning.positive]
        negative = [schedule[0] for schedule in conditioning.negative]
        lengths = [len(entry.embeds) for entry in positive + negative]
        length, empty = max(lengths), None
        if min(lengths) < length:
            empty = self.encode([[""]], settings)[0][0].embeds
        embeds = {
            "prompt_embeds": torch.stack([_fill(entry.embeds, empty, length) for entry in positive]),
            "negative_prompt_embeds": torch.stack([_fill(e.embeds, empty, length) for e in negative]),
        }
        if self.is_sdxl:
            embeds["pooled_prompt_embeds"] = torch.stack([entry.pooled for entry in positive])
            embeds["negative_pooled_prompt_embeds"] = torch.stack([entry.pooled for entry in negative])
        return embeds

    @torch.no_grad()
    def conditioning(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        steps: int,
        *,
        hires_steps: int | None = None,
        settings: PromptSettings | None = None,
        pad: bool = False,
        seconds: SecondTexts | None = None,
    ) -> Conditioning:
        """The conditioning of a batch. steps: denoiser calls of the pass; hires_steps: those of the second pass, when
        it is the one that is encoded (`steps` then are the first pass's). pad: also encode the empty prompt. seconds:
        what SDXL's second encoder reads instead."""
        settings = settings or PromptSettings()
        texts, pieces, opposed = paired_sides(prompts, negatives, seconds, settings.enable_prompt_comments)
        distinct = list(dict.fromkeys(opposed))

        def schedule_of(text: str) -> list[tuple[int, str]]:
            return parse_schedule(text, steps, hires_steps, legacy=settings.use_old_scheduling)

        schedules = [merge_schedules(schedule_of(first), schedule_of(second)) for first, second in [*texts, *distinct]]
        groups = [[pair for _, pair in schedule] for schedule in schedules] + ([[TextPair("", "")]] if pad else [])
        if settings.clip_skip is None:
            encoded = self.encode(groups, settings)
        else:  # it is for prompts alone
            opposite = replace(settings, clip_skip=0)
            encoded = self.encode(groups[: len(texts)], settings) + self.encode(groups[len(texts) :], opposite)
        self._remembers = True
        timed = [
            [TimedCond(until, *entry) for (until, _), entry in zip(schedule, group, strict=True)]
            for schedule, group in zip(schedules, encoded)
        ]
        if self.is_sdxl and settings.zeros_for_empty:
            for index, group in enumerate(groups[len(texts) : len(schedules)], start=len(texts)):
                if not any(map(any, group)):  # "" is nothing at all for SDXL, but only on the negative side
                    timed[index] = [TimedCond(e.until, e.embeds * 0, e.pooled * 0) for e in timed[index]]
        return Conditioning(
            positive=[[WeightedCond(weight, timed[index]) for index, weight in prompt] for prompt in pieces],
            negative=[timed[len(texts) + distinct.index(pair)] for pair in opposed],
            empty=encoded[-1][0].embeds if pad else None,
            embeddings=self._used_embeddings(groups[len(texts) : len(schedules)] + groups[: len(texts)], settings),
        )

    def _used_embeddings(self, groups: Sequence[Sequence[TextPair]], settings: PromptSettings) -> tuple[str, ...]:
        """Names of textual inversions as the webui lists them: each encoding's in order of first use, later encodings
        in front. Two encoders are two encodings, so SDXL names every one twice."""
        used: list[str] = []
        for group in groups if self.embeddings else ():
            for encoder in self.encoders:
                texts = dict.fromkeys(_text_for(encoder, pair) for pair in group)
                chunks = [chunk for text in texts for chunk in self.chunks(encoder, text, settings)]
                used[:0] = dict.fromkeys(fix.name for chunk in chunks for fix in chunk.fixes)
        return tuple(used)

    def check(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        steps: int,
        settings: PromptSettings,
        seconds: SecondTexts | None = None,
        *,
        alike: bool = True,
    ) -> None:
        """Cut all texts without encoding them. Raises ValueError for a weight that is no number and, with `alike`,
        for negative prompts of different length in one batch, which the webui cannot draw either."""
        texts, _, opposed = paired_sides(prompts, negatives, seconds, True)

        def variants_of(text: str) -> list[str]:
            return [variant for _, variant in parse_schedule(text, steps, legacy=settings.use_old_scheduling)]

        lengths = {}
        for pair in dict.fromkeys([*texts, *opposed]):
            cut = [
                len(chunks)
                for encoder in (self.encoders if seconds else self.encoders[:1])
                for chunks in self._cut_texts(encoder, [variants_of(_text_for(encoder, pair))], settings).values()
            ]
            lengths[pair] = max(cut)
        different = {pair.first: lengths[pair] for pair in opposed}
        if alike and len(set(different.values())) > 1:
            told = ", ".join(f"{text[:40]!r}: {count}" for text, count in different.items())
            raise ValueError(
                f"`negative_prompt`: the texts of one batch must take equally many chunks of 75 tokens; got {told}. "
                "Make them about equally long, or draw them in separate calls."
            )

    def is_plain(self, text: str) -> bool:
        """Whether a text has no syntax and no embedding's name, and fits one chunk: diffusers reads it the same."""
        if has_syntax(text):
            return False
        chunks = [self.chunks(encoder, text, PromptSettings()) for encoder in self.encoders]
        return all(len(rows) == 1 and not rows[0].fixes for rows in chunks)

    def is_static(self, text: str, *, negative: bool = False) -> bool:
        """Whether a text is one encoding all the time: without edits, alternation or network tags, and a prompt
        without AND and a weight at its end. Cuts it: raises ValueError for a weight that is no number."""
        plain = single_text(text, negative=negative)
        for encoder in self.encoders if plain is not None else ():
            self.chunks(encoder, plain, PromptSettings())
        return plain is not None

    def last_alone(self) -> "PromptEncoder":
        """The last encoder without the others: what SDXL's refiner reads."""
        last = PromptEncoder(self.encoders[-1:], embeddings=self.embeddings, convert=self.convert, cache=self.cache)
        last._weights = self._weights
        return last

    @torch.no_grad()
    def encode(self, groups: Sequence[Sequence[str | TextPair]], settings: PromptSettings) -> list[list[EncodedText]]:
        """Texts by groups; those of one group share their length and, with emphasis "Original", their mean. A text
        that stands several times in a group, as in alternation, is worked out once."""
        cut = [self._cut_texts(encoder, groups, settings) for encoder in self.encoders]
        rows = [_rows_of_group(self.encoders, group, cut, settings.emphasis) for group in groups]
        chunked = [
            [[known[_text_for(e, pair)] for pair in group] for group in rows] for e, known in zip(self.encoders, cut)
        ]
        lengths = [max(len(chunks) for side in chunked for chunks in side[i]) for i in range(len(groups))]
        sides = [self._encode_side(e, side, lengths, settings) for e, side in zip(self.encoders, chunked, strict=True)]
        found = [
            {
                pair: EncodedText(torch.cat([side[i][j].embeds for side in sides], dim=-1), sides[-1][i][j].pooled)
                for pair, j in {pair: j for j, pair in enumerate(group)}.items()
            }
            for i, group in enumerate(rows)
        ]
        return [[found[i][pair] for pair in group] for i, group in enumerate(groups)]

    def _cut_texts(
        self, encoder: ClipEncoder, groups: Sequence[Sequence[str | TextPair]], settings: PromptSettings
    ) -> dict[str, list[PromptChunk]]:
        """The chunks of every text that one encoder reads."""
        texts = dict.fromkeys(_text_for(encoder, pair) for group in groups for pair in group)
        return {text: self.chunks(encoder, text, settings) for text in texts}

    def chunks(self, encoder: ClipEncoder, text: str, settings: PromptSettings) -> list[PromptChunk]:
        """One text as frames of 77 tokens with their weights."""
        cut, index = encoder.tokenizer, self.cache.embedding_index(encoder.tokenizer, self.embeddings)
        key = (encoder.part, text, settings.emphasis, settings.comma_padding_backtrack)
        known = self.cache.cut.get(key)
        if known is not None and known[0] is cut and known[1] is index:
            return known[2]

        def tokenize(fragment: str) -> list[int]:
            return cut(fragment if self.convert is None else self.convert(fragment))

        chunks, _ = chunk_tokens(
            tokenize_fragments(text, tokenize, settings.emphasis),
            start=cut.start,
            end=cut.end,
            comma=cut.comma,
            backtrack=settings.comma_padding_backtrack,
            embeddings=index,
        )
        self.cache.put_cut(key, (cut, index, chunks))
        return chunks

    def _encode_side(
        self, encoder: ClipEncoder, side: list[list[list[PromptChunk]]], lengths: list[int], settings: PromptSettings
    ) -> list[list[EncodedText]]:
        """One encoder's share: fill groups to their length, encode what is new, weigh."""
        filler = empty_chunk(encoder.tokenizer.start, encoder.tokenizer.end)
        filled = [
            [chunks + [filler] * (length - len(chunks)) for chunks in group]
            for group, length in zip(side, lengths, strict=True)
        ]
        rows = self._encode_rows(encoder, [row for group in filled for chunks in group for row in chunks], settings)
        encoded = []
        for group in filled:
            columns = []
            for column in zip(*group, strict=True):  # the same chunk of every text of the group
                z = torch.stack([rows[_row_key(row)][0] for row in column]).float()
                columns.append(weigh_tokens(z, torch.tensor([row.weights for row in column]).to(z), settings.emphasis))
            embeds = torch.cat(columns, dim=1)
            encoded.append([EncodedText(e, rows[_row_key(c[0])][1]) for e, c in zip(embeds, group, strict=True)])
        return encoded

    def _encode_rows(
        self, encoder: ClipEncoder, rows: list[PromptChunk], settings: PromptSettings
    ) -> dict[tuple, tuple[Tensor, Tensor | None]]:
        """Hidden state and pooled vector of each distinct row: from the cache, the rest in one batch."""
        distinct = {_row_key(row): row for row in rows}
        base = (encoder.part, encoder.state, encoder.layer(settings), encoder.pad)
        weights = self._fingerprint(encoder.model) if self._remembers else None
        keys = {key: (base, weights, key, self._vector_ids(row)) for key, row in distinct.items()}
        known = {key: row for key, full in keys.items() if weights and (row := self.cache.rows.get(full)) is not None}
        new = [key for key in distinct if key not in known]
        if new:
            z, pooled = encoder.encode([distinct[key] for key in new], self.embeddings, settings)
            for i, key in enumerate(new):
                known[key] = (z[i], None if pooled is None else pooled[i])
                if weights is not None:
                    self.cache.put(keys[key], known[key])
        return known

    def _fingerprint(self, model: Any) -> tuple | None:
        """What changes when any weight does. Norms are read once a call; between, versions tell."""
        versions = weight_versions(model)
        if versions is None:
            return None
        known = self._weights.get(id(model))
        if known is None or known[0] != versions:
            known = self._weights[id(model)] = versions, weight_norms(model)
        return known

    def _vector_ids(self, row: PromptChunk) -> tuple:
        """Which vectors an embedding's name stood for; tensors changed in place count as new."""
        vectors = [v for fix in row.fixes for v in self.embeddings[fix.name].values()]
        return tuple((v.data_ptr(), v._version, tuple(v.shape)) for v in vectors)


def single_encodings(conditioning: Conditioning) -> list[bool]:
    """Whether each prompt, with its negative one, is a single encoding: no edits, no AND, no weight at its end."""
    return [
        len(pieces) == 1 and pieces[0].weight == 1 and len(pieces[0].schedule) == 1 and len(negative) == 1
        for pieces, negative in zip(conditioning.positive, conditioning.negative, strict=True)
    ]


def _text_for(encoder: ClipEncoder, text: str | TextPair) -> str:
    """What an encoder reads of a pair: SDXL's second one the second."""
    return text if isinstance(text, str) else text.second if encoder.part == "clip_g" else text.first


def _rows_of_group(
    encoders: Sequence[ClipEncoder],
    group: Sequence[str | TextPair],
    cut: Sequence[Mapping[str, list[PromptChunk]]],
    emphasis: str,
) -> list[str | TextPair]:
    """The texts of a group to work out: each once, or all where weights make their common mean count. cut: each
    encoder's chunks."""
    texts = list(dict.fromkeys(group))
    if emphasis in WITHOUT_SHARED_MEAN or len(texts) == len(group):
        return texts
    chunks = (chunk for e, known in zip(encoders, cut) for text in texts for chunk in known[_text_for(e, text)])
    return list(group) if any(weight != 1 for chunk in chunks for weight in chunk.weights) else texts


def _row_key(row: PromptChunk) -> tuple:
    return tuple(row.tokens), tuple(row.fixes)


def _fill(embeds: Tensor, empty: Tensor | None, length: int) -> Tensor:
    """(tokens, dim) with the encoding of "" (77, dim) appended until `length` tokens."""
    missing = (length - len(embeds)) // CHUNK_LENGTH
    return torch.cat([embeds, *[empty] * missing]) if missing and empty is not None else embeds
