"""Blocks for Modular Diffusers: the whole draws what WebUITxt2ImgPipeline draws, and each part works among others."""

from inspect import signature

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ComponentsManager,
    EulerDiscreteScheduler,
    LayerSkipConfig,
    PerturbedAttentionGuidance,
    StableDiffusionXLAutoBlocks,
)
from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks
from recorded_jobs import job_arguments, job_refiner
from recordings import GOLDEN, recorded_runs
from safetensors.torch import load_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import merged_networks, read_network
from webui_diffusers.pipelines import PromptEncoder, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.blocks import (
    WebUIDecodeStep,
    WebUIDenoiseStep,
    WebUIHiresStep,
    WebUILoraStep,
    WebUISDBlocks,
    WebUISDDecodeStep,
    WebUISDDenoiseStep,
    WebUISDTextEncoderStep,
    WebUITextEncoderStep,
    WebUIXLBlocks,
)
from webui_diffusers.pipelines.blocks.inputs import BLOCK_INPUTS, EMBED_NAMES, LEFT_OUT
from webui_diffusers.pipelines.blocks.modular_api import check_diffusers


PARTS = [WebUILoraStep, WebUITextEncoderStep, WebUIDenoiseStep, WebUIHiresStep, WebUIDecodeStep]
CALL = {"num_inference_steps": 2, "output_type": "latent"}
SEEDED = {"seed": 1, "sampler": "Euler", **CALL}


@pytest.fixture(scope="module")
def pipe() -> WebUITxt2ImgPipeline:
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e")


def modular(blocks, pipe, **components):
    """A modular pipeline around the components of `pipe`."""
    made = blocks.init_pipeline()
    have = {**pipe.components, **components}
    made.update_components(**{name: have[name] for name in made.component_names if have.get(name) is not None})
    made.set_progress_bar_config(disable=True)
    return made


def sequence(**blocks):
    return SequentialPipelineBlocks.from_blocks_dict(blocks)


def stock(**others):
    """diffusers' own blocks for text to image, with `others` in the place of some, None for none."""
    blocks = dict(StableDiffusionXLAutoBlocks().get_workflow("text2image").sub_blocks)
    named = {name.rpartition(".")[2]: name for name in blocks}
    for name, block in others.items():
        if block is None:
            del blocks[named[name]]
        else:
            blocks[named[name]] = block
    return {name.replace(".", "_"): block for name, block in blocks.items()}


@pytest.fixture(scope="module")
def whole(pipe):
    return modular(WebUIXLBlocks(), pipe)


# --- what is declared


