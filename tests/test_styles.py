"""Styles files: reading, merging, finding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import GOLDEN, recorded_rows
from webui_diffusers.pipelines.infotext.styles import PromptStyle, apply_styles, extract_styles, read_styles


ROWS = recorded_rows("prompt/styles.jsonl", at_least=72)

# 1. Table


@pytest.mark.parametrize(
    "style, prompt, expected",
    [
        ("film grain", "a cat", "a cat, film grain"),
        (" film grain ", " a cat ", "a cat, film grain"),
        ("photo of {prompt}, 8k", " a cat ", "photo of  a cat , 8k"),
        ("{prompt} and {prompt}", "a", "a and a"),
        ("", " a cat ", "a cat"),
        ("film", "", "film"),
    ],
)
def test_a_style_is_merged_as_the_table_says(style, prompt, expected):
    styles = {"s": PromptStyle("s", style, style)}
    assert apply_styles(prompt, prompt, ["s"], styles) == (expected, expected)


def test_an_unknown_style_only_strips():
    assert apply_styles(" a ", " b ", ["nope"], {}) == ("a", "b")
    assert apply_styles(" a ", " b ", [], {}) == (" a ", " b ")


def test_both_file_formats_are_read(tmp_path):
    new, old = tmp_path / "new.csv", tmp_path / "old.csv"
    new.write_bytes('\ufeffname,prompt,negative_prompt\nA, "x, {prompt}", bad\n#c,x,y\nshort,only\n'.encode())
    old.write_text('name,text\nA,"x, {prompt}"\n')
    assert read_styles(new) == {"A": PromptStyle("A", "x, {prompt}", "bad"), "short": PromptStyle("short", "only")}
    assert read_styles(old) == {"A": PromptStyle("A", "x, {prompt}")}


def test_an_empty_file_has_no_styles(tmp_path):
    (tmp_path / "none.csv").write_text("name,prompt,negative_prompt\n")
    assert read_styles(tmp_path / "none.csv") == {}


# 2. Recordings


@pytest.mark.goldens
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_recorded_styles_are_merged_and_found_as_recorded(row):
    styles = read_styles(GOLDEN / "prompt" / row.get("file", "styles.csv"))
    if row["op"] == "apply":
        read = apply_styles(row["prompt"], row["negative_prompt"], row["styles"], styles)
        assert read == (row["out_prompt"], row["out_negative_prompt"])
    else:
        read = extract_styles(row["prompt"], row["negative_prompt"], styles)
        assert read == (row["out_styles"], row["out_prompt"], row["out_negative_prompt"])


# 3. Properties

words = st.text("abc ", min_size=1).map(str.strip).filter(bool)


@given(words, words, st.lists(st.sampled_from(["one", "two", "three"]), unique=True))
def test_merged_styles_are_found_again(prompt, negative, names):
    styles = {
        "one": PromptStyle("one", "1x, {prompt}, 1y", "n1"),
        "two": PromptStyle("two", "2x", ""),
        "three": PromptStyle("three", "", "n3"),
    }
    merged = apply_styles(prompt, negative, names, styles)
    found, *cleaned = extract_styles(*merged, styles)
    assert sorted(found) == sorted(names)
    assert cleaned == [prompt, negative]


# 4. Errors


def test_a_table_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("title,words\na,b\n")
    with pytest.raises(ValueError, match="`list.csv` has the columns") as error:
        read_styles(path)
    assert "negative_prompt" in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ValueError, match="CSV in UTF-8"):
        read_styles(path)
