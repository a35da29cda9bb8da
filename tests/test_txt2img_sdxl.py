"""WebUITxt2ImgPipeline where StableDiffusionXLPipeline stood, and what the webui's story adds for SDXL."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from recordings import GOLDEN
from safetensors.torch import load_file
from tiny_models import NO_CARD_TO_EMPTY, pipeline_around, pipeline_with_copies
from webui_diffusers.pipelines import PromptEncoder, WebUITxt2ImgPipeline


SCHEDULERS = [
    PNDMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]
SETTINGS = {PNDMScheduler: {"skip_prk_steps": True}}  # as models come with it; else it takes twelve runs to begin
CALL = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "np"}
LATENT = {**CALL, "output_type": "latent"}
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def loaded(cls: type, folder: Path, **kwargs) -> DiffusionPipeline:
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in this folder of recordings")
    pipe = cls.from_pretrained(folder, dtype=torch.float32, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def stock() -> StableDiffusionXLPipeline:
    return loaded(StableDiffusionXLPipeline, GOLDEN / "tiny-sdxl-e2e")


@pytest.fixture
def theirs() -> StableDiffusionXLPipeline:
    return stock()


@pytest.fixture
def ours(theirs) -> WebUITxt2ImgPipeline:
    """A new pipeline around the same components."""
    pipe = WebUITxt2ImgPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def same_scheduler(theirs):
    """Tests may give the shared pipeline another scheduler."""
    before = theirs.scheduler
    yield
    theirs.scheduler = before


# ---- diffusers' own pictures


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_diffusers_arguments_alone_give_diffusers_picture(theirs, ours, scheduler):
    pictures = []
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **SETTINGS.get(scheduler, {}))
        pictures.append(
            pipe(["a red circle", "a blue square"], negative_prompt=["", "dark"], generator=seeded(), **CALL).images
        )
    assert np.array_equal(*pictures)


OWN_ARGUMENTS = [
    {"original_size": (128, 96), "target_size": (80, 64), "crops_coords_top_left": (16, 8)},
    {"negative_original_size": (32, 32), "negative_target_size": (96, 64), "negative_crops_coords_top_left": (8, 0)},
    {"negative_original_size": (32, 32), "crops_coords_top_left": (0, 24)},
    {"prompt_2": "a green star", "negative_prompt": "dark", "negative_prompt_2": "blurry"},
    {"denoising_end": 0.6, "output_type": "latent"},
    {"guidance_rescale": 0.7},
    {"clip_skip": 1},
    {"num_images_per_prompt": 2, "eta": 0.5},
    {"guidance_scale": 1.0},
    {"timesteps": [900, 600, 300, 1]},
    {"sigmas": [14.0, 5.0, 1.0]},
    {"width": 96, "height": 48},
]


def drawn_with(pipe: DiffusionPipeline, arguments: dict, prompt: str = "a red circle") -> torch.Tensor:
    """Latents of a call with some of diffusers' arguments, around its Euler scheduler."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    generator = [seeded(3), seeded(4)] if "num_images_per_prompt" in arguments else seeded()
    return pipe(prompt, **{**LATENT, **arguments}, generator=generator).images


@cache
def stock_with(row: int | None) -> torch.Tensor:
    """The same by diffusers' pipeline, for a row of OWN_ARGUMENTS; None: for no arguments."""
    return drawn_with(stock(), {} if row is None else OWN_ARGUMENTS[row])


ROWS = pytest.mark.parametrize("row", range(len(OWN_ARGUMENTS)), ids=["-".join(a) for a in OWN_ARGUMENTS])


@ROWS
def test_each_argument_of_diffusers_means_what_it_means_there(ours, row):
    expected, plain = stock_with(row), stock_with(None)
    assert torch.equal(drawn_with(ours, OWN_ARGUMENTS[row]), expected)
    assert plain.shape != expected.shape or not torch.equal(plain, expected)


# ---- the same arguments on our road: a prompt with an edit that changes nothing


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_our_loop_around_a_scheduler_is_diffusers_loop(theirs, ours, scheduler):
    noise = torch.randn((1, 4, 8, 8), generator=seeded(1))
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **SETTINGS.get(scheduler, {}))
    given = {"latents": noise, **LATENT, "num_inference_steps": 4}
    expected = theirs("a red circle", generator=seeded(5), **given).images
    actual = ours("a red [circle:circle:0.5]", generator=seeded(5), **given).images
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@ROWS
def test_each_argument_means_the_same_on_our_road(ours, row):
    actual = drawn_with(ours, OWN_ARGUMENTS[row], "a red [circle:circle:0.5]")
    torch.testing.assert_close(actual, stock_with(row), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [{}, *OWN_ARGUMENTS[:3], {"guidance_rescale": 0.7}], ids=str)