def test_the_whole_takes_what_the_pipeline_takes_with_its_defaults():
    parameters = signature(WebUITxt2ImgPipeline.__call__).parameters
    of_calls = {"self", "kwargs", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    assert {*BLOCK_INPUTS, *LEFT_OUT} == {*parameters} - of_calls
    defaults = {**{name: row.default for name, row in BLOCK_INPUTS.items()}, **LEFT_OUT}
    assert {name for name, default in defaults.items() if parameters[name].default != default} == {"guidance_rescale"}
    assert {param.name for param in WebUIXLBlocks().inputs} == {*BLOCK_INPUTS, "batch_size"}


@pytest.mark.parametrize("part", [*PARTS, WebUIXLBlocks, WebUISDBlocks])
def test_each_block_documents_what_it_takes_and_makes(part):
    block = part()
    text = block.doc
    assert block.description in text.replace("\n", " ").replace("  ", " ") or block.description[:40] in text
    for param in (*block.inputs, *block.intermediate_outputs):
        assert f"{param.name} (`" in text and param.description
    assert "TODO" not in text
    assert all(spec.name in text for spec in block.expected_components)


def test_an_older_diffusers_is_refused_with_what_to_do():
    assert check_diffusers("0.40.0") == "0.40.0"
    with pytest.raises(ImportError, match="0.36.0 is installed.*0.40.*pip install -U"):
        check_diffusers("0.36.0")


# --- the whole


FAST = ("and_weights", "v_ddim_zsnr", "hr_px_lanczos_batch2", "ref_and_edit_batch2")
RUNS = [
    pytest.param(run, id=run["name"], marks=[] if run["name"] in FAST else [pytest.mark.slow])
    for run in recorded_runs("sampling_xl/e2e.json", "txt2img", 47)
]


@pytest.mark.parametrize("run", RUNS)
def test_the_whole_draws_what_was_recorded_and_the_pipeline_draws(pipe, run):
    given, refiner = job_arguments(run), job_refiner(run["params"].get("refiner_checkpoint"))
    before = pipe.scheduler.config.prediction_type
    pipe.scheduler.register_to_config(prediction_type="v_prediction" if run["parameterization"] == "v" else "epsilon")
    pipe.register_modules(refiner=refiner)
    try:
        expected = pipe(**given)
        drawn = modular(WebUIXLBlocks(), pipe)(**given)
    finally:
        pipe.scheduler.register_to_config(prediction_type=before)
        pipe.register_modules(refiner=None)
    assert torch.equal(drawn.latents, expected.images)
    assert (
        drawn.seeds == expected.seeds
        and drawn.infotexts[0].split("Model:")[0] == expected.infotexts[0].split("Model:")[0]
    )
    recorded = load_file(GOLDEN / "sampling_xl" / "e2e" / f"{run['name']}.safetensors")["latents"]
    assert (drawn.latents - recorded).abs().max() < 5e-3 * max(1, recorded.abs().max())


ASKED = [
    {"output_type": "np", "tiling": True, "num_images_per_prompt": 2},
    {"prompt_2": "[x:y:0.5]", "negative_prompt_2": "dark", "original_size": (128, 96), "guidance_rescale": 0.7},
    {"sampler": None, "seed": None, "generator": 3, "eta": 0.5},
    {"sampler": None, "timesteps": [900, 600, 300]},
    {"sampler": None, "negative_prompt": None},
    {"negative_prompt": None},
    {"latents": True, "subseed": 5, "subseed_strength": 0.3, "noise_source": "nv"},
    {"hires_size": (96, 80), "hires_strength": 0.5, "hires_upscaler": "Nearest", "output_type": "pil", "tiling": True},
    {"pag_scale": 3.0, "freeu": {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}},
    {"webui_options": {"pad_cond_uncond": True, "s_min_uncond": 2.0}, "prompt": "a, " * 90},
]


@pytest.mark.parametrize("asked", ASKED, ids=["-".join(one)[:40] for one in ASKED])
def test_arguments_mean_what_they_mean_in_the_pipeline(pipe, whole, asked):
    def drawn(call):
        given = {"prompt": "a (red:1.2) circle", "negative_prompt": "dark", "guidance_scale": 6.0, **SEEDED, **asked}
        if "generator" in given:
            given["generator"] = torch.Generator().manual_seed(given["generator"])
        if "latents" in given:
            given["latents"] = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
        return call(**given)

    expected, found = drawn(pipe).images, drawn(whole).images
    if isinstance(expected, list):
        assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]
    else:
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_a_negative_prompt_that_is_not_given_is_read_as_the_models_index_says(pipe, tiny_sdxl):
    plain = {"prompt": "a circle", "seed": 1, **CALL}
    other = modular(WebUIXLBlocks(), pipe)
    assert other.config.force_zeros_for_empty_prompt
    zeros = other(**plain, output="latents")
    other.update_components(force_zeros_for_empty_prompt=False)
    expected = WebUITxt2ImgPipeline(**pipe.components, force_zeros_for_empty_prompt=False)
    expected.set_progress_bar_config(disable=True)
    found = other(**plain, output="latents")
    assert torch.equal(found, expected(**plain, guidance_scale=7.5).images) and not torch.equal(found, zeros)
    assert not WebUISDTextEncoderStep().expected_configs


def test_guidance_is_the_guiders_which_is_not_the_pipelines(pipe, whole):
    default = whole(prompt="a circle", **SEEDED, output="latents")
    assert torch.equal(default, pipe("a circle", guidance_scale=7.5, **SEEDED).images)
    assert torch.equal(
        whole(prompt="a circle", guidance_scale=5.0, **SEEDED, output="latents"), pipe("a circle", **SEEDED).images
    )
    set_to = modular(WebUIXLBlocks(), pipe, guider=ClassifierFreeGuidance(guidance_scale=5.0, guidance_rescale=0.4))
    expected = pipe("a circle", guidance_rescale=0.4, **SEEDED).images
    assert torch.equal(set_to(prompt="a circle", **SEEDED, output="latents"), expected)
    off = modular(WebUIXLBlocks(), pipe, guider=ClassifierFreeGuidance(enabled=False))
    expected = pipe("a circle", guidance_scale=1.0, **SEEDED).images
    torch.testing.assert_close(off(prompt="a circle", **SEEDED, output="latents"), expected, atol=1e-4, rtol=0)


