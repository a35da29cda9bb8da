"""Networks named in prompts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import recorded_rows
from webui_diffusers.loaders.lora.library import NetworkMention, network_mentions
from webui_diffusers.pipelines.prompt.network_tags import (
    NetworkTag,
    split_batch_tags,
    split_network_tags,
)


ROWS = recorded_rows("prompt/extra_networks.jsonl", at_least=20)

# 1. Table


@pytest.mark.parametrize(
    "text, rest, use",
    [
        ("<lora:a>", "", NetworkMention("a", 1.0, 1.0)),
        ("x <lora:a:0.8>, y", "x , y", NetworkMention("a", 0.8, 0.8)),
        ("<lora:a:0.5:0.7>", "", NetworkMention("a", 0.5, 0.7)),
        ("<lora:a:te=0.5:unet=0.7>", "", NetworkMention("a", 0.5, 0.7)),
        ("<lora:a:te=0.2>", "", NetworkMention("a", 0.2, 0.2)),
        ("<lora:a:0.5:unet=0.2>", "", NetworkMention("a", 0.5, 0.2)),
        ("<lora:a:unet=0.2>", "", NetworkMention("a", 1.0, 0.2)),
        ("<lora:a:1:0.5:8:dyn=2>", "", NetworkMention("a", 1.0, 0.5, 2)),
        ("<lora:a:foo=3:0.9>", "", NetworkMention("a", 0.9, 0.9)),
        ("<lora:a: 1e-1 >", "", NetworkMention("a", 0.1, 0.1)),
        ("<lora:a:1:1:8:9:more>", "", NetworkMention("a", 1.0, 1.0, 8)),
        ("<lora::1>", "", NetworkMention("", 1.0, 1.0)),
        ("<lora:../../x>", "", NetworkMention("../../x")),
    ],
)
def test_a_tag_is_read_as_the_table_says(text, rest, use):
    cleaned, (tag,) = split_network_tags(text)
    assert (cleaned, network_mentions([tag])[0]) == (rest, use)


@pytest.mark.parametrize("text", ["< lora:a>", "<lora:>", "<:a:1>", "a < b > c", "<lora:a", ""])
def test_what_is_no_tag_stays_text(text):
    assert split_network_tags(text) == (text, [])


def test_a_part_with_two_equal_signs_is_positional():
    assert split_network_tags("<lora:a:b=c=d>")[1] == [NetworkTag("lora", ("a", "b=c=d"), {})]


def test_only_the_first_prompt_of_a_batch_names_networks():
    assert split_batch_tags(["a<lora:x>", "b<lora:y>"]) == (["a", "b"], [NetworkTag("lora", ("x",), {})])
    assert split_batch_tags([]) == ([], [])


# 2. Recordings


@pytest.mark.goldens
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_recorded_prompts_lose_exactly_the_recorded_tags(row):
    texts, tags = split_batch_tags(row.get("prompts") or [row["prompt"]])
    assert texts == (row.get("outputs") or [row["output"]])
    read: dict[str, list] = {}
    for tag in tags:
        read.setdefault(tag.kind, []).append({"positional": list(tag.positional), "named": tag.named})
    recorded = {
        kind: [{key: use[key] for key in ("positional", "named")} for use in uses]
        for kind, uses in row["networks"].items()
    }
    assert read == recorded


# 3. Properties


@given(st.lists(st.tuples(st.text("ab ,"), st.text("xy._-", min_size=1), st.floats(-2, 2))))
def test_tags_come_out_and_the_rest_stays(pieces):
    text = "".join(f"{before}<lora:{name}:{scale}>" for before, name, scale in pieces)
    cleaned, tags = split_network_tags(text)
    assert cleaned == "".join(before for before, _, _ in pieces)
    assert [network_mentions([tag])[0] for tag in tags] == [
        NetworkMention(name, scale, scale) for _, name, scale in pieces
    ]


def test_many_unclosed_tags_take_no_time():
    start = time.perf_counter()
    assert split_network_tags("<a:" * 100_000)[1] == []
    assert time.perf_counter() - start < 5


# 4. Errors


@pytest.mark.parametrize(
    "text, words",
    [
        ("<lora:a:x>", ["`x`", "<lora:a:x", "`te`", "0.8"]),
        ("<lora:a:>", ["``", "`te`"]),
        ("<lora:a:unet=high>", ["`high`", "`unet`"]),
        ("<lora:a:dyn=2.5>", ["`2.5`", "`dyn`", "whole number"]),
        ("<lora:te=1>", ["no name"]),
    ],
)
def test_a_bad_strength_is_named_with_its_tag(text, words):
    with pytest.raises(ValueError) as error:
        network_mentions(split_network_tags(text)[1][:1])
    assert all(word in str(error.value) for word in words)
