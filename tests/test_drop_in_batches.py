"""A picture by diffusers' arguments depends on nothing else in its batch; weighted and long prompts are diffusers'."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import pipeline_around, pipeline_with_copies
from webui_diffusers.pipelines import PromptEncoder, WebUIImg2ImgPipeline, WebUITxt2ImgPipeline


LONG = "a blue square, " * 30  # three chunks
CALL = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "np"}
STATIC = "a (red:1.3) circle, " + LONG


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sdxl-e2e"])
def pipe(request) -> WebUITxt2ImgPipeline:
    return pipeline_with_copies(WebUITxt2ImgPipeline, request.param)


@pytest.fixture
def xl() -> WebUITxt2ImgPipeline:
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e")


def stock_of(pipe: WebUITxt2ImgPipeline) -> DiffusionPipeline:
    kind = StableDiffusionXLPipeline if pipe.is_sdxl else StableDiffusionPipeline
    found = kind.from_pipe(pipe)
    found.set_progress_bar_config(disable=True)
    return found


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    "neighbour, negatives",
    [
        ("a blue square", ["dark", LONG]),
        (LONG, None),
        ("a blue square, " * 15, ["", ""]),  # two chunks, and three of the next one's negative prompt
        ("a blue square, " * 15, ["dark", LONG]),
        ("a (blue:1.3) BREAK square", ["dark", "x AND y"]),
        ("a [blue:green:0.5] square", None),
        ("a [blue:green:0.5] square", ["", LONG]),
        ("a blue square AND a green star:0.5", ["dark", ""]),
    ],
)
def test_a_prompt_draws_the_same_whatever_is_drawn_beside_it(pipe, neighbour, negatives):
    own = {} if negatives is None else {"negative_prompt": negatives[0]}
    all_of_them = {} if negatives is None else {"negative_prompt": negatives}
    expected = pipe("a red circle", generator=generators(1), **own, **CALL).images[0]
    both = pipe(["a red circle", neighbour], generator=generators(1, 2), **all_of_them, **CALL).images
    assert np.abs(both[0] - expected).max() < 1e-4
    assert np.abs(both[1] - expected).max() > 1e-2


@pytest.mark.parametrize("given", [{}, {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}])
def test_a_weighted_long_prompt_is_drawn_by_diffusers_from_its_encoding(pipe, given):
    encoded = PromptEncoder.from_pipe(pipe)(STATIC, LONG)
    expected = stock_of(pipe)(**encoded, generator=generators(1)[0], **CALL | given).images
    output = pipe(STATIC, negative_prompt=LONG, generator=generators(1)[0], **CALL | given)
    assert np.array_equal(output.images, expected)
    assert output.infotexts[0].startswith(f"{STATIC}\nNegative prompt: {LONG}\nSteps: 2, Sampler: ")


def test_an_argument_that_only_diffusers_reads_goes_with_a_weighted_prompt():
    pipe, image = pipeline_around(WebUIImg2ImgPipeline, "tiny-sdxl-e2e"), np.zeros((1, 64, 64, 3), np.float32)
    given = {"image": image, "denoising_start": 0.5, "aesthetic_score": 7.0, **CALL}
    stock = StableDiffusionXLImg2ImgPipeline(**pipe.components)
    expected = stock(**PromptEncoder.from_pipe(pipe)(STATIC, LONG), generator=generators(1)[0], **given).images
    drawn = pipe(STATIC, negative_prompt=LONG, generator=generators(1)[0], **given).images
    assert np.array_equal(drawn, expected)


def test_rows_are_padded_as_the_tokenizers_settings_say(xl):
    xl.tokenizer_2 = deepcopy(xl.tokenizer_2)
    xl.tokenizer_2.pad_token = xl.tokenizer_2.eos_token
    expected = stock_of(xl)("a red circle", generator=generators(1), **CALL).images[0]
    for neighbour in (LONG, "a [blue:green:0.5] square"):
        both = xl(["a red circle", neighbour], generator=generators(1, 2), **CALL).images
        assert np.abs(both[0] - expected).max() < 1e-4


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_skip_means_what_it_means_in_diffusers_for_every_prompt_of_a_batch(xl, clip_skip):
    given = {"clip_skip": clip_skip, "negative_prompt": "dark", **CALL}
    expected = stock_of(xl)("a red circle", generator=generators(1), **given).images[0]
    given["negative_prompt"] = ["dark", "dark"]
    for neighbour in (LONG, "a [blue:green:0.5] square"):
        both = xl(["a red circle", neighbour], generator=generators(1, 2), **given).images
        assert np.abs(both[0] - expected).max() < 1e-4


def test_a_scale_holds_for_the_adapters_of_sdxls_text_encoders(xl):
    stock = stock_of(xl)
    for model in (xl.text_encoder, xl.text_encoder_2):
        inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False), model)
    pictures = []
    for scale in (1.0, 0.25):
        given = {"cross_attention_kwargs": {"scale": scale}, **CALL}
        expected = stock("a red circle", generator=generators(1), **given).images
        assert np.array_equal(xl("a red circle", generator=generators(1), **given).images, expected)
        beside = xl(["a red circle", LONG], generator=generators(1, 2), **given).images
        assert np.abs(beside[0] - expected[0]).max() < 1e-4
        pictures.append(expected)
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3


def test_adapters_of_the_second_text_encoder_are_fused_with_the_others(xl):
    weight = xl.text_encoder_2.get_parameter("text_model.encoder.layers.0.self_attn.q_proj.weight".removeprefix(
        "" if hasattr(xl.text_encoder_2, "text_model") else "text_model."
    )).clone()  # fmt: skip
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), xl.text_encoder_2)
    xl.fuse_lora()
    fused = next(value for name, value in xl.text_encoder_2.named_parameters() if "q_proj.base_layer.weight" in name)
    assert not torch.equal(fused, weight)


def test_an_embedding_is_read_in_a_plain_prompt_too(pipe, tmp_path):
    widths = [each.width for each in pipe.attached.encoder(pipe).encoders]
    vectors = dict(zip(("clip_l", "clip_g"), (torch.ones(1, width) for width in widths), strict=False))
    torch.save(vectors if pipe.is_sdxl else {"string_to_param": {"*": vectors["clip_l"]}}, tmp_path / "glow.pt")
    before = pipe("a red glow", generator=generators(1), **CALL)
    pipe.add_embedding(tmp_path / "glow.pt")
    after = pipe("a red glow", generator=generators(1), **CALL)
    assert np.abs(before.images - after.images).max() > 1e-3
    assert "TI hashes" not in before.infotexts[0] and "glow: " in after.infotexts[0]
    assert np.array_equal(pipe("a red circle", generator=generators(1), **CALL).images,
                          stock_of(pipe)("a red circle", generator=generators(1), **CALL).images)  # fmt: skip


def test_a_folder_without_a_first_text_encoder_is_saved_and_loaded(xl, tmp_path):
    parts = {name: part for name, part in xl.components.items() if name not in ("text_encoder", "tokenizer")}
    alone = WebUITxt2ImgPipeline(**parts, text_encoder=None, tokenizer=None)
    alone.save_pretrained(tmp_path)
    assert WebUITxt2ImgPipeline.from_pretrained(tmp_path).text_encoder is None
