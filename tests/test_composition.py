"""AND, its weights, and which entry of a schedule a call reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import recorded_rows
from webui_diffusers.pipelines.conditioning import entry_at
from webui_diffusers.pipelines.prompt.composition import split_and, split_prompts


ROWS = recorded_rows("prompt/multicond.jsonl", at_least=62)

# 1. Table


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [("", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        ("a cat AND a dog :0.5", [("a cat", 1.0), (" a dog", 0.5)]),
        ("a photo, 16:9", [("a photo, 16", 9.0)]),
        ("a:-1. AND b: +.5 ", [("a", -1.0), (" b", 0.5)]),
        ("candy AND sand and sea", [("candy", 1.0), (" sand and sea", 1.0)]),
        ("ANDa bAND", [("ANDa bAND", 1.0)]),
        ("(a AND b:1.1)", [("(a", 1.0), (" b:1.1)", 1.0)]),
        ("a:1:2", [("a:1", 2.0)]),
        ("a:1e3", [("a:1e3", 1.0)]),
        (" a \n", [(" a", 1.0)]),
        ("a:１.５", [("a", 1.5)]),
    ],
)
def test_a_prompt_is_split_as_the_table_says(text, expected):
    assert split_and(text) == expected


@pytest.mark.parametrize("call, index", [(0, 0), (5, 0), (6, 1), (10, 1), (11, 0), (99, 0)])
def test_the_first_entry_lasts_one_call_longer_and_calls_beyond_the_end_read_it_again(call, index):
    assert entry_at([(5, "a"), (10, "b")], call) == index


# 2. Recordings


@pytest.mark.goldens
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_recorded_batches_are_numbered_as_recorded(row):
    texts, pieces = split_prompts(row["prompts"])
    assert texts == row["output"]["flat"]
    assert [[list(piece) for piece in prompt] for prompt in pieces] == row["output"]["indexes"]


# 3. Properties


@given(st.lists(st.tuples(st.text("ab ,()"), st.floats(-5, 5).map(lambda x: round(x, 3))), min_size=1))
def test_written_pieces_are_read_back(pieces):
    text = " AND ".join(f"x{text}x:{weight:f}" for text, weight in pieces)
    read = split_and(text)
    assert [(piece.lstrip(), weight) for piece, weight in read] == [(f"x{t}x", float(f"{w:f}")) for t, w in pieces]


@given(st.lists(st.sampled_from(["a", "b AND a", "a AND c:2", "c"]), max_size=6))
def test_numbers_lead_back_to_the_texts(prompts):
    texts, pieces = split_prompts(prompts)
    assert len(set(texts)) == len(texts)
    assert [[(texts[i], w) for i, w in prompt] for prompt in pieces] == [split_and(prompt) for prompt in prompts]