def test_what_cannot_be_drawn_is_refused_before_any_work(pipe, whole):
    ran = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: ran.append(1))
    refused = [
        ({"hires_scale": 2, "hires_sampler": "Eulr"}, "Euler"),
        ({"seed": "one"}, "seed"),
        ({"prompt": "<lora:none:1>"}, "none"),
        ({"refiner_switch_at": 0.5}, "no refiner"),
        ({"prompt": None}, "prompt"),
        ({"webui_options": {"emphasys": "None"}}, "emphasis"),
    ]
    for asked, said in refused:
        with pytest.raises(ValueError, match=said):
            whole(**{"prompt": "a", **SEEDED, **asked})
    handle.remove()
    assert not ran


def test_a_state_can_be_gone_on_with(pipe, whole):
    first = whole(prompt="a circle", negative_prompt="dark", guidance_scale=5.0, **SEEDED)
    again = whole(state=first, prompt="[a:b:0.5] star", latents=None)
    expected = pipe("[a:b:0.5] star", negative_prompt="dark", **SEEDED)
    assert torch.equal(again.latents, expected.images)
    assert again.infotexts[0].split("Model")[0] == expected.infotexts[0].split("Model")[0]


# --- networks


@pytest.fixture(scope="module")
def network(golden):
    path = golden / "lora" / "xl_kohya.safetensors"
    if not path.is_file():
        pytest.skip("no xl_kohya in this folder of recordings")
    return path


def weights(pipe):
    return {
        name: value.clone() for part in (pipe.unet, pipe.text_encoder) for name, value in part.state_dict().items()
    }


@pytest.mark.parametrize("backend", ["webui", "peft"])
def test_networks_draw_what_they_draw_in_the_pipeline_and_leave_no_trace(pipe, network, backend):
    whole, before = modular(WebUIXLBlocks(), pipe), weights(pipe)
    given = {
        "hires_scale": 1.5,
        "hires_prompt": "a <lora:style:0.3>",
        "guidance_scale": 5.0,
        "lora_backend": backend,
        **SEEDED,
    }
    for owner in (pipe, whole.webui_files):
        owner.add_lora(network, "style")
    prompt = "a red circle<lora:style:0.8:0.5>" + ("<lora:style:1:start=1>" if backend == "webui" else "")
    expected, drawn = pipe(prompt, **given), whole(prompt=prompt, **given)
    assert torch.equal(drawn.latents, expected.images)
    assert drawn.infotexts[0].split("Model")[0] == expected.infotexts[0].split("Model")[0] and drawn.prompt == prompt
    assert "29 layers applied" in whole.webui_files.network_report()
    assert not torch.equal(drawn.latents, whole(prompt="a red circle", **given, output="latents"))
    with pytest.raises(ValueError):
        whole(prompt=prompt, **{**given, "output_type": "pil", "latents": torch.full((1, 4, 8, 8), torch.nan)})
    after = weights(pipe)
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and {*before} == {*after}


