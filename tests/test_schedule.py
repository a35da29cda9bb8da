"""Prompt editing and alternation."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import recorded_rows
from webui_diffusers.pipelines.prompt.schedule import parse_schedule


ROWS = recorded_rows("prompt/schedules.jsonl", at_least=1280)

# 1. Table


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [(10, "")]),
        ("a cat", [(10, "a cat")]),
        ("[cat:dog:0.5]", [(5, "cat"), (10, "dog")]),
        ("[cat:dog:3]", [(3, "cat"), (10, "dog")]),
        ("[dog:3]", [(3, ""), (10, "dog")]),
        ("[cat::3]", [(3, "cat"), (10, "")]),
        ("[cat:dog: 3 ]", [(3, "cat"), (10, "dog")]),
        ("[a [b:4]:c:6]", [(4, "a "), (6, "a b"), (10, "c")]),
        ("(x:1.2) [y]", [(10, "(x:1.2) [y]")]),
        ("([a:b:5]:1.2)", [(5, "(a:1.2)"), (10, "(b:1.2)")]),
        (r"\[cat:dog:3\]", [(10, r"\[cat:dog:3\]")]),
        ("[cat", [(10, "[cat")]),
        ("([a:b:5]", [(5, "(a"), (10, "(b")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:c:5]", [(10, "[a:b:c:5]")]),
        ("cat|dog [a:b:3]", [(10, "cat|dog [a:b:3]")]),
        ("{cat|dog} [a:b:3]", [(10, "{cat|dog} [a:b:3]")]),
        ("(cat|dog) [a:b:3]", [(10, "(cat|dog) [a:b:3]")]),
        ("[a:b:3] \\", [(10, "[a:b:3] \\")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-2]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1e1]", [(10, "a")]),
        ("[a:b:1e-1]", [(10, "b")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("[a:b:2.9]", [(10, "a")]),
        ("[[a:b:4]:c:2]", [(2, "a"), (4, "c"), (10, "c")]),
    ],
)
def test_ten_steps_read_what_the_table_says(text, expected):
    assert parse_schedule(text, 10) == expected


def test_alternation_changes_at_every_step_and_a_blank_part_is_nothing():
    assert parse_schedule("[a|b|]", 4) == [(1, "a"), (2, "b"), (3, ""), (4, "a")]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[a:b:1.5]", [(5, "a"), (10, "b")]),
        ("[a:b:25]", [(5, "a"), (10, "b")]),
        ("[a:b:0.5]", [(10, "b")]),
        ("[a:b:12]", [(10, "b")]),
    ],
)
def test_in_the_hires_pass_numbers_count_on(text, expected):
    assert parse_schedule(text, 20, hires_steps=10) == expected


def test_old_timelines_use_the_first_pass_in_both_passes():
    old = parse_schedule("[a:b:0.5] [c:d:1.5]", 20, legacy=True)
    assert old == [(1, "a c"), (10, "a d"), (20, "b d")]
    assert parse_schedule("[a:b:0.5] [c:d:1.5]", 20, hires_steps=7, legacy=True) == old


# 2. Recordings


@pytest.mark.goldens
def test_recorded_prompts_have_exactly_the_recorded_schedules():
    wrong = []
    for row in ROWS:
        read = parse_schedule(row["prompt"], row["steps"], row["hires_steps"], row["use_old_scheduling"])
        possible = [other["output"] for other in row["outputs"]] if "outputs" in row else [row["output"]]
        if [list(entry) for entry in read] not in possible:
            wrong.append((row["prompt"], read, possible))
    assert ROWS and not wrong


# 3. Properties

prompts = st.lists(st.sampled_from(list("ab ()[]:|\\3.\n") + ["[a:b:", "3]", "[a|b]", "0.5"]), max_size=30).map(
    "".join
)


@given(st.text(st.characters(exclude_characters="()[]:|\\")), st.integers(1, 150))
def test_text_without_signs_is_one_entry(text, steps):
    assert parse_schedule(text, steps) == [(steps, text)]


@given(prompts, st.integers(1, 30), st.none() | st.integers(1, 30), st.booleans())
def test_steps_rise_and_end_with_the_last(text, steps, hires_steps, legacy):
    ends = [end for end, _ in parse_schedule(text, steps, hires_steps, legacy)]
    last = steps if legacy or hires_steps is None else hires_steps
    assert ends == sorted(set(ends)) and ends[0] >= 1 and ends[-1] == last


@given(st.text("ab ,"), st.text("cd ,"), st.integers(1, 29))
def test_an_edit_reads_the_first_half_through_its_step(before, after, when):
    assert parse_schedule(f"x [{before}:{after}:{when}] y", 30) == [
        (when, f"x {before} y"),
        (30, f"x {after} y"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5_000,
        "([" * 5_000,
        "[" * 5_000 + "]" * 4_999,
        "[" * 5_000 + "a:3]" * 5_000,
        "[a|" * 5_000 + "]" * 5_000,
        "[a:b:c:d:3]" * 5_000,
        "(a:b:c" * 5_000 + ")" * 5_000,
        "\\[" * 50_000,
    ],
    ids=["open", "mixed", "one too few", "edits", "alternations", "no edits", "no groups", "escapes"],
)
def test_long_and_deep_prompts_take_no_time(text):
    start = time.perf_counter()
    assert parse_schedule(text, 30)
    assert time.perf_counter() - start < 5


# 4. Errors


@pytest.mark.parametrize("steps, hires_steps, name", [(0, None, "`steps`"), (20, 0, "`hires_steps`")])
def test_no_steps_are_refused_by_name(steps, hires_steps, name):
    with pytest.raises(ValueError, match=name):
        parse_schedule("a", steps, hires_steps)
