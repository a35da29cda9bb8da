"""Soft inpainting: how latents are mixed, and how much of the original covers the picture, as recorded."""

from io import BytesIO

import numpy as np
import pytest
import torch
from detailer_runs import check_pictures, init_arguments, job_arguments, recorded_texts, tiny_pipeline
from PIL import Image
from recordings import GOLDEN, recorded_json
from safetensors.torch import load_file
from webui_diffusers.pipelines import WebUIImg2ImgPipeline
from webui_diffusers.pipelines.images.masks import MaskArea
from webui_diffusers.pipelines.images.soft_overlay import percentile_filter, placed_mask, soft_overlay_mask
from webui_diffusers.pipelines.sampling.latent_mask import SoftLatentMask
from webui_diffusers.pipelines.script_settings import (
    SoftInpainting,
    read_loopback,
    read_sd_upscale,
    read_soft_inpainting,
    soft_inpainting_of_fields,
)


ALL_RUNS = [
    run
    for run in recorded_json("detailer/soft_inpainting.json", "runs", 4)
    if (GOLDEN / "detailer" / "soft_inpainting" / f"{run['name']}.safetensors").exists()
]
RUNS = [run for run in ALL_RUNS if "hist" in run]  # with a mask that shows something
assert len(RUNS) >= 3


def run_of(run: dict) -> tuple[dict, SoftInpainting, SoftLatentMask]:
    tensors = load_file(GOLDEN / "detailer" / "soft_inpainting" / f"{run['name']}.safetensors")
    soft = read_soft_inpainting({k: v for k, v in run["soft_inpainting"].items() if k != "enabled"})
    change = tensors["nmask"].expand(4, -1, -1)
    powers = (soft.schedule_bias, soft.preservation_strength, soft.transition_contrast_boost)
    return tensors, soft, SoftLatentMask(tensors["init_latent"], 1 - change, change, *powers)


@pytest.mark.goldens
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_latents_are_mixed_at_every_step_as_recorded(run: dict):
    tensors, _, mask = run_of(run)
    for q, level in enumerate(run["steps"]):
        np.testing.assert_allclose(mask.change_at(torch.tensor(level))[0, 0], tensors[f"step{q}.mask"], atol=1e-6)
        blended = mask.blend(tensors[f"step{q}.current"], torch.tensor(level))
        np.testing.assert_allclose(blended, tensors[f"step{q}.blended"], rtol=1e-5, atol=1e-5)


@pytest.mark.goldens
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_the_overlay_follows_the_change_as_recorded(run: dict):
    tensors, soft, mask = run_of(run)
    size = (run["params"]["width"], run["params"]["height"])
    for i, (latent, init) in enumerate(zip(tensors["latent_final"], tensors["init_latent"])):
        change = percentile_filter((latent - init).norm(dim=0).numpy(), 0.9, 1)
        np.testing.assert_allclose(change, tensors[f"hist{2 * i}.out"], rtol=1e-6)
        np.testing.assert_allclose(percentile_filter(change, 0.25, 0.75), tensors[f"hist{2 * i + 1}.out"], rtol=1e-6)
        wanted = Image.open(BytesIO(tensors[f"overlay_mask.{i}.png"].numpy().tobytes()))
        drawn = soft_overlay_mask(latent, init, tensors["nmask"], soft, size)
        if run["paste_to"]:
            x, y, w, h = run["paste_to"]
            drawn = placed_mask(drawn, MaskArea(x, y, x + w, y + h), wanted.size)
        difference = np.asarray(drawn).astype(int) - np.asarray(wanted).astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.goldens
@pytest.mark.parametrize("run", ALL_RUNS, ids=lambda run: run["name"])
def test_a_recorded_picture_is_drawn_again(run: dict):
    tensors = load_file(GOLDEN / "detailer" / "soft_inpainting" / f"{run['name']}.safetensors")
    p, soft = run["params"], dict(run["soft_inpainting"])
    enabled = soft.pop("enabled")
    torch.manual_seed(run["global_seed_before_run"])
    out = tiny_pipeline(WebUIImg2ImgPipeline)(
        [p["prompt"]] * p["batch_size"],
        **job_arguments(run),
        **init_arguments(run, tensors),
        soft_inpainting=soft if enabled else None,
    )
    check_pictures(out.images, tensors)
    assert out.infotexts == recorded_texts(run)


def test_cells_that_are_wholly_kept_or_drawn_are_not_mixed():
    init, drawn = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    change = torch.zeros(4, 6, 6)
    change[:, 3:] = 1
    mixed = SoftLatentMask(init, 1 - change, change).blend(drawn, torch.tensor(3.0))
    torch.testing.assert_close(mixed[..., :3, :], init[..., :3, :], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[..., 3:, :], drawn[..., 3:, :], rtol=1e-4, atol=1e-4)


def test_percentiles_of_a_flat_map_are_its_value():
    np.testing.assert_allclose(percentile_filter(np.full((5, 7), 3, np.float32), 0.25, 0.75), 3)


@pytest.mark.parametrize(
    "read, given, said",
    [
        (read_soft_inpainting, {"schedule_bais": 1}, "'schedule_bias'"),
        (read_soft_inpainting, {"mask_influence": 2}, "from 0 to 1; got 2"),
        (read_soft_inpainting, 3, "True or a dict"),
        (read_sd_upscale, {"factor": 2}, "unknown"),
        (read_sd_upscale, {"scale": 0.5}, "from 1 to 100"),
        (read_loopback, {"curve": "linear"}, "'Linear'"),
        (read_loopback, {"loops": 0}, "from 1"),
    ],
)
def test_what_is_no_setting_is_refused(read, given: object, said: str):
    with pytest.raises(ValueError, match=said):
        read(given)


def test_a_text_gives_the_settings_it_was_written_from():
    soft = SoftInpainting(2.5, 0.25, 8, 0.5, 1, 3)
    assert read_soft_inpainting(soft_inpainting_of_fields({k: str(v) for k, v in soft.fields.items()})) == soft
    assert soft_inpainting_of_fields({"Soft inpainting enabled": "False"}) is None


def test_off_is_off():
    assert [read(off) for read in (read_soft_inpainting, read_sd_upscale, read_loopback) for off in (None, False)] == [
        None
    ] * 6
