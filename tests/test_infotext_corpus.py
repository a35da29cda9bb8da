"""Made-up texts of all the kinds that people paste, and the call that each of them means."""

import json
import random
import time
from pathlib import Path

import pytest
from webui_diffusers.pipelines.infotext import call_arguments, call_report, parse_infotext, tidy_infotext
from webui_diffusers.pipelines.infotext.to_call import MOST_REPORT_LINES


# Each row: kind, text, the program that wrote it, the call or the refusal, and the beginnings of all that is told.
CORPUS = [json.loads(line) for line in (Path(__file__).parent / "infotexts.jsonl").open(encoding="utf-8")]
PROMPT, NEGATIVE = "a red kite, (sharp:1.2), 16:9 <lora:ink:0.5>", "blurry, low quality"
FIELDS = "Steps: 4, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 128x128, Version: v1.10.1"
CALL = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 4,
    "sampler": "Euler a",
    "schedule": "Automatic",
    "guidance_scale": 5.0,
    "seed": 7,
    "width": 128,
    "height": 128,
}
WHOLE = f"{PROMPT}\nNegative prompt: {NEGATIVE}\n{FIELDS}"

# 1. Table


def test_the_corpus_has_all_its_rows():
    assert len(CORPUS) >= 400 and len({row["text"] for row in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("row", CORPUS, ids=[f"{number}-{row['kind']}" for number, row in enumerate(CORPUS)])
def test_a_text_means_the_call_that_it_says(row: dict):
    text = tidy_infotext(row["text"])
    fields = parse_infotext(text)
    told = [*text.notes, *(line for line in call_report(fields) if line not in text.notes)]
    assert text.tool == row["tool"]
    assert [line[:48] for line in told] == row["told"]
    if "refused" in row:
        with pytest.raises(ValueError) as refusal:
            call_arguments(fields)
        assert str(refusal.value) == row["refused"]
    else:
        assert json.loads(json.dumps(call_arguments(fields))) == row["call"]


@pytest.mark.parametrize(
    "pasted",
    [
        WHOLE,
        f"parameters\n{WHOLE}",
        f"PNG Info\n\nparameters\n\n{WHOLE}",
        f"{WHOLE}\n\nTime taken: 5.9 sec.\nA: 3.11 GB, R: 3.72 GB, Sys: 4.7/15.8 GB (29.8%)",
        f"{WHOLE}\nTemplate: a {{red|blue}} kite\nNegative Template: blurry",
        f"{WHOLE}\n\nCopy",
        WHOLE.replace("\n", "\r\n"),
        WHOLE.replace("\n", " "),
        WHOLE.replace(", CFG", ",\nCFG"),
        WHOLE.replace(", CFG", ", CFG").replace("CFG scale", "CFG\nscale"),
        WHOLE.replace(", ", ",\n") if "," not in PROMPT else WHOLE.replace("Euler a, ", "Euler a,\n"),
        f"```\n{WHOLE}\n```",
        f"My settings:\n```text\n{WHOLE}\n```\nEnjoy.",
        "\n".join(f"> {line}" for line in WHOLE.split("\n")),
        WHOLE.replace("<", "&lt;").replace(">", "&gt;"),
        f"<div>{WHOLE}</div>".replace("\n", "<br>").replace("<lora:ink:0.5>", "&lt;lora:ink:0.5&gt;"),
        json.dumps(WHOLE),
        f"Prompt: {WHOLE}",
        WHOLE.replace("Negative prompt:", "NEGATIVE PROMPT:"),
        f"{PROMPT}\nNegative prompt: {NEGATIVE}\n" + FIELDS.replace(", ", "\n"),
        FIELDS.replace(", ", "\n") + f"\nPrompt: {PROMPT}\nNegative prompt: {NEGATIVE}",
        f"Generation data\nPrompt\n{PROMPT}\nNegative prompt\n{NEGATIVE}\nOther metadata\n"
        + FIELDS.replace(", ", "\n"),
        f"{PROMPT}\nNegative prompt: {NEGATIVE}\n" + FIELDS.replace(", ", " | "),
        f"{PROMPT}\nNegative prompt: {NEGATIVE}\n" + FIELDS.replace(", ", " "),
        WHOLE.replace("Steps", "\u200bSteps").replace(", Seed", ",\u00a0Seed"),
        json.dumps({"infotexts": [WHOLE], "images": []}),
    ],
)
def test_the_same_text_is_read_wherever_it_stands(pasted: str):
    text = tidy_infotext(pasted)
    assert call_arguments(parse_infotext(text)) == CALL
    assert str(text) == WHOLE.replace("\n", "\r\n" if pasted == WHOLE.replace("\n", "\r\n") else "\n")


# 2. Properties


def test_a_tidy_text_stays_as_it_is():
    for row in CORPUS:
        once = tidy_infotext(row["text"])
        assert parse_infotext(tidy_infotext(once)) == parse_infotext(once), row["text"]


def test_no_report_is_longer_than_nine_lines():
    fields = ", ".join(f"Field {number}: {number}, Lora hashes: x" for number in range(200))
    text = f"a\nSteps: 1, Sampler: nope, Seed: 1, {fields}, ADetailer model: a, Script: b, Model: c, RP Active: True"
    assert len(call_report(parse_infotext(text))) <= MOST_REPORT_LINES
    assert all(len(row["told"]) <= MOST_REPORT_LINES + 2 for row in CORPUS)


def mutated(text: str, dice: random.Random) -> str:
    signs = list(text)
    for _ in range(dice.randint(1, 12)):
        place = dice.randrange(len(signs) + 1)
        change = dice.randrange(4)
        if change == 0:
            signs[place:place] = dice.choice(
                ["{", "[", '"', "\\", ":", ",", "\n", "Steps: 5, ", "Negative prompt:", "\0", "9" * 400]
            )
        elif change == 1:
            del signs[place : place + dice.randint(1, 20)]
        elif change == 2:
            other = dice.randrange(len(signs) + 1)
            signs[place:place] = signs[other : other + 30]
        else:
            signs[place : place + 1] = chr(dice.randrange(1, 0x3000))
    return "".join(signs)


@pytest.mark.parametrize("count", [300, pytest.param(6_000, marks=pytest.mark.slow)])
def test_a_damaged_text_is_read_or_refused_in_words(count: int):
    dice = random.Random(count)
    for _ in range(count):
        text = mutated(dice.choice(CORPUS)["text"], dice)
        try:
            fields = parse_infotext(tidy_infotext(text))
            call_report(fields)
            call_arguments(fields)
        except ValueError as error:
            assert str(error), text


@pytest.mark.parametrize(
    "text",
    [
        "a\nSteps: 1, Sampler: a, Seed: 1" + ", x: [" * 20_000,
        "a\nSteps: 1, Sampler: a, Seed: 1\n" + "word, word\n" * 20_000,
        "Steps: 1, " * 20_000,
        "a" + " " * 100_000 + "\nSteps: 1, Sampler: a, Seed: 1" + " " * 100_000,
        "sampler " + " " * 100_000 + "\n" + "size" + "\u00a0" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "a\nNegative prompt: " * 10_000,
        "<" * 100_000 + "\nSteps: 1, Sampler: a, Seed: 1",
    ],
    ids=lambda text: text[:20],
)
def test_a_long_text_takes_time_by_its_length(text: str):
    start = time.process_time()
    try:
        call_report(parse_infotext(tidy_infotext(text)))
    except ValueError:
        pass
    assert time.process_time() - start < 5
