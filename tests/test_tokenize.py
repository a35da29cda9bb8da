"""Text to CLIP token ids."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer
from webui_diffusers.pipelines.prompt.clip_tokenizer import FragmentTokenizer, fragment_tokenizer


@pytest.fixture(scope="module")
def transformers_clip(tiny_sd: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")


@pytest.fixture(scope="module")
def clip(transformers_clip: CLIPTokenizer) -> FragmentTokenizer:
    return FragmentTokenizer(transformers_clip)


@pytest.fixture(scope="module")
def open_clip(tiny_sd: Path) -> FragmentTokenizer:
    """Over a tokenizer whose padding is "!", as it comes with SDXL's second encoder."""
    return FragmentTokenizer(CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer", pad_token="!"), open_clip=True)


# 1. Table. Ids of OpenAI's slow tokenizer with ftfy (transformers 4.57.6), and of open_clip 2.20.

BOTH = [
    ("", []),
    ("a cat", [320, 2368]),
    ("  A\n\t CAT\u3000", [320, 2368]),
    ("cat，dog", [2368, 267, 1929]),
    (",,", [8844]),
    ("ﬁre", [1769]),
    ("“q”", [257, 336, 257]),
    ("1girl 2024", [272, 1611, 273, 271, 273, 275]),
    ("dog's", [1929, 568]),
    ("''s", [8445, 338]),
    ("mÃ©", [76, 4166]),
    ("日本語", [39121, 44353, 34002, 508]),
    ("😀", [7334]),
    ("²½Ⅷ", [41175, 33613, 158, 227, 371]),
    ("!!! !", [995, 256]),
]


@pytest.mark.parametrize("text, ids", BOTH)
def test_both_tokenizers_cut_as_the_table_says(clip, open_clip, text, ids):
    assert clip(text) == ids
    assert open_clip(text) == ids


@pytest.mark.parametrize(
    "text, clip_ids, open_clip_ids",
    [
        ("<&amp;", [27, 261, 6259, 282], [27, 261]),
        ("<|endoftext|>", [49407], [27, 347, 40786, 4160, 91, 285]),
        ("a<|endoftext|>b", [320, 49407, 321], [320, 27, 347, 40786, 4160, 91, 285, 321]),
        ("<end_of_text>", [283, 806, 318, 539, 318, 4160, 285], [49407]),
    ],
)
def test_html_and_special_words_are_the_difference(clip, open_clip, text, clip_ids, open_clip_ids):
    assert clip(text) == clip_ids
    assert open_clip(text) == open_clip_ids


def test_ids_around_a_fragment_are_told(clip, open_clip):
    assert (clip.start, clip.end, clip.pad, clip.comma) == (49406, 49407, 49407, 267)
    assert (open_clip.start, open_clip.end, open_clip.pad, open_clip.comma) == (49406, 49407, 0, 267)


def test_long_text_is_neither_cut_nor_warned_about(clip, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(clip("a cat, " * 4_000)) == 12_000
    assert not caplog.records


def test_words_added_to_the_vocabulary_stay_whole(tiny_sd):
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    tokenizer.add_tokens(["<toy>", "<toy>_1"])
    read = FragmentTokenizer(tokenizer)
    assert read("a <toy> <toy>_1 cat") == [320, 49408, 49409, 2368]


# 2. Parity and properties


@given(st.text("abc XYZ ,.!-_019", max_size=40))
@settings(deadline=None)
def test_plain_text_is_cut_as_transformers_does(clip, transformers_clip, text):
    # ' is left out: today's tokenizers cut around it otherwise than the webui's
    other = transformers_clip(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    assert clip(text) == other


@given(st.text(max_size=30))
@settings(deadline=None)
def test_every_text_has_ids_of_the_vocabulary(clip, open_clip, text):
    for tokenize in (clip, open_clip):
        assert all(0 <= id_ < 49408 for id_ in tokenize(text))


@given(st.lists(st.text("abcDEF,.!", min_size=1), min_size=1), st.text(" \t\n\u00a0\u3000", min_size=1))
@settings(deadline=None)
def test_blanks_and_case_do_not_matter(clip, words, blank):
    assert clip(blank.join(words).upper()) == clip(" ".join(words).lower())


# 3. Errors


def test_a_tokenizer_of_another_kind_is_refused():
    class Characters:
        bos_token_id = None
        eos_token_id = 1

        def get_vocab(self):
            return {}

    with pytest.raises(ValueError, match="Characters has no bos_token, so it is no CLIP tokenizer"):
        FragmentTokenizer(Characters())


def test_a_tokenizer_is_read_once_until_words_are_added(tiny_sd: Path):
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    first = fragment_tokenizer(tokenizer, open_clip=False)
    assert fragment_tokenizer(tokenizer, open_clip=False) is first
    assert fragment_tokenizer(tokenizer, open_clip=True) is not first
    tokenizer.add_tokens("<shiny>")
    again = fragment_tokenizer(tokenizer, open_clip=False)
    assert len(first("<shiny>")) > 1 and len(again("<shiny>")) == 1
