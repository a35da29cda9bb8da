"""Whole pipelines on a CUDA device: half precision, networks, control and offloading draw what the CPU draws, every
weight comes back, and nothing between a call's first and last model evaluation waits for the device."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from recordings import GOLDEN
from safetensors.torch import save_file
from tiny_union import union_network
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline


pytestmark = pytest.mark.gpu
DEVICE = "cuda"
MODELS = {"SD": "tiny-sd", "SDXL": "tiny-sdxl-e2e"}
CONTROLNETS = {"SD": "tiny-controlnet", "SDXL": "tiny-controlnet-xl"}
OFFLOADING = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")
# The mean difference from the float32 picture of the CPU, pixels in 0..1; cuDNN's convolutions round to TF32.
NEAR = {torch.float32: 0.002, torch.float16: 0.01, torch.bfloat16: 0.05}
CONTROL = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
CALL = {"negative_prompt": "dark", "seed": 3, "sampler": "DPM++ 2M", "num_inference_steps": 6, "output_type": "np"}
EDITED = "a (red:1.2) [circle:square:0.5] in [snow|rain] AND a blue sky :0.4"


def loaded(kind: str, dtype: torch.dtype = torch.float32, control: bool = False) -> WebUITxt2ImgPipeline:
    """A tiny pipeline on the CPU."""
    more = {"safety_checker": None} if kind == "SD" else {}
    if control:
        folder = GOLDEN / "controlnet" / "models" / CONTROLNETS[kind]
        more["controlnet"] = ControlNetModel.from_pretrained(folder).to(dtype)
    pipe = WebUITxt2ImgPipeline.from_pretrained(GOLDEN / MODELS[kind], dtype=dtype, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder for each kind with two Kohya files, first and second, of its UNet's and text encoders' layers."""
    folders = {}
    for kind in MODELS:
        folders[kind] = tmp_path_factory.mktemp(kind)
        pipe = loaded(kind)
        prefixes = {"unet": "lora_unet", "text_encoder": "lora_te" if kind == "SD" else "lora_te1"}
        prefixes |= {} if kind == "SD" else {"text_encoder_2": "lora_te2"}
        for seed, name in enumerate(("first", "second")):
            draw, tensors = torch.Generator().manual_seed(seed), {}
            for model, prefix in prefixes.items():
                for key, module in getattr(pipe, model).named_modules():
                    if isinstance(module, torch.nn.Linear) and key.endswith(("to_q", "to_v", "ff.net.2", "fc1")):
                        text = "" if model == "unet" or key.startswith("text_model.") else "text_model_"
                        stem = f"{prefix}_{text}{key.replace('.', '_')}"
                        up, down = (module.out_features, 2), (2, module.in_features)
                        tensors[f"{stem}.lora_up.weight"] = torch.randn(up, generator=draw) * 0.3
                        tensors[f"{stem}.lora_down.weight"] = torch.randn(down, generator=draw) * 0.3
            save_file(tensors, folders[kind] / f"{name}.safetensors")
    return folders


def drawn(pipe, prompt: str = EDITED, **given) -> np.ndarray:
    torch.manual_seed(0)  # the VAE's encoder draws from torch's own generator, as in the webui
    images = np.asarray(pipe(prompt, **{**CALL, **given}).images)
    assert np.isfinite(images).all()
    return images


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).mean())


def weights(pipe) -> dict[str, torch.Tensor]:
    models = {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }


def assert_same_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert not [key for key in wanted if not torch.equal(found[key], wanted[key])]


@pytest.fixture(scope="module")
def on_the_cpu(networks):
    """What the CPU draws in float32, by the arguments of `loaded` and `drawn`; each once."""
    pipes, pictures = {}, {}

    def draw(kind: str, control: bool = False, **given) -> np.ndarray:
        if (kind, control) not in pipes:
            pipes[kind, control] = loaded(kind, control=control)
            pipes[kind, control].lora_folder = str(networks[kind])
        key = (kind, control, repr(sorted(given)))
        if key not in pictures:
            pictures[key] = drawn(pipes[kind, control], **given)
        return pictures[key]

    return draw


@contextmanager
def evaluations_counted(unet: torch.nn.Module):
    """Gives a list that gets an entry when an evaluation of the UNet ends."""
    ended = []
    hook = unet.register_forward_hook(lambda *_: ended.append(1))
    try:
        yield ended
    finally:
        hook.remove()