def test_networks_are_on_around_blocks_of_others(pipe, network):
    given = {
        "generator": torch.Generator().manual_seed(3),
        "num_inference_steps": 2,
        "output_type": "latent",
        "output": "images",
    }
    plain, around = modular(sequence(**stock()), pipe), WebUILoraStep.from_blocks_dict(stock())
    around, before = modular(around, pipe), weights(pipe)
    with merged_networks(pipe, [(read_network(network), 0.8, 0.8)]):
        expected = plain(prompt="a circle", **given)
    around.webui_files.add_lora(network, "style")
    given["generator"].manual_seed(3)
    assert torch.equal(around(prompt="a circle<lora:style:0.8>", **given), expected)
    given["generator"].manual_seed(3)
    assert torch.equal(around(prompt="a circle", loras={"style": 0.8}, **given), expected)
    with pytest.raises(ValueError):
        around(prompt="a circle", loras={"style": 0.8}, height=63, **given)
    after = weights(pipe)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_networks_beside_blocks_that_cannot_read_them_are_refused(pipe, network):
    loras = {"loras": {str(network): 0.8}, "num_inference_steps": 1}
    for blocks, name in (
        ({"lora": WebUILoraStep, **stock()}, "StableDiffusionXLTextEncoderStep"),
        ({"lora": WebUILoraStep, **stock(text_encoder=WebUITextEncoderStep)}, "StableDiffusionXLLoopDenoiser"),
        (stock(text_encoder=WebUITextEncoderStep), "StableDiffusionXLLoopDenoiser"),
    ):
        with pytest.raises(ValueError, match=f"networks, and `{name}`"):
            modular(sequence(**blocks), pipe)(prompt="a", **loras)


def test_our_blocks_put_networks_on_without_the_whole(pipe, network):
    parts = {"lora": WebUILoraStep, "text": WebUITextEncoderStep, "denoise": WebUIDenoiseStep, "hires": WebUIHiresStep}
    given = {"loras": {str(network): 0.8}, "guidance_scale": 5.0, "hires_scale": 1.5, **SEEDED}
    expected = pipe("[a:b:0.5]", **given).images
    assert torch.equal(modular(sequence(**parts), pipe)(prompt="[a:b:0.5]", **given, output="latents"), expected)
    del parts["lora"]
    assert torch.equal(modular(sequence(**parts), pipe)(prompt="[a:b:0.5]", **given, output="latents"), expected)


# --- each part among diffusers' own