def test_euler_by_name_is_diffusers_euler_at_equal_sigmas_and_noise(theirs, ours, sizes):
    theirs.scheduler = EulerDiscreteScheduler.from_config(theirs.scheduler.config, timestep_spacing="linspace")
    noise = torch.randn((1, 4, 8, 8), generator=seeded(1))
    given = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent", **sizes}
    expected = theirs("a red circle", latents=noise, **given).images
    theirs.scheduler.set_timesteps(3)
    start = noise * theirs.scheduler.init_noise_sigma / theirs.scheduler.sigmas[0]
    actual = ours("a red circle", latents=start, sampler="Euler", seed=1, **given).images
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# ---- texts


@pytest.mark.parametrize("negative", [None, "blurry", "a dark night, grainy"])
@pytest.mark.parametrize("prompt", ["a red circle", "", "two red circles, on a field of blue"])
def test_a_plain_prompt_is_encoded_as_diffusers_does(theirs, prompt, negative):
    expected = theirs.encode_prompt(prompt, device="cpu", negative_prompt=negative)
    encoded = PromptEncoder.from_pipe(theirs)(prompt, negative)
    for name, tensor in zip(EMBEDS, expected, strict=True):
        assert torch.equal(encoded[name], tensor), name


def test_another_pipeline_draws_from_our_encoding(theirs):
    encoder = PromptEncoder.from_pipe(theirs)
    plain = theirs("a red circle", negative_prompt="dark", generator=seeded(), **CALL).images
    assert np.array_equal(theirs(**encoder("a red circle", "dark"), generator=seeded(), **CALL).images, plain)
    weighted = encoder("a (red:1.4) circle, " * 30, "blurry")
    assert weighted["prompt_embeds"].shape == weighted["negative_prompt_embeds"].shape == (1, 2 * 77, 64)
    assert not np.allclose(theirs(**weighted, generator=seeded(), **CALL).images, plain, atol=1e-2)
    with pytest.raises(ValueError, match="more than one encoding"):
        encoder("[a:b:0.5]")


def test_an_empty_negative_prompt_is_nothing_only_where_both_texts_are_empty(theirs):
    encoder = PromptEncoder.from_pipe(theirs)
    assert not encoder("a", "")["negative_prompt_embeds"].any()
    halves = encoder("a", "", negative_prompt_2="dark")["negative_prompt_embeds"].chunk(2, dim=-1)
    assert torch.equal(halves[0], encoder("", "x")["prompt_embeds"].chunk(2, dim=-1)[0]) and halves[1].any()


def test_a_second_text_is_read_by_the_second_encoder_alone(theirs):
    encoder = PromptEncoder.from_pipe(theirs)
    first, second = encoder("a red circle", "dark"), encoder("a (blue:1.3) square", "blurry")
    both = encoder("a red circle", "dark", prompt_2="a (blue:1.3) square", negative_prompt_2="blurry")
    for name in EMBEDS[:2]:
        assert torch.equal(both[name], torch.cat([first[name].chunk(2, -1)[0], second[name].chunk(2, -1)[1]], -1))
    for name in EMBEDS[2:]:
        assert torch.equal(both[name], second[name])
    expected = theirs.encode_prompt("a red circle", "a blue square", negative_prompt="x", negative_prompt_2="y z")
    plain = encoder("a red circle", "x", prompt_2="a blue square", negative_prompt_2="y z")
    assert all(torch.equal(plain[name], tensor) for name, tensor in zip(EMBEDS, expected, strict=True))


SAME = [
    ({"prompt": "[a:b:0.5] AND c"}, {"prompt": "[a:b:0.5] AND c", "prompt_2": "[a:b:0.5] AND c"}),
    ({"prompt": "a", "prompt_2": "[x:y:0.5]"}, {"prompt": "[a:a:0.25]", "prompt_2": ["[x:y:0.5]"]}),
    ({"prompt": "a", "negative_prompt": "dark"}, {"prompt": "a", "negative_prompt": "dark", "prompt_2": "a"}),
    ({"prompt": "a", "prompt_2": ""}, {"prompt": "a"}),
    ({"prompt": ["a", "b"], "prompt_2": "x"}, {"prompt": ["a", "b"], "prompt_2": ["x", "x"]}),
]


