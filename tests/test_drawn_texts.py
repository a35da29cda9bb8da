"""The text under an image says what was drawn: where the arguments leave something open, and in both passes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import load_upscaler
from webui_diffusers.pipelines import (
    WebUIImg2ImgPipeline,
    WebUITxt2ImgPipeline,
    call_arguments,
    call_report,
    parse_infotext,
)


CALL = {"seed": 3, "sampler": "Euler a", "num_inference_steps": 2, "output_type": "np"}
PLAIN = {"num_inference_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(golden: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.add_embedding(golden / "prompt" / "ti" / "zorbstyle.pt")
    return pipe


def fields(output) -> dict[str, str]:
    return parse_infotext(output.infotexts[0])


# 1. What the arguments leave open


def test_the_upscaler_named_is_the_component_that_enlarged(pipe):
    shipped = "R-ESRGAN AnimeVideo"
    other = WebUITxt2ImgPipeline.from_pipe(pipe, upscaler=load_upscaler(shipped))
    other.set_progress_bar_config(disable=True)
    given = {**CALL, "hires_scale": 1.5, "webui_options": {"ESRGAN_tile": 0}}
    by_component = other("a red circle", **given)
    assert fields(by_component)["Hires upscaler"] == shipped
    assert np.array_equal(by_component.images, pipe("a red circle", hires_upscaler=shipped, **given).images)
    assert fields(pipe("a red circle", **given))["Hires upscaler"] == "Latent"


def test_a_refiner_is_written_and_reported(pipe, tmp_path):
    refined = WebUITxt2ImgPipeline.from_pipe(pipe, refiner=pipe.unet)
    refined.set_progress_bar_config(disable=True)
    output = refined("a red circle", refiner_switch_at=0.5, **CALL)
    assert (fields(output)["Refiner"], fields(output)["Refiner switch at"]) == ("tiny-sd", "0.5")
    assert any(line.startswith("Refiner: tiny-sd") for line in call_report(fields(output)))
    assert "Refiner" not in fields(pipe("a red circle", **CALL))


@pytest.mark.parametrize("stated", [{}, {"clip_skip": 0}, {"sampler": "Euler"}])
def test_a_call_with_a_generator_is_written_with_its_seed(pipe, stated):
    output = pipe(["a red circle", "a blue square"], generator=torch.Generator().manual_seed(7), **PLAIN, **stated)
    assert output.seeds == [7, 7] and len(output.infotexts) == 2
    read = parse_infotext(output.infotexts[1])
    assert (read["Prompt"], read["Steps"], read["CFG scale"]) == ("a blue square", "2", "7.5")
    assert (read["Size-1"], read["Size-2"], read["Seed"], read["RNG"]) == ("64", "64", "7", "CPU")
    assert read["Sampler"] == stated.get("sampler", "PNDMScheduler") and read["Model"] == "tiny-sd"


def test_a_seed_is_written_only_where_one_is_known(pipe):
    used = torch.Generator().manual_seed(7)
    torch.randn(1, generator=used)
    output = pipe("a red circle", generator=used, **PLAIN)
    assert output.seeds == [] and "Seed" not in fields(output)
    torch.manual_seed(5)
    first, second = (pipe("a red circle", **PLAIN) for _ in range(2))
    assert (first.seeds, second.seeds) == ([5], [])
    each = [torch.Generator().manual_seed(seed) for seed in (2, 9)]
    assert pipe(["a red circle"] * 2, generator=each, **PLAIN).seeds == [2, 9]


def test_an_image_of_a_cpu_generator_is_drawn_again_from_its_text(pipe):
    output = pipe("a red circle", generator=torch.Generator().manual_seed(7), sampler="Euler", **PLAIN)
    again = pipe(**call_arguments(fields(output)), output_type="np")
    assert np.array_equal(output.images, again.images)


def test_an_image_drawn_over_by_diffusers_is_written_too(pipe):
    over = WebUIImg2ImgPipeline.from_pipe(pipe)
    over.set_progress_bar_config(disable=True)
    start = np.full((1, 64, 48, 3), 0.5, np.float32)
    output = over("a red circle", start, 0.5, 4, generator=torch.Generator().manual_seed(7))
    read = fields(output)
    assert (read["Size-1"], read["Size-2"], read["Denoising strength"], read["Seed"]) == ("48", "64", "0.5", "7")


# 2. Both passes


def test_an_embedding_of_the_first_prompt_is_written_beside_another_second_prompt(pipe):
    output = pipe("a red circle, zorbstyle", hires_prompt="a red circle", hires_scale=1.5, **CALL)
    assert fields(output)["TI hashes"].startswith("zorbstyle: ")
    only_second = pipe("a red circle", hires_prompt="a red circle, zorbstyle", hires_scale=1.5, **CALL)
    assert fields(only_second)["TI hashes"].startswith("zorbstyle: ")


def test_a_network_is_hashed_under_the_name_that_the_prompt_has(pipe, golden, tmp_path):
    source = golden / "lora" / "fp16_lora.safetensors"
    save_file(load_file(source), tmp_path / "file.safetensors", metadata={"ss_output_name": "alias"})
    pipe.lora_folder = tmp_path
    for asked, written in ((":alias:", "alias"), (":file:", "file")):
        output = pipe(f"a red circle<lora{asked}0.8>", hires_prompt="a red circle", hires_scale=1.5, **CALL)
        assert fields(output)["Lora hashes"].startswith(f"{written}: ")
    pipe.add_lora(source, "second")
    output = pipe("a <lora:alias:0.8>", hires_prompt="a <lora:second:0.5>", hires_scale=1.5, **CALL)
    assert [part.partition(":")[0] for part in fields(output)["Lora hashes"].split(", ")] == ["alias", "second"]


def test_networks_of_the_argument_stay_in_a_second_prompt_of_its_own(pipe, golden):
    given = {**CALL, "hires_scale": 1.5, "hires_strength": 0.6}
    pipe.add_lora(golden / "lora" / "fp16_lora.safetensors", "ink")
    output = pipe("a red circle", loras={"ink": 0.7}, hires_prompt="a blue circle", **given)
    assert fields(output)["Hires prompt"] == "a blue circle<lora:ink:0.7>"
    assert np.array_equal(pipe(**call_arguments(fields(output)), output_type="np").images, output.images)


def test_the_second_pass_has_a_guidance_of_its_own(pipe):
    given = {**CALL, "hires_scale": 1.5, "hires_strength": 0.6, "guidance_scale": 6.0}
    output = pipe("a red circle", hires_guidance_scale=2.0, **given)
    same = pipe("a red circle", hires_guidance_scale=6.0, **given)
    assert fields(output)["Hires CFG Scale"] == "2.0" and "Hires CFG Scale" not in fields(same)
    assert not np.allclose(output.images, same.images, atol=1e-2)
    assert np.array_equal(same.images, pipe("a red circle", **given).images)
    assert np.array_equal(pipe(**call_arguments(fields(output)), output_type="np").images, output.images)


def test_a_callback_sees_the_guidance_of_each_pass(pipe):
    seen = []

    def watch(pipe, i, t, tensors):
        seen.append(pipe.guidance_scale)
        return {}

    given = {**CALL, "hires_scale": 1.5, "hires_strength": 0.9, "hires_guidance_scale": 2.0}
    pipe("a red circle", guidance_scale=6.0, callback_on_step_end=watch, **given)
    assert seen == [6.0, 6.0, 2.0, 2.0]


# 3. Sizes


def test_a_size_between_latent_cells_is_cut_and_written_as_asked(pipe):
    output = pipe("a red circle", width=70, height=61, **CALL)
    assert output.images.shape == (1, 56, 64, 3)
    assert (fields(output)["Size-1"], fields(output)["Size-2"]) == ("70", "61")
    assert np.array_equal(output.images, pipe("a red circle", width=64, height=56, **CALL).images)


def test_an_image_is_drawn_over_at_a_size_between_latent_cells(pipe):
    over = WebUIImg2ImgPipeline.from_pipe(pipe)
    over.set_progress_bar_config(disable=True)
    start = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(1, 64, 64, 3)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    given = {**CALL, "mask_image": mask, "width": 60, "height": 60}
    assert over("a red circle", start, **given).images.shape == (1, 56, 56, 3)
    assert over("a red circle", start, inpaint_area="masked", **given).images.shape == (1, 64, 64, 3)