def test_our_text_encoder_before_diffusers_denoise(pipe):
    given = {"num_inference_steps": 2, "output_type": "latent", "output": "images", "num_images_per_prompt": 2}
    mixed, plain = (
        modular(sequence(**blocks), pipe)
        for blocks in (stock(text_encoder=WebUITextEncoderStep), stock(text_encoder=None))
    )
    texts = ["a (red:1.4) circle, " * 30, "b"], ["blurry", ""]
    noise = torch.randn((4, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    found = mixed(prompt=texts[0], negative_prompt=texts[1], latents=noise, **given)
    encoded = PromptEncoder.from_pipe(pipe)(*texts)
    assert torch.equal(found, plain(**encoded, latents=noise, **given))
    for prompt in ("[a:b:0.5]", "a AND b", "a :2"):
        with pytest.raises(ValueError, match="StableDiffusionXLLoopDenoiser"):
            mixed(prompt=prompt, **given)


def test_diffusers_text_encoder_before_our_denoise(pipe):
    short = sequence(text=StableDiffusionXLAutoBlocks().sub_blocks["text_encoder"], denoise=WebUIDenoiseStep())
    in_place = sequence(**stock(denoise=WebUIDenoiseStep))  # behind those that prepare latents
    # diffusers' input block mixes up the pooled embeddings of several prompts with several images each
    for blocks, prompts, each in (
        (short, ["a circle", "b"], 2),
        (in_place, ["a circle", "b"], 1),
        (in_place, ["a"], 2),
    ):
        given = {"num_images_per_prompt": each, **SEEDED, "num_inference_steps": 3}
        expected = pipe(prompts, negative_prompt="dark", guidance_scale=7.5, **given).images
        asked = {"prompt": prompts, "negative_prompt": ["dark"] * len(prompts), **given, "output": "latents"}
        torch.testing.assert_close(modular(blocks, pipe)(**asked), expected, atol=1e-4, rtol=0)


def test_diffusers_prepared_noise_is_drawn_from_where_no_seed_is_given(pipe):
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    in_place = modular(sequence(**stock(denoise=WebUIDenoiseStep)), pipe)
    given = {**SEEDED, "seed": None, "num_inference_steps": 3}
    expected = pipe("a circle", guidance_scale=7.5, latents=noise, **given).images
    torch.testing.assert_close(
        in_place(prompt="a circle", latents=noise, **given, output="latents"), expected, atol=1e-4, rtol=0
    )


def test_hires_after_diffusers_blocks_is_the_pipelines_second_pass(pipe):
    mixed = modular(sequence(**stock(decode=None), hires=WebUIHiresStep), pipe)
    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 2, "hires_scale": 1.5}
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    drawn = mixed(prompt="a circle", latents=noise, **given)
    alone = modular(WebUIHiresStep(), pipe)
    first = modular(sequence(**stock(decode=None)), pipe)(prompt="a circle", latents=noise, num_inference_steps=2)
    assert drawn.latents.shape == (1, 4, 12, 12)
    again = alone(prompt="a circle", latents=first.latents, **given, output="latents")
    torch.testing.assert_close(again, drawn.latents, atol=1e-5, rtol=0)  # diffusers' blocks drew the first pass twice
    assert torch.equal(alone(prompt="a", latents=noise, seed=1, sampler="Euler", output="latents"), noise)


# --- guiders


def perturbed(**settings):
    config = LayerSkipConfig(
        indices=[0],
        fqn="mid_block.attentions.0.transformer_blocks",
        skip_attention=False,
        skip_attention_scores=True,
        skip_ff=False,
    )
    spread = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    return PerturbedAttentionGuidance(perturbed_guidance_config=config, **spread, **settings)


APG = {"guidance_scale": 6.0, "adaptive_projected_guidance_momentum": -0.5}
GUIDERS = {  # and the scale of plain guidance that each is not
    "PAG": (lambda: perturbed(guidance_scale=5.0), 5.0),
    "PAG alone": (lambda: perturbed(guidance_scale=1.0), 1.0),
    "APG": (lambda: AdaptiveProjectedGuidance(**APG), 6.0),
    "part of the steps": (lambda: ClassifierFreeGuidance(guidance_scale=6.0, start=0.3, stop=0.8), 6.0),
    "original": (lambda: ClassifierFreeGuidance(guidance_scale=4.0, use_original_formulation=True), 4.0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("PAG", "APG") else [pytest.mark.slow]) for n in GUIDERS]
)
def test_a_guider_guides_our_euler_as_it_guides_diffusers_own(pipe, name):
    make, scale = GUIDERS[name]
    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    given = {
        "prompt": "a red circle",
        "negative_prompt": "dark",
        "latents": noise,
        "num_inference_steps": 4,
        "output": "latents",
    }
    theirs = modular(sequence(**stock(decode=None)), pipe, scheduler=scheduler, guider=make())
    ours = modular(sequence(**stock(decode=None, denoise=WebUIDenoiseStep)), pipe, scheduler=scheduler, guider=make())
    expected = theirs(**given)
    torch.testing.assert_close(ours(**given, sampler="Euler"), expected, atol=2e-4, rtol=0)
    ours.update_components(guider=ClassifierFreeGuidance(guidance_scale=scale))
    assert not torch.allclose(ours(**given, sampler="Euler"), expected, atol=1e-3)
    assert not any(
        hasattr(module, "_diffusers_hook") and module._diffusers_hook.hooks for module in pipe.unet.modules()
    )


def test_a_guider_sees_each_piece_of_and_as_a_prompt(pipe):
    """`a AND a:0` is a alone; and pieces' shares add up as they do without a guider."""
    guided = modular(
        WebUIXLBlocks(), pipe, guider=ClassifierFreeGuidance(guidance_scale=4.0, use_original_formulation=True)
    )
    given = {"negative_prompt": "dark", **SEEDED, "num_inference_steps": 3}
    torch.testing.assert_close(
        guided(prompt="a circle AND b :0.5", **given, output="latents"),
        pipe("a circle AND b :0.5", guidance_scale=5.0, **given).images,
        atol=1e-4,
        rtol=0,
    )


def test_a_guider_keeps_its_scale_and_state_to_itself(pipe):
    guider = AdaptiveProjectedGuidance(**APG)
    whole = modular(WebUIXLBlocks(), pipe, guider=guider)
    first = whole(prompt="a", hires_scale=1.5, hires_guidance_scale=3.0, **SEEDED)
    assert guider.guidance_scale == 6.0 and guider.momentum_buffer is None and guider._step is None
    again = whole(prompt="a", hires_scale=1.5, hires_guidance_scale=3.0, guidance_scale=6.0, **SEEDED)
    assert torch.equal(first.latents, again.latents)
    for asked, said in (
        ({"webui_options": {"s_min_uncond": 1.0}}, "s_min_uncond"),
        ({"sampler": "DDIM CFG++"}, "divides"),
        ({"pag_scale": 3.0}, "pag_scale"),
    ):
        ran: list[int] = []
        handle = pipe.text_encoder.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        with pytest.raises(ValueError, match=said):
            whole(prompt="a", **{**SEEDED, **asked})
        handle.remove()
        assert not ran