@contextmanager
def no_waiting_between_evaluations(unet: torch.nn.Module, evaluations: int, first: int = 1):
    """From the start of the UNet's first evaluation, or a later one, to the end of the last, waiting for the device is
    an error."""

    def begin(*_):
        if len(ended) == first - 1:
            torch.cuda.set_sync_debug_mode("error")

    def end(*_):
        if len(ended) == evaluations:
            torch.cuda.set_sync_debug_mode("default")

    with evaluations_counted(unet) as ended:
        hooks = [unet.register_forward_pre_hook(begin), unet.register_forward_hook(end)]
        try:
            yield
            assert len(ended) == evaluations
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for hook in hooks:
                hook.remove()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", NEAR)
def test_a_card_draws_the_cpus_picture_in_every_precision(kind, dtype, on_the_cpu):
    pipe = loaded(kind, dtype).to(DEVICE)
    assert difference(drawn(pipe), on_the_cpu(kind)) < NEAR[dtype]


@pytest.mark.parametrize("kind", MODELS)
def test_networks_on_a_card_draw_the_cpus_picture_and_leave_every_bit(kind, on_the_cpu, networks):
    prompt = f"{EDITED}<lora:first:0.8><lora:second:0.5>"
    pipe = loaded(kind).to(DEVICE)
    pipe.lora_folder = str(networks[kind])
    before, plain = weights(pipe), drawn(pipe)
    for backend in ("webui", "peft"):
        wanted = on_the_cpu(kind, prompt=prompt, lora_backend=backend)
        assert difference(drawn(pipe, prompt, lora_backend=backend), wanted) < NEAR[torch.float32], backend
        assert_same_weights(weights(pipe), before)
        assert difference(wanted, plain) > 5 * NEAR[torch.float32]  # they change the picture


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_that_stay_on_leave_every_bit_in_half_precision(dtype, networks):
    pipe = loaded("SD", dtype).to(DEVICE)
    pipe.lora_folder = str(networks["SD"])
    before, plain = weights(pipe), drawn(pipe)
    pipe.keep_networks = True
    first = drawn(pipe, f"{EDITED}<lora:first:0.8>")
    assert np.array_equal(drawn(pipe, f"{EDITED}<lora:first:0.8>"), first) and not np.array_equal(first, plain)
    pipe.unload_networks()
    assert_same_weights(weights(pipe), before)
    assert np.array_equal(drawn(pipe), plain)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("offload", OFFLOADING)
def test_offloaded_models_draw_with_networks_and_get_every_bit_back(kind, offload, on_the_cpu, networks):
    prompt = f"{EDITED}<lora:first:0.8><lora:second:0.5>"
    pipe = loaded(kind)
    pipe.lora_folder = str(networks[kind])
    before = weights(pipe)
    getattr(pipe, offload)(device=DEVICE)
    for given in ({}, {"prompt": prompt}, {"prompt": prompt, "hires_scale": 1.5, "hires_steps": 3}, {}):
        assert difference(drawn(pipe, **given), on_the_cpu(kind, **given)) < NEAR[torch.float32], given
    pipe.remove_all_hooks()
    pipe.to("cpu")
    assert_same_weights(weights(pipe), before)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("offload", [None, *OFFLOADING])
def test_control_draws_the_cpus_picture_offloaded_or_not(kind, offload, on_the_cpu, networks):
    given = {"control_units": [{"image": CONTROL, "control_mode": 2, "guidance_end": 0.8}]}
    with_network = {**given, "prompt": f"{EDITED}<lora:first:0.8>"}
    pipe = loaded(kind, control=True)
    pipe.lora_folder = str(networks[kind])
    before = weights(pipe)
    if offload:
        getattr(pipe, offload)(device=DEVICE)
    else:
        pipe.to(DEVICE)
    for each in (given, with_network):
        assert difference(drawn(pipe, **each), on_the_cpu(kind, control=True, **each)) < NEAR[torch.float32]
    pipe.remove_all_hooks()
    assert_same_weights(weights(pipe.to("cpu")), before)


@pytest.mark.parametrize("offload", [None, *OFFLOADING])
def test_img2img_draws_the_cpus_picture_offloaded_or_not(offload):
    given = {"image": CONTROL, "strength": 0.6, "mask_image": CONTROL.convert("L").point(lambda x: 255 * (x > 90))}
    wanted = drawn(WebUIImg2ImgPipeline.from_pipe(loaded("SD")), **given)
    pipe = WebUIImg2ImgPipeline.from_pipe(loaded("SD"))
    pipe.set_progress_bar_config(disable=True)
    if offload:
        getattr(pipe, offload)(device=DEVICE)
    else:
        pipe.to(DEVICE)
    assert difference(drawn(pipe, **given), wanted) < 0.005  # a card's encoder draws other noise


@pytest.mark.parametrize("source", ["gpu", "cpu", "nv"])
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M SDE", "DDIM", "UniPC"])
@pytest.mark.parametrize("kind", MODELS)
def test_no_step_of_a_whole_call_waits_for_the_device(kind, sampler, source):
    assert_no_step_waits(loaded(kind, torch.float16).to(DEVICE), sampler=sampler, noise_source=source)


