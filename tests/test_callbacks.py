"""What diffusers' callbacks and helpers find on the pipeline while a sampler of the webui draws."""

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.sampling.discrete_schedule import NoiseTable, default_alphas_cumprod
from webui_diffusers.pipelines.sampling.plan import plan_sampling
from webui_diffusers.pipelines.sampling.samplers import SAMPLERS


SMALL = {"height": 64, "width": 64, "output_type": "latent", "seed": 1, "noise_source": "cpu"}


@pytest.fixture(scope="module")
def pipe():
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")


@pytest.fixture(scope="module")
def pipe_xl():
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e")


def rows_of_each_run(unet) -> tuple[list[int], object]:
    """The rows of each run from now on, and the hook's handle."""
    rows: list[int] = []
    return rows, unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_the_cutoff_callback_ends_guidance(pipe, sampler):
    rows, handle = rows_of_each_run(pipe.unet)
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    pipe(
        "a [ring:circle:3]",
        negative_prompt="blue",
        sampler=sampler,
        num_inference_steps=6,
        callback_on_step_end=cutoff,
        **SMALL,
    )
    handle.remove()
    half = len(rows) // 2
    assert rows[:half] == [2] * half and rows[-1] == 1 and rows == sorted(rows, reverse=True)


def test_the_cutoff_callback_ends_guidance_on_sdxl(pipe_xl):
    rows, handle = rows_of_each_run(pipe_xl.unet)
    pipe_xl("a ring", sampler="Euler", num_inference_steps=4, callback_on_step_end=SDXLCFGCutoffCallback(0.5), **SMALL)
    handle.remove()
    assert rows == [2, 2, 2, 1] or rows == [2, 2, 1, 1]


def test_a_scale_of_0_set_in_a_callback_leaves_the_positive_text_alone(pipe):
    """As in diffusers; asked for from the start it is the webui's: the negative text alone."""

    def end_guidance(pipe, i, t, tensors):
        pipe._guidance_scale = 0.0
        return {}

    job = {"sampler": "Euler", "num_inference_steps": 2, "negative_prompt": "blue", **SMALL}
    seen: list[torch.Tensor] = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    pipe("a ring", callback_on_step_end=end_guidance, **job)
    handle.remove()
    assert torch.equal(seen[1], seen[0][:1])
    zero = pipe("a ring", guidance_scale=0.0, **job).images
    assert torch.equal(zero, pipe("blue", **{**job, "negative_prompt": "blue"}, guidance_scale=0.0).images)


def test_texts_are_shown_in_diffusers_rows(pipe):
    shown = {}

    def look(pipe, i, t, tensors):
        shown.update(tensors)
        return {}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    pipe(
        ["a ring", "a circle"],
        negative_prompt="blue",
        sampler="Euler",
        num_inference_steps=1,
        **SMALL,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=names,
    )
    assert shown["latents"].shape[0] == 2
    assert shown["prompt_embeds"].shape[:2] == (4, 77) and shown["negative_prompt_embeds"].shape[:2] == (2, 77)
    assert torch.equal(shown["prompt_embeds"][:2], shown["negative_prompt_embeds"])


def test_sdxl_s_other_tensors_are_shown_in_diffusers_rows(pipe_xl):
    shown = {}

    def look(pipe, i, t, tensors):
        shown.update(tensors)
        return {}

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    pipe_xl(
        "a ring",
        negative_prompt="blue",
        sampler="Euler",
        num_inference_steps=1,
        **SMALL,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=names,
    )
    assert [len(shown[name]) for name in names] == [2, 2, 2] and shown["add_time_ids"].shape == (2, 6)


@pytest.mark.parametrize("sampler", ["DPM++ 2M Karras", "LCM", "DDIM", "UniPC"])
def test_each_timestep_of_the_unet_stands_in_the_scheduler(pipe, sampler):
    """As helpers look it up that wrap the UNet's forward (DeepCache): by the number it is given."""
    places: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda module, args: places.append(list(pipe.scheduler.timesteps).index(args[1].item()))
    )
    pipe("a ring", sampler=sampler, num_inference_steps=5, **SMALL)
    handle.remove()
    assert places == list(range(len(places))) and pipe.num_timesteps == len(places)


@pytest.mark.parametrize("label", list(SAMPLERS))
@pytest.mark.parametrize("t_enc", [None, 5])
def test_plans_know_as_many_timesteps_as_steps(label, t_enc):
    plan = plan_sampling(SAMPLERS[label], "Automatic", 12, NoiseTable(default_alphas_cumprod()), t_enc=t_enc)
    timesteps = plan.timesteps
    assert (timesteps[:-1] > timesteps[1:]).all() and timesteps.max() <= 999
    assert label.startswith("DPM fast") or plan.step_count is None or len(timesteps) == plan.step_count
