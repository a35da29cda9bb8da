"""SD upscale's tiles, loopback's strengths and the prompt matrix, as recorded."""

from io import BytesIO

import numpy as np
import pytest
import torch
from detailer_runs import (
    add_other_models,
    check_pictures,
    hires_arguments,
    init_arguments,
    job_arguments,
    recorded_texts,
    tiny_pipeline,
)
from PIL import Image
from recordings import GOLDEN, recorded_json
from safetensors.numpy import load_file
from webui_diffusers.loaders.upscaler import load_upscaler
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.fit import flatten_picture
from webui_diffusers.pipelines.images.sd_upscale import cut_tiles, join_tiles, tile_seeds
from webui_diffusers.pipelines.images.upscale import enlarge_by
from webui_diffusers.pipelines.script_settings import prompt_matrix, read_loopback, read_sd_upscale


def runs_of(kind: str, at_least: int) -> list[dict]:
    runs = recorded_json("detailer/scripts.json", "runs", 4)
    folder = GOLDEN / "detailer" / "scripts"
    kept = [run for run in runs if run["kind"] == kind and (folder / f"{run['name']}.safetensors").exists()]
    assert len(kept) >= at_least
    return kept


def pictures_of(run: dict) -> dict[str, Image.Image]:
    tensors = load_file(GOLDEN / "detailer" / "scripts" / f"{run['name']}.safetensors")
    return {k: Image.open(BytesIO(v.tobytes())) for k, v in tensors.items() if k.endswith(".png")}


@pytest.mark.goldens
@pytest.mark.parametrize("run", runs_of("sd_upscale", 3), ids=lambda run: run["name"])
def test_pictures_are_cut_and_joined_as_recorded(run: dict):
    """From the given picture to the tiles, and from the drawn tiles to the finished picture; models excepted."""
    pictures = pictures_of(run)
    _, overlap, upscaler, scale = run["script_args"]
    tile = (run["params"]["width"], run["params"]["height"])
    batch, count = run["params"]["batch_size"], run["params"]["n_iter"]
    if upscaler in ("None", "Lanczos", "Nearest"):
        large = enlarge_by(flatten_picture(pictures["in_image.0.png"]), scale, upscaler)
        size, tiles = large.size, cut_tiles(large, tile, overlap)
        for n, cut in enumerate(tiles):
            np.testing.assert_array_equal(np.asarray(cut), np.asarray(pictures[f"c{n // batch}.in.{n % batch}.png"]))
    else:
        size = pictures["image.0.png"].size
        tiles = cut_tiles(Image.new("RGB", size), tile, overlap)
    groups = len(run["calls"]) // count
    for u in range(count):
        drawn = [pictures[f"c{u * groups + n // batch}.out.{n % batch}.png"] for n in range(len(tiles))]
        joined = join_tiles(drawn, size, tile, overlap)
        np.testing.assert_array_equal(np.asarray(joined), np.asarray(pictures[f"image.{u}.png"]))
        seeds = tile_seeds(len(tiles), batch, run["params"]["seed"] + u)
        if not run["params"]["subseed_strength"]:
            assert seeds == [call["all_seeds"] for call in run["calls"][u * groups : (u + 1) * groups]]


@pytest.mark.goldens
@pytest.mark.parametrize("run", runs_of("loopback", 1), ids=lambda run: run["name"])
def test_strengths_follow_the_curve_as_recorded(run: dict):
    loops, final, curve, _ = run["script_args"]
    asked = read_loopback({"loops": loops, "final_strength": final, "curve": curve})
    strengths = [asked.strength(run["params"]["denoising_strength"], i) for i in range(loops)]
    drawn = [call["denoising_strength"] for call in run["calls"]]
    np.testing.assert_allclose(strengths * run["params"]["n_iter"], drawn, rtol=1e-12)


@pytest.mark.goldens
@pytest.mark.parametrize("run", runs_of("sd_upscale", 3) + runs_of("loopback", 1), ids=lambda run: run["name"])
def test_a_recorded_script_is_drawn_again(run: dict):
    tensors = load_file(GOLDEN / "detailer" / "scripts" / f"{run['name']}.safetensors")
    pipe, p = tiny_pipeline(WebUIImg2ImgPipeline), run["params"]
    pipe.attached.upscalers["tiny-compact-x2"] = load_upscaler(GOLDEN / "models" / "tiny-compact-x2.safetensors")
    if run["kind"] == "sd_upscale":
        _, overlap, upscaler, scale = run["script_args"]
        settings = {"overlap": overlap, "scale": scale, "upscaler": upscaler, "batch_size": p["batch_size"]}
        script = {"sd_upscale": settings}
    else:
        loops, final, curve, _ = run["script_args"]
        script = {"loopback": {"loops": loops, "final_strength": final, "curve": curve}}
    torch.manual_seed(run["global_seed_before_run"])
    given = job_arguments(run) | init_arguments(run, tensors)
    out = pipe(p["prompt"], num_images_per_prompt=p["n_iter"], **given, **script)
    check_pictures(out.images, tensors)
    assert out.infotexts[: len(run["infotexts"])] == recorded_texts(run)
    assert out.seeds[0] == run["processed_seed"]


@pytest.mark.goldens
@pytest.mark.parametrize("run", runs_of("hires_checkpoint", 1), ids=lambda run: run["name"])
def test_a_recorded_second_pass_with_another_checkpoint_is_drawn_again(run: dict):
    tensors = load_file(GOLDEN / "detailer" / "scripts" / f"{run['name']}.safetensors")
    pipe, p = tiny_pipeline(WebUITxt2ImgPipeline), run["params"]
    add_other_models(pipe)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    torch.manual_seed(run["global_seed_before_run"])
    images, texts, other = [], [], {"hires_model": p["hr_checkpoint_name"]}
    for n in range(p["n_iter"]):
        given = job_arguments(run, n * p["batch_size"]) | hires_arguments(p) | other
        out = pipe([p["prompt"]] * p["batch_size"], **given)
        images, texts = images + out.images, texts + out.infotexts
    check_pictures(images, tensors)
    assert texts == recorded_texts(run)
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.unet.state_dict().items())


@pytest.mark.goldens
@pytest.mark.parametrize("case", recorded_json("detailer/text_cases.json", "prompt_matrix", 6))
def test_prompt_matrices_are_the_recorded_ones(case: dict):
    given, wanted = case["input"], case["output"]
    key = "prompt" if given["prompt_type"] == "positive" else "negative_prompt"
    delimiter = {"comma": ", ", "space": " "}[given["delimiter"]]
    assert prompt_matrix(given[key], put_at_start=given["put_at_start"], delimiter=delimiter) == wanted[key]


def test_one_loop_keeps_its_strength():
    assert read_loopback({"loops": 1, "final_strength": 0.9}).strength(0.4, 0) == 0.4


def test_tiles_that_nothing_drew_on_are_the_picture_again():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8))
    tiles = cut_tiles(picture, (48, 40), 0)
    np.testing.assert_array_equal(np.asarray(join_tiles(tiles, picture.size, (48, 40), 0)), np.asarray(picture))


def test_an_upscaler_of_none_leaves_the_picture():
    picture = Image.new("RGB", (30, 20))
    assert enlarge_by(picture, 3.0, read_sd_upscale({"upscaler": None}).upscaler) is picture