# --- components


def test_components_are_shared_by_a_manager(tiny_sdxl):
    manager = ComponentsManager()
    ours = WebUIXLBlocks().init_pipeline(str(tiny_sdxl), components_manager=manager, collection="sdxl")
    ours.load_components(dtype=torch.float32)
    theirs = sequence(**stock()).init_pipeline(str(tiny_sdxl), components_manager=manager, collection="sdxl")
    names = [name for name in theirs.component_names if name in ours.pretrained_component_names]
    theirs.update_components(**{name: manager.get_one(name=name) for name in names})
    assert {"unet", "vae", "text_encoder_2"} <= {*names} and all(getattr(theirs, n) is getattr(ours, n) for n in names)
    ours.set_progress_bar_config(disable=True)
    both = ours(prompt="a", **SEEDED, output="latents"), theirs(prompt="a", num_inference_steps=1, output="latents")
    assert both[0].shape == both[1].shape
    other = WebUIXLBlocks().init_pipeline(components_manager=manager)
    other.update_components(webui_files=ours.webui_files)
    assert other.webui_files is ours.webui_files


def test_embeddings_leave_with_the_dtype_of_the_encoder(pipe):
    step = modular(WebUITextEncoderStep(), pipe)
    found = step(prompt="a")
    assert [getattr(found, name).dtype for name in EMBED_NAMES] == [pipe.text_encoder_2.dtype] * 4


# --- Stable Diffusion 1.x


@pytest.fixture(scope="module")
def sd_pipe():
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")


def test_the_blocks_for_sd_draw_what_the_pipeline_draws(sd_pipe, golden):
    whole = modular(WebUISDBlocks(), sd_pipe)
    given = {"negative_prompt": "dark", "guidance_scale": 6.0, "hires_scale": 1.5, "clip_skip": 1, **SEEDED}
    for owner in (sd_pipe, whole.webui_files):
        owner.add_lora(golden / "lora" / "alpha_ne_rank.safetensors", "style")
    for prompt in ("a (red:1.2) [circle:star:0.5] AND b :0.5", "a <lora:style:0.8>"):
        expected, drawn = sd_pipe(prompt, **given), whole(prompt=prompt, **given)
        assert torch.equal(drawn.latents, expected.images)
        assert drawn.infotexts[0].split("Model")[0] == expected.infotexts[0].split("Model")[0]
    assert not {"prompt_2", "original_size"} & {param.name for param in whole.blocks.inputs}
    assert not {"text_encoder_2", "tokenizer_2"} & {*whole.component_names}
    with pytest.raises(ValueError, match="negative_prompt"):
        whole(prompt=["a", "b"], negative_prompt=["x"], **SEEDED)


def test_the_parts_for_sd_work_one_by_one(tiny_sd, sd_pipe):
    parts = sequence(text=WebUISDTextEncoderStep, denoise=WebUISDDenoiseStep, decode=WebUISDDecodeStep)
    alone = parts.init_pipeline(str(tiny_sd))
    alone.load_components(dtype=torch.float32)
    alone.set_progress_bar_config(disable=True)
    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 2, "output_type": "pt"}
    found = alone(prompt="[a:b:0.5]", **given, output="images")
    assert torch.equal(found, sd_pipe("[a:b:0.5]", guidance_scale=7.5, **given).images)
    embeds = PromptEncoder.from_pipe(sd_pipe)("a", "dark")
    drawn = modular(WebUISDDenoiseStep(), sd_pipe)(
        **embeds, seed=1, sampler="Euler", num_inference_steps=2, output="latents"
    )
    assert torch.equal(drawn, sd_pipe("a", negative_prompt="dark", **{**given, "output_type": "latent"}).images)
