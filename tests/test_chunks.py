"""Fragments laid out in rows of 77."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import GOLDEN, recorded_rows
from transformers import CLIPTokenizer
from webui_diffusers.pipelines.prompt.chunks import (
    EmbeddingFix,
    chunk_tokens,
    embedding_index,
    empty_chunk,
    token_limit,
    tokenize_fragments,
)
from webui_diffusers.pipelines.prompt.clip_tokenizer import FragmentTokenizer


ROWS = recorded_rows("prompt/chunks.jsonl", at_least=337)

START, END, COMMA, WORD = 1, 2, 3, 9
IDS = {"start": START, "end": END, "comma": COMMA}


def _letters(text: str) -> list[int]:
    """A tokenizer of one token a letter, for names in the index."""
    return [10 + "abcdefgh".index(letter) for letter in text]


# 1. Table


@pytest.mark.parametrize(
    "fragments, sizes, count",
    [
        ([], [0], 0),
        ([([], 1.0)], [0], 0),
        ([([WORD] * 75, 1.0)], [75], 75),
        ([([WORD] * 76, 1.0)], [75, 1], 76),
        ([([WORD] * 60 + [COMMA] + [WORD] * 20, 1.0)], [61, 20], 95),
        ([([WORD] * 50 + [COMMA] + [WORD] * 30, 1.0)], [75, 6], 81),
        ([([WORD] * 74 + [COMMA, WORD], 1.0)], [75, 1], 76),
        ([([WORD] * 75 + [COMMA, WORD], 1.0)], [75, 2], 77),
        ([([WORD], 1.0), None, ([WORD], 1.0)], [1, 1], 76),
        ([None, ([WORD], 1.0)], [0, 1], 76),
        ([([WORD], 1.0), None], [1], 75),
        ([([WORD], 1.0), None, None, ([WORD], 1.0)], [1, 0, 1], 151),
    ],
)
def test_rows_hold_what_the_table_says(fragments, sizes, count):
    chunks, counted = chunk_tokens(fragments, **IDS)
    assert [sum(token not in (START, END) for token in chunk.tokens) for chunk in chunks] == sizes
    assert counted == count


def test_a_row_is_start_tokens_padding_end():
    (chunk,), _ = chunk_tokens([([5, 6], 1.3), ([7], 0.5)], **IDS)
    assert chunk.tokens == [START, 5, 6, 7] + [END] * 73
    assert chunk.weights == [1.0, 1.3, 1.3, 0.5] + [1.0] * 73


def test_without_backtracking_rows_are_full():
    chunks, _ = chunk_tokens([([WORD] * 60 + [COMMA] + [WORD] * 20, 1.0)], backtrack=0, **IDS)
    assert chunks[0].tokens.count(END) == 1


def test_weights_move_with_their_tokens():
    chunks, _ = chunk_tokens([([WORD] * 60 + [COMMA], 1.0), ([WORD] * 20, 1.5)], **IDS)
    assert chunks[0].weights == [1.0] * 77
    assert chunks[1].weights == [1.0] + [1.5] * 20 + [1.0] * 56


def test_a_comma_for_a_full_row_opens_the_next_and_is_forgotten():
    chunks, _ = chunk_tokens([([WORD] * 75 + [COMMA] + [WORD] * 80, 1.0)], **IDS)
    assert chunks[1].tokens[1] == COMMA and chunks[1].tokens.count(END) == 1


def test_an_embedding_takes_its_places_and_the_longest_name_wins():
    index = embedding_index({"ab": 3, "abc": 2, "b": 1}, _letters)
    (chunk,), count = chunk_tokens([(_letters("habcabb"), 1.2)], embeddings=index, **IDS)
    assert chunk.fixes == [EmbeddingFix(1, "abc", 2), EmbeddingFix(3, "ab", 3), EmbeddingFix(6, "b", 1)]
    assert chunk.tokens[1:8] == [_letters("h")[0], 0, 0, 0, 0, 0, 0]
    assert chunk.weights[1:9] == [1.2] * 7 + [1.0] and count == 7


def test_of_two_names_with_equal_ids_the_first_counts():
    index = embedding_index({"ab": 3, "AB": 1, "": 4}, lambda name: _letters(name.lower()))
    assert chunk_tokens([(_letters("ab"), 1.0)], embeddings=index, **IDS)[0][0].fixes == [EmbeddingFix(0, "ab", 3)]


def test_a_name_across_two_fragments_is_none():
    index = embedding_index({"ab": 3}, _letters)
    assert chunk_tokens([(_letters("a"), 1.0), (_letters("b"), 1.1)], embeddings=index, **IDS)[0][0].fixes == []


def test_an_embedding_that_does_not_fit_opens_the_next_row():
    index = embedding_index({"ab": 10}, _letters)
    chunks, count = chunk_tokens([([WORD] * 70 + _letters("ab"), 1.0)], embeddings=index, **IDS)
    assert [chunk.fixes for chunk in chunks] == [[], [EmbeddingFix(0, "ab", 10)]]
    assert chunks[0].tokens.count(END) == 6 and count == 85


def test_an_embedding_behind_the_comma_stays():
    """Its places move to the next row, its vectors do not: a quirk of the webui that pictures depend on."""
    index = embedding_index({"ab": 2}, _letters)
    tokens = [WORD] * 60 + [COMMA] + _letters("ab") + [WORD] * 20
    chunks, _ = chunk_tokens([(tokens, 1.0)], embeddings=index, **IDS)
    assert [chunk.fixes for chunk in chunks] == [[EmbeddingFix(61, "ab", 2)], []]
    assert chunks[0].tokens[62:64] == [END, END] and chunks[1].tokens[1:3] == [0, 0]


@pytest.mark.parametrize("count, limit", [(0, 75), (1, 75), (75, 75), (76, 150), (151, 225)])
def test_the_limit_is_whole_rows(count, limit):
    assert token_limit(count) == limit


def test_an_empty_row_is_the_row_of_an_empty_text():
    assert [empty_chunk(START, END)] == chunk_tokens([([], 1.0)], **IDS)[0]


@pytest.mark.parametrize(
    "text, emphasis, expected",
    [
        ("a (b) BREAK c", "Original", [("a ", 1.0), ("b", 1.1), ("", 1.0), None, ("c", 1.0)]),
        ("a (b) BREAK c", "Ignore", [("a ", 1.0), ("b", 1.1), ("", 1.0), None, ("c", 1.0)]),
        ("a (b) BREAK c", "None", [("a (b) BREAK c", 1.0)]),
        ("(BREAK)", "Original", [("", 1.1), ("BREAK", -1.1), ("", 1.1)]),
    ],
)
def test_fragments_are_cut_by_the_emphasis_mode(text, emphasis, expected):
    written: list[str] = []

    def tokenize(fragment: str) -> list[int]:
        written.append(fragment)
        return [len(written) - 1]

    read = [entry and (written[entry[0][0]], entry[1]) for entry in tokenize_fragments(text, tokenize, emphasis)]
    assert read == expected


# 2. Recordings


@pytest.fixture(scope="module")
def tokenize(tiny_sd: Path) -> FragmentTokenizer:
    return FragmentTokenizer(CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer"))


@pytest.mark.goldens
def test_recorded_prompts_have_exactly_the_recorded_rows(tokenize):
    loaded = json.loads((GOLDEN / "prompt/meta.json").read_text(encoding="utf-8"))["ti_loaded_for_sd1_width_32"]
    index = embedding_index({name: entry["vectors"] for name, entry in loaded.items()}, tokenize)
    ids = {"start": tokenize.start, "end": tokenize.end, "comma": tokenize.comma}
    assert {name: tokenize(name) for name in loaded} == {name: entry["token_ids"] for name, entry in loaded.items()}
    wrong = []
    for row in ROWS:
        fragments = tokenize_fragments(row["prompt"], tokenize, row["emphasis"])
        embeddings = index if row["textual_inversions"] else None
        chunks, count = chunk_tokens(fragments, backtrack=row["comma_padding_backtrack"], embeddings=embeddings, **ids)
        read = [
            {"tokens": chunk.tokens, "multipliers": chunk.weights, "fixes": [fix._asdict() for fix in chunk.fixes]}
            for chunk in chunks
        ]
        if [read, count, token_limit(count)] != [row["chunks"], row["token_count"], row["target_token_count"]]:
            wrong.append(row["prompt"])
    assert ROWS and not wrong


# 3. Properties

fragment = st.tuples(st.lists(st.sampled_from([COMMA, WORD, 10, 11, 12]), max_size=90), st.floats(-2, 2))


@given(st.lists(st.none() | fragment, max_size=6), st.integers(0, 74))
def test_no_token_is_lost_and_every_row_is_77(fragments, backtrack):
    chunks, count = chunk_tokens(fragments, backtrack=backtrack, **IDS)
    assert all(len(chunk.tokens) == len(chunk.weights) == 77 for chunk in chunks)
    assert all(chunk.tokens[0] == START and chunk.tokens[-1] == END for chunk in chunks)
    laid = [(t, w) for c in chunks for t, w in zip(c.tokens, c.weights) if t not in (START, END)]
    assert laid == [(token, weight) for entry in fragments if entry for token in entry[0] for weight in [entry[1]]]
    assert token_limit(count) in (75 * len(chunks), 75 * (len(chunks) + 1))


@given(st.lists(st.none() | fragment, max_size=6))
def test_embeddings_fit_into_their_rows(fragments):
    index = embedding_index({"ab": 40, "c": 7}, _letters)
    for chunk in chunk_tokens(fragments, embeddings=index, **IDS)[0]:
        assert len(chunk.tokens) == 77
        assert all(0 <= fix.offset <= 75 - fix.vectors for fix in chunk.fixes)


# 4. Errors


def test_an_embedding_larger_than_a_row_is_refused_by_name():
    index = embedding_index({"ab": 76}, _letters)
    with pytest.raises(ValueError, match="`ab` has 76 vectors") as error:
        chunk_tokens([(_letters("ab"), 1.0)], embeddings=index, **IDS)
    assert "Take its name out" in str(error.value)
