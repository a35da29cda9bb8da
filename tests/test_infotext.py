"""Parameters texts: reading and writing."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import GOLDEN, recorded_rows
from webui_diffusers.pipelines.infotext import (
    call_report,
    format_infotext,
    named_hashes,
    parse_infotext,
    quote_field,
    unquote_field,
)
from webui_diffusers.pipelines.infotext.sampler_names import (
    INFOTEXT_SAMPLERS,
    INFOTEXT_SCHEDULES,
    infotext_hires_choice,
    infotext_hires_sampler,
    infotext_sampler,
)
from webui_diffusers.pipelines.infotext.styles import PromptStyle
from webui_diffusers.pipelines.infotext.write import ENSD_SAMPLERS


FOLDER = GOLDEN / "prompt"
PARSE_ROWS = recorded_rows("prompt/infotext_parse.jsonl", at_least=124)
CREATE_ROWS = recorded_rows("prompt/infotext_create.jsonl", at_least=52)
QUOTE_ROWS = recorded_rows("prompt/infotext_quote.jsonl", at_least=29)
SAMPLER_NAMES_ROWS = recorded_rows("prompt/sampler_names.jsonl", at_least=59)


LINE = "Steps: 20, Sampler: Euler a, Seed: 1"

# 1. Table: reading


@pytest.mark.parametrize(
    "text, fields",
    [
        (f"a cat\n{LINE}", {"Prompt": "a cat", "Negative prompt": "", "Steps": "20", "Sampler": "Euler a"}),
        (f"a\nb\nNegative prompt: c\nd\n{LINE}", {"Prompt": "a\nb", "Negative prompt": "c\nd"}),
        (f"\n\n a \n\nb\n{LINE}", {"Prompt": "a\n\nb"}),
        (f"a\nNegative prompt: b\nNegative prompt: c\n{LINE}", {"Negative prompt": "b\nc"}),
        ("a cat", {"Prompt": "a cat"}),
        ("a cat\nSteps: 20, Seed: 1", {"Prompt": "a cat\nSteps: 20, Seed: 1"}),
        (f"{LINE}, Size: 512x768", {"Size-1": "512", "Size-2": "768", "Prompt": ""}),
        (f"{LINE}, Area: 512x, Dim: 1x2x3", {"Area": "512x", "Dim": "1x2x3"}),
        (f'{LINE}, Other: "a, b: \\"c\\"\\nd"', {"Other": 'a, b: "c"\nd'}),
        (f'{LINE}, Broken: "a, Foo: b', {"Broken": '"a', "Foo": "b"}),
        (f'{LINE}, Bad: "a\\qb"', {"Bad": '"a\\qb"'}),
        (f'{LINE}, Empty: "", Foo: b', {"Empty": "", "Foo": "b"}),
        (f"{LINE}, a: 1, bb: 2", {"bb": "2"}),
        (f"{LINE}, Foo/Bar-baz qux: 1", {"Foo/Bar-baz qux": "1"}),
        (f"{LINE}, Steps: 30", {"Steps": "30"}),
        (f"a\n{LINE}, Hypernet: ink, Hypernet strength: 0.6", {"Prompt": "a<hypernet:ink:0.6>"}),
        (f"a\n{LINE}, Hypernet: ink", {"Prompt": "a<hypernet:ink:1.0>"}),
        (f"{LINE}, Size: 1024x1024, First pass size: 0x0", {"Size-1": 512, "Hires resize-1": 1024}),
        (f"(a:1.2)\n{LINE}", {"Emphasis": "Original"}),
        (f"[a|b]\n{LINE}, Version: v1.5.2", {"Old prompt editing timelines": True, "Downcast alphas_cumprod": True}),
        (f"{LINE}, Sampler: DDIM, Version: v1.5.0", {"Pad conds v0": True}),
        (f"{LINE}, Refiner: x, Version: 1.8.0-RC", {"Refiner switch by sampling steps": True}),
    ],
)
def test_a_text_is_read_as_the_table_says(text, fields):
    read = parse_infotext(text)
    assert {label: read.get(label) for label in fields} == fields


@pytest.mark.parametrize(
    "text, absent",
    [
        (f"{LINE}, Empty: , Foo: b", "Empty"),
        (f"{LINE}, a: 1", "a"),
        (f"plain BREAK words\n{LINE}", "Emphasis"),
        (f"(one:1.0)\n{LINE}", "Emphasis"),
        (f"[a|b]\n{LINE}, Version: v1.6.0", "Old prompt editing timelines"),
        (f"{LINE}, Version: v1.7.0-225-gaaaa", "Downcast alphas_cumprod"),
        (f"{LINE}, Version: f0.0.17v1.8.0rc-latest-276-g29be1da7", "Downcast alphas_cumprod"),
    ],
)
def test_what_is_no_field_is_not_read(text, absent):
    assert absent not in parse_infotext(text)


def test_options_change_the_reading():
    text = f"[a|b]\n{LINE}, Size: 512x512, Hires resize: 768x1024, Version: v1.5.2"
    read = parse_infotext(text, options={"auto_backcompat": False, "infotext_skip_pasting": ["Seed"]})
    assert "Downcast alphas_cumprod" not in read and "Seed" not in read
    read = parse_infotext(text, options={"use_old_hires_fix_width_height": True})
    assert (read["Size-1"], read["Size-2"]) == (768, 1024)


def test_styles_are_taken_out_of_both_passes():
    styles = {"film": PromptStyle("film", "film grain", "digital")}
    text = f"a, film grain\nNegative prompt: b, digital\n{LINE}, Hires prompt: " + '"c, film grain"'
    read = parse_infotext(text, styles=styles)
    assert read["Styles array"] == ["film"]
    assert [read[label] for label in ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")] == [
        "a",
        "b",
        "c",
        "",
    ]
    assert "Styles array" not in parse_infotext(text, styles=styles, options={"infotext_styles": "Ignore"})
    assert parse_infotext(text, styles=styles, options={"infotext_styles": "Discard"})["Prompt"] == "a"


# 2. Table: names and writing


@pytest.mark.parametrize(
    "sampler, schedule, meant",
    [
        ("Euler a", None, ("Euler a", "Automatic")),
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "Automatic")),
        ("LMS Karras", "Exponential", ("LMS", "Karras")),
        ("Euler sgm_uniform", None, ("Euler", "SGM Uniform")),
        ("Euler", "align_your_steps", ("Euler", "Align Your Steps")),
        ("k_euler", None, ("DPM++ 2M", "Automatic")),
        (None, None, ("DPM++ 2M", "Automatic")),
    ],
)
def test_names_mean_what_the_table_says(sampler, schedule, meant):
    assert infotext_sampler(sampler, schedule) == meant


def test_the_tables_of_names_are_those_of_sampling():
    sampling = pytest.importorskip("webui_diffusers.pipelines.sampling")
    defaults = {label: row.schedule for label, row in sampling.SAMPLERS.items() if row.recorded}
    assert defaults == INFOTEXT_SAMPLERS
    assert [label for label in INFOTEXT_SCHEDULES if label != "Automatic"] == [
        label for label, row in sampling.SCHEDULES.items() if row.recorded
    ]
    assert {label for label, row in sampling.SAMPLERS.items() if row.uses_ensd} == set(ENSD_SAMPLERS)


def test_a_list_gives_every_image_its_own_value():
    settings = {"seed": 5, "extra": {"Own": ["x", "y"]}, "version": None}
    assert [format_infotext({**settings, "index": i}) for i in (0, 1)] == ["Seed: 5, Own: x", "Seed: 6, Own: y"]


def test_a_variation_counts_on_by_its_own_seed():
    settings = {"seed": 5, "subseed": 9, "subseed_strength": 0.5, "index": 2, "version": None}
    assert format_infotext(settings) == "Seed: 5, Variation seed: 11, Variation seed strength: 0.5"


def test_hashes_of_a_field_are_told_by_name():
    assert named_hashes("a: 12, b c: 34") == {"a": "12", "b c": "34"}
    assert named_hashes("") == {}


# 3. Recordings


@pytest.mark.goldens
@pytest.mark.parametrize("row", PARSE_ROWS, ids=lambda row: row["text"][-20:])
def test_recorded_texts_have_exactly_the_recorded_fields(row):
    read = parse_infotext(row["text"], options=row["options"], styles=FOLDER / row["styles_csv"])
    assert list(read.items()) == list(row["output"].items())


@pytest.mark.goldens
@pytest.mark.parametrize("row", CREATE_ROWS, ids=lambda row: row["output"][-20:])
def test_recorded_settings_are_written_exactly_as_recorded(row):
    assert format_infotext(row["settings"]) == row["output"]
    plain = {name: value for name, value in row["settings"].items() if not name.startswith("opt_")}
    assert format_infotext(plain, options=row["options"]) == row["output"]


@pytest.mark.goldens
@pytest.mark.parametrize("row", QUOTE_ROWS, ids=lambda row: str(row["value"])[:20])
def test_recorded_values_are_quoted_exactly_as_recorded(row):
    if row["op"] == "unquote":
        assert unquote_field(row["value"]) == row["output"]
        return
    quoted = quote_field(row["value"])
    assert (quoted, type(quoted)) == (row["output"], type(row["output"]))
    assert unquote_field(str(quoted)) == row["unquoted_back"]


@pytest.mark.goldens
@pytest.mark.parametrize("row", SAMPLER_NAMES_ROWS, ids=lambda row: str(row["Sampler"]))
def test_recorded_names_mean_exactly_what_was_recorded(row):
    if row["op"] == "first pass":
        assert infotext_sampler(row["Sampler"], row["Schedule type"]) == (row["sampler"], row["scheduler"])
    else:
        assert infotext_hires_choice(row) == (row["hr_sampler"], row["hr_scheduler"])


# 4. Properties

keys = st.from_regex(r"[A-Za-z][A-Za-z0-9 /-]{0,10}[A-Za-z]", fullmatch=True)
values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text == text.strip() and not (text[0] == text[-1] == '"') and not text.replace("x", "").isdecimal()
)
line = st.text("abc ,()[]\\.", max_size=20).map(str.strip)
prompts = st.lists(line.filter(bool), max_size=3).map("\n".join)


@given(prompts, prompts, st.dictionaries(keys, values, min_size=3, max_size=6))
def test_written_fields_are_read_back(prompt, negative_prompt, extra):
    text = format_infotext({"prompt": prompt, "negative_prompt": negative_prompt, "extra": extra, "version": "x"})
    read = parse_infotext(text)
    assert (read["Prompt"], read["Negative prompt"]) == (prompt, negative_prompt)
    for label, value in extra.items():
        if label != value:  # a value like its label is written once and not read: as in the webui
            assert read[label] == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoting_comes_back(text):
    if not (len(text) > 1 and text[0] == text[-1] == '"' and not set(text) & set(",:\n")):
        assert unquote_field(str(quote_field(text))) == text


@given(st.text(max_size=200))
def test_any_text_is_readable(text):
    try:
        assert parse_infotext(text)["RNG"]
    except ValueError as error:
        assert "weight" in str(error)


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "a b " * 50_000, "a: " * 50_000, 'aa: "x, ' * 30_000, 'aa: "' + "\\" * 100_000, ":" * 100_000],
    ids=["word", "words", "colons", "quotes", "backslashes", "signs"],
)
def test_a_long_line_takes_no_time(text):
    start = time.perf_counter()
    parse_infotext(f"a\n{text}")
    assert time.perf_counter() - start < 5


def test_reading_and_writing_need_no_torch():
    code = "import sys, webui_diffusers.pipelines.infotext; print({'torch', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# 5. Errors


def test_a_bad_weight_is_named():
    with pytest.raises(ValueError, match="`1.2.3` at character 4"):
        parse_infotext(f"(a:1.2.3)\n{LINE}")


def test_unknown_options_are_refused_by_name():
    with pytest.raises(ValueError, match="`infotext_stiles` is no setting that reading"):
        parse_infotext("a", options={"infotext_stiles": "Apply"})
    with pytest.raises(ValueError, match="`randn` is no setting that writing"):
        format_infotext({}, options={"randn": "CPU"})


def test_an_empty_field_is_warned_about(caplog):
    parse_infotext(f"{LINE}, Foo: , Bar: 1")
    assert "'Foo' is empty" in caplog.text


def test_hires_names_fall_back_to_the_first_pass():
    fields = {"Sampler": "DPM++ 2M", "Schedule type": "Karras", "Hires sampler": "Euler"}
    assert infotext_hires_sampler(fields) == ("Euler", "Karras")
    assert call_report({"Prompt": "a"}) == []