@pytest.mark.parametrize("one, other", SAME, ids=range(len(SAME)))
def test_second_texts_follow_the_grammar(ours, one, other):
    """Pairs of calls that must say the same; the second of them draws a picture of its own."""
    given = {"seed": 1, "sampler": "Euler", **LATENT}
    expected = ours(**other, **given).images
    assert torch.allclose(ours(**one, **given).images, expected, atol=1e-5)
    changed = ours(**{**other, "prompt_2": "a large green star"}, **given).images
    assert not torch.allclose(changed, expected, atol=1e-3)


def test_a_second_text_holds_in_the_hires_pass_and_its_tags_count(ours, golden):
    given = {"seed": 1, "sampler": "Euler", "hires_scale": 1.5, **LATENT}
    plain = ours("a", **given).images
    assert torch.equal(plain, ours("a", prompt_2="a", **given).images)
    assert not torch.allclose(plain, ours("a", prompt_2="a green star", **given).images, atol=1e-3)
    assert not torch.allclose(ours("a", hires_prompt="b", prompt_2="star", **given).images, plain, atol=1e-3)
    if (golden / "lora" / "xl_kohya.safetensors").is_file():
        ours.add_lora(golden / "lora" / "xl_kohya.safetensors", "xl")
        tagged = ours("a", prompt_2="a<lora:xl:1>", **LATENT, seed=1, sampler="Euler").images
        assert torch.equal(tagged, ours("a<lora:xl:1>", **LATENT, seed=1, sampler="Euler").images)


# ---- embeddings that stand for texts


