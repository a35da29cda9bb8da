"""Comments in prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import recorded_rows
from webui_diffusers.pipelines.prompt.comments import strip_comments


ROWS = recorded_rows("prompt/comments.jsonl", at_least=18)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cat # tail\ndog", "cat \ndog"),
        ("color #ff0000", "color \n"),
        ("a\n# line\nb", "a\nb"),
        ("a\n#b\n#c\nd", "a\n\nd"),
    ],
)
def test_comments_become_a_line_break(text, expected):
    assert strip_comments(text) == expected


@pytest.mark.goldens
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_recorded_prompts_lose_exactly_the_recorded_comments(row):
    assert strip_comments(row["prompt"]) == row["output"]


@given(st.text(st.characters(exclude_characters="#")))
def test_text_without_the_sign_stays(text):
    assert strip_comments(text) == text


@given(st.text(st.sampled_from("a#\n ")))
def test_no_comment_is_left(text):
    assert "#" not in strip_comments(text)