MASK = CONTROL.convert("L").point(lambda x: 255 * (x > 90))
SECOND = CONTROL.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
ANCESTRAL = {"sampler": "Euler a"}
GUIDED = {
    "several texts": {"prompt": [EDITED, "a hen AND a fox :0.3"], "negative_prompt": ["dark", "[red|blue]"]},
    "several images": {"num_images_per_prompt": 3, "seed": [1, 2, 3], "subseed": 4, "subseed_strength": 0.3},
    "rescaled guidance": {"guidance_rescale": 0.7},
    "PAG": {"pag_scale": 2.0, "pag_adaptive_scale": 0.001},
    "FreeU": {"freeu": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}},
    "uncond left out": {"webui_options": {"s_min_uncond": 4.0, "skip_early_cond": 0.2}},
    "sides apart": {"webui_options": {"batch_cond_uncond": False}, "prompt": "a fox, " * 40},
    "v-prediction of timesteps": {"sampler": "DDIM CFG++"},
    "diffusers' scheduler": {"sampler": None},
}
PAINTED = {
    "mask": {"mask_image": MASK},
    "soft mask": {"mask_image": MASK, "soft_inpainting": True},
    "mask and timesteps": {"mask_image": MASK, "sampler": "DDIM"},
}
CONTROLLED = {
    "unit": [{"image": CONTROL, "guidance_end": 0.8}],
    "unit of the prompt": [{"image": CONTROL, "control_mode": 2}],
    "two units": [{"image": CONTROL, "weight": 0.5}, {"image": SECOND, "guidance_start": 0.3, "model": "again"}],
    "region": [{"image": CONTROL, "effective_region_mask": MASK}],
    "inpaint_only": [{"image": CONTROL, "mask": MASK, "module": "inpaint_only"}],
}


def assert_no_step_waits(pipe, first: int = 1, **given) -> None:
    with evaluations_counted(pipe.unet) as ended:
        expected = drawn(pipe, **given)
    with no_waiting_between_evaluations(pipe.unet, len(ended), first):
        again = drawn(pipe, **given)
    assert np.array_equal(again, expected)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("given", GUIDED.values(), ids=list(GUIDED))
def test_no_kind_of_guidance_waits_for_the_device(kind, given):
    pipe = loaded(kind, torch.float16).to(DEVICE)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)  # PNDM's own step waits
    assert_no_step_waits(pipe, **{**ANCESTRAL, **given})


@pytest.mark.parametrize("given", PAINTED.values(), ids=list(PAINTED))
def test_no_step_of_img2img_waits_for_the_device(given):
    pipe = WebUIImg2ImgPipeline.from_pipe(loaded("SD", torch.float16).to(DEVICE))
    pipe.set_progress_bar_config(disable=True)
    assert_no_step_waits(pipe, image=CONTROL, strength=0.7, **{**ANCESTRAL, **given})


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("units", CONTROLLED.values(), ids=list(CONTROLLED))
def test_no_step_under_units_waits_for_the_device(kind, units):
    pipe = loaded(kind, torch.float16, control=True).to(DEVICE)
    pipe.add_controlnet(pipe.controlnet, "again")
    keeps = units[0].get("module") == "inpaint_only"  # the first evaluation encodes what is kept, and looks at it
    assert_no_step_waits(pipe, first=2 if keeps else 1, control_units=units, **ANCESTRAL)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("guess_mode", [False, True])
def test_no_step_under_a_control_image_waits_for_the_device(kind, guess_mode):
    pipe = loaded(kind, torch.float16, control=True).to(DEVICE)
    assert_no_step_waits(pipe, control_image=CONTROL, guess_mode=guess_mode, num_images_per_prompt=2, **ANCESTRAL)


def test_no_step_under_a_union_network_waits_for_the_device():
    pipe = WebUITxt2ImgPipeline.from_pipe(loaded("SDXL", torch.float16), controlnet=union_network().half())
    pipe.set_progress_bar_config(disable=True)
    units = [{"image": CONTROL, "union_control_type": "lineart"}]
    assert_no_step_waits(pipe.to(DEVICE), control_units=units, **ANCESTRAL)


def test_no_step_of_an_inpainting_unet_waits_for_the_device():
    pipe = loaded("SD")
    pipe.register_modules(unet=UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}).eval())
    pipe = WebUIImg2ImgPipeline.from_pipe(pipe).to(DEVICE, torch.float16)
    pipe.set_progress_bar_config(disable=True)
    assert_no_step_waits(pipe, image=CONTROL, mask_image=MASK, strength=0.7, **ANCESTRAL)