def test_given_embeddings_stand_for_a_prompt(theirs, ours):
    encoded = PromptEncoder.from_pipe(theirs)("a red circle", "dark")
    given = {"seed": 1, "sampler": "Euler", **CALL}
    expected = ours("a red circle", negative_prompt="dark", **given).images
    assert np.array_equal(ours(**encoded, **given).images, expected)
    positive = {name: encoded[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    assert np.array_equal(ours(**positive, negative_prompt="dark", **given).images, expected)
    assert np.array_equal(ours(**positive, **given).images, ours("a red circle", **given).images)


def test_no_text_encoders_are_needed_beside_embeddings(theirs, ours):
    encoded = PromptEncoder.from_pipe(theirs)("a red circle", "dark")
    bare = {**theirs.components, "text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    pipe, reference = WebUITxt2ImgPipeline(**bare), StableDiffusionXLPipeline(**bare)
    for one in (pipe, reference):
        one.set_progress_bar_config(disable=True)
    expected = reference(**encoded, generator=seeded(), **CALL).images
    assert np.array_equal(pipe(**encoded, generator=seeded(), **CALL).images, expected)
    given = {"seed": 1, "sampler": "Euler", **CALL}
    assert np.array_equal(pipe(**encoded, **given).images, ours(**encoded, **given).images)
    with pytest.raises(ValueError, match="text encoder"):
        pipe("a red circle", **given)


# ---- made from each other, and what is done with components


def test_pipelines_are_made_from_each_other(theirs, ours):
    made = WebUITxt2ImgPipeline.from_pipe(theirs)
    back = StableDiffusionXLPipeline.from_pipe(made)
    assert (
        made.unet is theirs.unet is back.unet and made.text_encoder_2 is back.text_encoder_2 is theirs.text_encoder_2
    )
    assert StableDiffusionXLImg2ImgPipeline.from_pipe(ours).vae is theirs.vae
    back.set_progress_bar_config(disable=True)
    expected = theirs("a red circle", generator=seeded(), **CALL).images
    assert np.array_equal(back("a red circle", generator=seeded(), **CALL).images, expected)


def test_the_refiner_is_a_component(theirs, tiny_sdxl, tiny_sdxl_refiner, ours, tmp_path):
    if not tiny_sdxl_refiner.is_dir():
        pytest.skip("no tiny refiner in this folder of recordings")
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl_refiner, subfolder="unet")
    given = {"seed": 1, "sampler": "Euler", "refiner_switch_at": 0.5, **CALL}
    with pytest.raises(ValueError, match="no refiner"):
        ours("a red circle", **given)
    loaded_with = loaded(WebUITxt2ImgPipeline, tiny_sdxl, refiner=unet, **theirs.components)
    ours.register_modules(refiner=unet)
    expected = ours("a red circle", negative_prompt="dark", **given).images
    assert np.array_equal(loaded_with("a red circle", negative_prompt="dark", **given).images, expected)
    never = {**given, "refiner_switch_at": 1.0}
    assert not np.allclose(expected, ours("a red circle", negative_prompt="dark", **never).images, atol=1e-3)
    encoded = PromptEncoder.from_pipe(ours)("a red circle", "dark")
    assert np.array_equal(ours(**encoded, **given).images, expected)
    loaded_with.save_pretrained(tmp_path)
    again = loaded(WebUITxt2ImgPipeline, tmp_path, trust_remote_code=True)
    assert np.array_equal(again("a red circle", negative_prompt="dark", **given).images, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same(ours, dtype):
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e").to(dtype)
    given = {"prompt": "a (red:1.2) circle", "seed": 1, "sampler": "DPM++ 2M", "width": 32, "height": 32, **CALL}
    tolerance, expected = 0.01 if dtype == torch.float16 else 0.05, ours(**given).images
    assert np.abs(pipe(**given).images - expected).mean() < tolerance
    pipe.text_encoder_2.to(torch.float32)  # encoders may differ in dtype from each other and from the UNet
    assert np.abs(pipe(**given).images - expected).mean() < tolerance


@pytest.mark.parametrize("announced", [False, True])
def test_a_vae_that_overflows_draws_in_float32_and_that_is_remembered(ours, caplog, announced):
    """Weights scaled so that activations in between pass 65504; SDXL's own VAE does so in float16, and says so."""
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e")
    pipe.vae.register_to_config(force_upcast=announced)
    pipe.vae.decoder.conv_in.weight.data *= 3e4
    pipe.vae.decoder.conv_in.bias.data *= 3e4
    given = {"prompt": ["a red circle", "a star"], "seed": 1, "sampler": "Euler", **CALL}
    expected = pipe(**given).images
    pipe.vae.half()
    runs = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: runs.append(inputs[0].dtype))
    with caplog.at_level("WARNING", logger="webui_diffusers"):
        actual = pipe(**given).images
        told = [r.getMessage() for r in caplog.records if "overflowed" in r.getMessage()]
        pipe(**given)
    assert len(told) == (0 if announced else 1) and len(told) == len(
        [r for r in caplog.records if "overflowed" in r.getMessage()]
    )
    assert runs == [torch.float16] * (not announced) + [torch.float32] * 4
    assert pipe.vae.dtype == torch.float16
    assert np.isfinite(actual).all() and np.abs(actual - expected).mean() < 0.01


def test_hires_and_tiling_leave_the_model_as_it_was(ours):
    modes = [m.padding_mode for m in ours.unet.modules() if isinstance(m, torch.nn.Conv2d)]
    given = {"seed": 1, "sampler": "DPM++ 2M", **CALL}
    plain = ours("a red circle", **given).images
    tiled = ours("a red circle", tiling=True, **given).images
    assert not np.allclose(plain, tiled, atol=1e-3)
    for upscaler in ("Latent", "Lanczos"):
        assert ours("a", hires_scale=1.5, hires_upscaler=upscaler, tiling=True, **given).images.shape == (1, 96, 96, 3)
    assert [m.padding_mode for m in ours.unet.modules() if isinstance(m, torch.nn.Conv2d)] == modes
    assert np.array_equal(ours("a red circle", **given).images, plain)


LORAS = ["xl_kohya", "xl_oft_kohya", "xl_te2_partial", "xl_diffusers"]


@pytest.mark.parametrize("name", LORAS)
def test_sdxl_networks_are_switched_on_by_tags_and_arguments(ours, golden, name):
    path = golden / "lora" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {name} in this folder of recordings")
    ours.add_lora(path, "style")
    given = {"seed": 1, "sampler": "Euler", **LATENT}
    before = {key: value.clone() for key, value in ours.unet.state_dict().items()}
    tagged = ours("a red circle<lora:style:0.8:0.5>", **given).images
    assert torch.equal(tagged, ours("a red circle", loras=[("style", 0.8, 0.5)], **given).images)
    assert not torch.allclose(tagged, ours("a red circle", **given).images, atol=1e-3), ours.network_report()
    assert all(torch.equal(value, before[key]) for key, value in ours.unet.state_dict().items())


def recorded_networks():
    path = GOLDEN / "lora" / "cases.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() and (GOLDEN / "tiny-sdxl").is_dir() else {}
    for name, case in cases.items():
        for key, setting in case["settings"].items():
            if case["base"] == "sdxl" and (GOLDEN / "lora" / setting["delta"]).is_file():
                yield pytest.param(case["file"], setting, id=f"{name}-{key}")


@pytest.mark.goldens
@pytest.mark.parametrize("way", ["tag", "loras"])
@pytest.mark.parametrize("file, setting", list(recorded_networks()))
def test_networks_are_in_the_weights_as_recorded_while_a_picture_is_drawn(recorded_pipe, file, setting, way):
    pipe, te, unet = recorded_pipe, setting["te"], setting["unet"]
    pipe.add_lora(GOLDEN / "lora" / file, "style")
    before = {f"unet.{name}": value.clone() for name, value in pipe.unet.named_parameters()}
    seen = {}

    def look(pipe, i, t, tensors):
        seen.update({f"unet.{name}": value.clone() for name, value in pipe.unet.named_parameters()})
        return {}

    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 1, "output_type": "latent", "width": 64}
    given |= {"callback_on_step_end": look, "height": 64}
    if way == "tag":
        pipe(f"a<lora:style:{te}:{unet}>", **given)
    else:
        pipe("a", loras=[("style", te, unet)], **given)
    deltas = load_file(GOLDEN / "lora" / setting["delta"])
    whole = {name: delta for name, delta in deltas.items() if name in before}
    for name, delta in whole.items():
        assert (seen[name] - before[name] - delta).abs().max() <= 1e-4 * delta.abs().max(), name
    changed = {name for name in before if not torch.equal(before[name], seen[name])}
    assert changed == {n for n in before if any(d == n or d.rpartition(".")[0] == n for d in deltas)}


@pytest.fixture(scope="module")
def recorded_pipe():
    """The model that the networks were recorded on."""
    return loaded(WebUITxt2ImgPipeline, GOLDEN / "tiny-sdxl")


@pytest.mark.parametrize("kind", ["sequential", pytest.param("model", marks=NO_CARD_TO_EMPTY)])
def test_offloaded_components_draw_the_same(kind):
    """The hooks of `enable_sequential_cpu_offload` and `enable_model_cpu_offload`, with the CPU as the device."""
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e")
    models, hook = [pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae], None
    for model in models:
        if kind == "sequential":
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
        else:
            _, hook = cpu_offload_with_hook(model, torch.device("cpu"), prev_module_hook=hook)
            pipe._all_hooks = [*getattr(pipe, "_all_hooks", []), hook]
    for drawn, expected in zip(offload_pictures(pipe), shared_pictures(), strict=True):
        assert np.array_equal(drawn, expected)


def offload_pictures(pipe: WebUITxt2ImgPipeline) -> list[np.ndarray]:
    """A plain text in one pass, a weighted one in two, and diffusers' own way."""
    given = {"seed": 1, "sampler": "Euler", **CALL}
    return [
        pipe("a red circle", **given).images,
        pipe("a (red:1.2) circle", hires_scale=1.5, hires_upscaler="Lanczos", **given).images,
        pipe("a red circle", generator=seeded(), **CALL).images,
    ]


@cache
def shared_pictures() -> list[np.ndarray]:
    return offload_pictures(pipeline_around(WebUITxt2ImgPipeline, "tiny-sdxl-e2e"))


def test_a_callback_is_shown_what_sdxl_is_told(ours):
    # both halves of the batch, the unconditional one first, as in diffusers
    shapes = {"latents": (2, 4, 8, 8), "prompt_embeds": (4, 77, 64), "add_text_embeds": (4, 32)}

    def look(pipe, i, t, tensors):
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {}

    for sampler in ("Euler", None):
        seen = []
        given = {"seed": 1, "sampler": sampler, "num_inference_steps": 2, "callback_on_step_end": look}
        ours(["(a:1.1)", "b"], callback_on_step_end_tensor_inputs=list(shapes), **given)
        assert seen == [shapes, shapes]


# ---- errors

REFUSED = [
    ({"callback_on_step_end_tensor_inputs": ["latent"], "seed": 1}, "latents"),
    ({"timesteps": [900, 500], "sampler": "Euler"}, "timesteps"),
    ({"sigmas": [14.0, 1.0], "sampler": "Euler"}, "sigmas"),
    ({"denoising_end": 0.5, "sampler": "Euler"}, "denoising_end"),
    ({"denoising_end": 0.5, "seed": 1, "hires_scale": 2}, "hires"),
    ({"denoising_end": 1.5, "seed": 1}, "denoising_end"),
    ({"timesteps": [900, 500], "sigmas": [14.0, 1.0], "seed": 1}, "both given"),
    ({"prompt_2": "x AND y AND z", "prompt": "a AND b", "seed": 1}, "pieces"),
    ({"prompt_2": ["x", "y"], "seed": 1}, "prompt_2"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 64), "sampler": "Euler"}, "pooled_prompt_embeds"),
]


@pytest.mark.parametrize("arguments, told", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_drawn_is_refused_before_any_work(ours, arguments, told):
    ran = []
    handle = ours.unet.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=told):
        ours(**{"prompt": "a", "num_inference_steps": 2, **arguments})
    handle.remove()
    assert not ran
