"""Prompt -> conditioning against recordings of the webui, and against diffusers' own encoding of plain prompts."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from recordings import GOLDEN, recorded_rows
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from webui_diffusers.loaders.textual_inversion import read_embedding_folder
from webui_diffusers.pipelines.prompt.clip_tokenizer import FragmentTokenizer
from webui_diffusers.pipelines.prompt.encode import PromptEncoder
from webui_diffusers.pipelines.prompt.text_encoder import ClipEncoder, PromptSettings


PROMPTS = GOLDEN / "prompt"


def rows(**tables: int) -> list:
    """The rows of the tables of encodings, which have so many."""
    return [
        pytest.param(name, row, id=f"{name}-{row['id']}")
        for name, count in tables.items()
        for row in recorded_rows(f"prompt/{name}.jsonl", count)
    ]


# Encoders of full width, too large to be kept with the tests.
RECIPES = rows(embeddings_recipe=66) if (PROMPTS / "embeddings_recipe.jsonl").exists() else []


def recipe_model(name: str) -> torch.nn.Module:
    """A text encoder whose every weight is made from its own name (the recipe in recipes.json)."""
    recipe = json.loads((PROMPTS / "recipes.json").read_text())[name]
    seed, kind = recipe.pop("seed"), recipe.pop("cls")
    config = CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, eos_token_id=49407, **recipe)
    model = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}[kind](config)
    for key, weight in model.named_parameters():
        full = key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"
        rng = np.random.RandomState(zlib.crc32(full.encode()) ^ seed)
        n = rng.standard_normal(tuple(weight.shape))
        if "layer_norm" in full:
            n = 1 + 0.3 * n if full.endswith("weight") else 0.2 * n
        elif "token_embedding" in full or "position_embedding" in full:
            n = (0.3 if "token" in full else 0.1) * n
        else:
            n = 0.1 * n if full.endswith("bias") else n / np.sqrt(n.shape[-1])
        weight.data = torch.from_numpy(n.astype(np.float32))
    return model.eval()


@pytest.fixture(scope="module")
def encoders(tiny_sd: Path) -> dict[str, list[ClipEncoder]]:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    plain, open_clip = FragmentTokenizer(tokenizer), FragmentTokenizer(tokenizer, open_clip=True)
    tiny = CLIPTextModel.from_pretrained(tiny_sd / "text_encoder", dtype=torch.float32)
    sd2 = recipe_model("recipe-sd2")
    getattr(sd2, "text_model", sd2).encoder.layers = getattr(sd2, "text_model", sd2).encoder.layers[:-1]
    return {
        "tiny-sd": [ClipEncoder(plain, tiny, "clip_l", "normed")],
        "recipe-sd1": [ClipEncoder(plain, recipe_model("recipe-sd1"), "clip_l", "normed")],
        "sd2": [ClipEncoder(open_clip, sd2, "clip_l", "last")],
        "sdxl": [
            ClipEncoder(plain, recipe_model("recipe-sdxl-l"), "clip_l", "clip_l"),
            ClipEncoder(open_clip, recipe_model("recipe-sdxl-g"), "clip_g", "penultimate"),
        ],
    }


def encoder_for(encoders: dict[str, list[ClipEncoder]], row: dict) -> PromptEncoder:
    kind = row["kind"].split("-")[0]
    chosen = encoders[kind if kind in ("sdxl", "sd2") else row["model"]]
    embeddings = {}
    if row.get("textual_inversions"):
        width = [e.width for e in chosen]
        loaded, _ = read_embedding_folder(PROMPTS / "ti", width)
        parts = [e.part for e in chosen]
        embeddings = {name: dict(zip(parts, found.for_encoders(width))) for name, found in loaded.items()}
    return PromptEncoder(chosen, embeddings=embeddings)


def settings_of(row: dict) -> PromptSettings:
    return PromptSettings(
        emphasis=row.get("emphasis", "Original"),
        comma_padding_backtrack=row.get("comma_padding_backtrack", 20),
        CLIP_stop_at_last_layers=row.get("clip_skip", 1),
        sdxl_clip_l_skip=row.get("sdxl_clip_l_skip", False),
        use_old_scheduling=row.get("use_old_scheduling", False),
        enable_prompt_comments=False,
    )


@pytest.mark.goldens
@pytest.mark.parametrize("name, row", rows(embeddings_tiny=22, embeddings_sdxl_sd2=19, pad_conds=3) + RECIPES)
def test_embeddings_are_the_webuis(encoders, name: str, row: dict):
    expected = load_file(PROMPTS / f"{name}.safetensors")
    tolerance = max(5e-5, 4 * row["other_stack_max_abs_diff"])
    encoder, settings = encoder_for(encoders, row), settings_of(row)

    def close(actual: torch.Tensor, key: str) -> None:
        torch.testing.assert_close(actual, expected[key], atol=tolerance, rtol=0)

    if row["kind"] in ("encode", "sd2", "sdxl"):
        encoded = encoder.encode([row["texts"]], settings)[0]
        embeds = torch.stack([e.embeds for e in encoded])
        if row["kind"] == "sdxl":
            if row["is_negative_prompt"] and not any(row["texts"]):
                embeds = embeds * 0
            close(embeds, row["crossattn"])
            pooled = torch.stack([e.pooled for e in encoded])
            pooled = pooled * 0 if row["is_negative_prompt"] and not any(row["texts"]) else pooled
            torch.testing.assert_close(pooled, expected[row["vector"]][:, : pooled.shape[1]], atol=tolerance, rtol=0)
        else:
            close(embeds, row["tensor"])
    elif row["kind"] == "schedule":
        for prompt, schedule in zip(row["prompts"], row["schedules"], strict=True):
            conditioning = encoder.conditioning(
                [""], [prompt], row["steps"], hires_steps=row["hires_steps"], settings=settings
            )
            timed = conditioning.negative[0]
            assert [entry.until for entry in timed] == [entry["end_at_step"] for entry in schedule]
            for entry, golden_entry in zip(timed, schedule, strict=True):
                close(entry.embeds, golden_entry["tensor"])


def test_a_plain_prompt_is_encoded_as_diffusers_does(tiny_sd: Path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float32, safety_checker=None)
    expected, negative = pipe.encode_prompt("a red circle", "cpu", 1, True, "blurry")
    ours = PromptEncoder.from_pipe(pipe)("a red circle", "blurry")
    assert torch.equal(ours["prompt_embeds"], expected)
    assert torch.equal(ours["negative_prompt_embeds"], negative)


@pytest.fixture()
def own_encoder(tiny_sd: Path):
    """A text encoder that a test may write to, with an encoder of prompts around it."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    return pipe.text_encoder, PromptEncoder.from_pipe(pipe)


def _runs(model) -> list[int]:
    """Fills with the rows of each run of `model`."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def test_a_call_that_writes_through_data_is_seen_by_the_next(own_encoder):
    model, encode = own_encoder
    [encode("a fox") for _ in range(2)]
    before = encode("a fox")["prompt_embeds"]
    model.get_input_embeddings().weight.data[320] += 1.0  # the token of "a"
    after = encode("a fox")["prompt_embeds"]
    assert not torch.equal(before, after)
    assert torch.equal(after, encode("a fox")["prompt_embeds"])


def test_a_write_between_two_passes_of_a_call_is_seen(own_encoder):
    model, encode = own_encoder
    first = [encode.conditioning(["a fox"], [""], 10).positive[0][0].schedule[0].embeds for _ in range(3)]
    with torch.no_grad():
        model.get_input_embeddings().weight[320] += 1.0
    second = encode.conditioning(["a fox"], [""], 10).positive[0][0].schedule[0].embeds
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], second)


def test_rows_are_remembered_from_the_second_call_on(own_encoder):
    model, encode = own_encoder
    runs = _runs(model)
    for _ in range(4):
        encode("a fox", "snow")
    assert runs == [2, 2]
