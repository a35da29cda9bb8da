"""Weights of a prompt's pieces."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import recorded_rows
from webui_diffusers.pipelines.prompt.attention import parse_attention


ROWS = recorded_rows("prompt/attention.jsonl", at_least=456)

# 1. Table


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [("", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("((b:1.3))", [("b", 1.0 * 1.3 * 1.1)]),
        ("[b]", [("b", 1 / 1.1)]),
        ("[x:1.3]", [("x:1.3", 1 / 1.1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
        ("a\\b", [("ab", 1.0)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("BREAK BREAK", [("", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("", 1.0)]),
        ("BREAKFAST break", [("BREAKFAST break", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
        ("a (b", [("a ", 1.0), ("b", 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("(a[b)c]", [("a", 1.1), ("b", 1.1 * (1 / 1.1)), ("c", 1 / 1.1)]),
        ("(a:1,2)", [("a:1,2", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("(a: +.5 )", [("a", 0.5)]),
        ("(a:-1)", [("a", -1.0)]),
        ("(a:１.５)", [("a", 1.5)]),
        ("（a：1.2）", [("（a：1.2）", 1.0)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
        (
            "a (((house:1.3)) [on] b",
            [("a ", 1.0), ("house", 1.0 * 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" b", 1.1)],
        ),
    ],
)
def test_a_prompt_is_read_as_the_table_says(text, expected):
    assert parse_attention(text) == expected


# 2. Recordings


@pytest.mark.goldens
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_recorded_prompts_have_exactly_the_recorded_weights(row):
    if "error" in row:
        with pytest.raises(ValueError):
            parse_attention(row["prompt"])
    else:
        assert [list(entry) for entry in parse_attention(row["prompt"])] == row["output"]


# 3. Properties

prompts = st.lists(st.sampled_from(list("ab ,()[]:\\1.\n") + ["BREAK", ":1.2)", "é"]), max_size=40).map("".join)


@given(st.text(st.characters(exclude_characters="()[]\\:")).filter(lambda text: "BREAK" not in text))
def test_text_without_signs_stays_whole(text):
    assert parse_attention(text) == [(text, 1.0)]


@given(prompts)
def test_neighbours_have_different_weights_and_only_signs_are_lost(text):
    try:
        entries = parse_attention(text)
    except ValueError:
        return
    weights = [weight for _, weight in entries]
    assert all(one != other for one, other in zip(weights, weights[1:]))
    lost = "()[]\\:.1 \n2"
    left = "".join(fragment for fragment, _ in entries)
    assert [c for c in left if c not in lost] == [c for c in text if c not in lost]


@given(st.text(st.characters(exclude_characters="()[]\\:"), min_size=1), st.floats(-9, 9).map(lambda x: round(x, 3)))
def test_a_weight_round_trips_through_its_brackets(word, weight):
    if "BREAK" not in word:
        assert parse_attention(f"({word}:{weight:f})") == [(word, float(f"{weight:f}"))]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000 + "a" + ")" * 10_000,
        "(a" * 10_000 + ":1.01)" * 10_000,
        "[a" * 10_000,
        "tree, " * 10_000,
        "(a:1.1) " * 10_000,
        "a" + " " * 100_000 + "b",
        ": " * 20_000 + "1.2)",
    ],
    ids=["deep", "deep weights", "open", "long", "many", "blanks", "colons"],
)
def test_long_and_deep_prompts_take_no_time(text):
    start = time.perf_counter()
    assert parse_attention(text)
    assert time.perf_counter() - start < 5  # quadratic work in Python would take a minute


# 4. Errors


@pytest.mark.parametrize("number", [".", "..", "1.2.3", "1..2", "+."])
def test_a_weight_that_is_no_number_is_named_with_its_place(number):
    with pytest.raises(ValueError, match="at character 8 of the prompt") as error:
        parse_attention(f"cat (b:{number})")
    assert f"`{number}`" in str(error.value) and "(word:1.2)" in str(error.value)


def test_brackets_left_open_multiply_one_after_the_other_however_many():
    """Weight by weight, as rounded products of 1.1; what is beyond a float64 is infinite, or its least."""
    for sign, factor in (("(", 1.1), ("[", 1 / 1.1)):
        found = iter(parse_attention(f"{sign}a" * 20_000))
        weight, last = 1.0, None
        for _ in range(20_000):
            weight *= factor
            last = last if weight == last else next(found)[1]  # equal neighbours are one
            assert last == weight


def test_brackets_left_open_multiply_each_of_many_different_weights():
    text = "".join(f"(w{i}:{1 + i / 100}) ((" for i in range(100))
    weights = [weight for fragment, weight in parse_attention(text) if fragment.startswith("w")]
    for i, found in enumerate(weights):
        expected = 1.0 * (1 + i / 100)
        for _ in range(2 * i):
            expected *= 1.1
        assert found == expected
