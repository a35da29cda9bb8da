"""ControlNets beside everything else: offloading, compiled models, networks, callbacks, faces, other pipelines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    ConfigMixin,
    ControlNetModel,
    ModelMixin,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.configuration_utils import register_to_config
from peft import LoraConfig
from PIL import Image
from recordings import GOLDEN
from safetensors.torch import save_file
from tiny_models import NO_CARD_TO_EMPTY, pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline


MODELS = GOLDEN / "controlnet" / "models"
FACES = Path(__file__).parent / "golden" / "faces" / "in"


def noise_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


CONTROL, OTHER = noise_image(1), noise_image(2)
UNIT = {"image": CONTROL, "control_mode": 2}


def network(name: str = "tiny-controlnet") -> ControlNetModel:
    return ControlNetModel.from_pretrained(MODELS / name)


def loaded(control, model: str = "tiny-sd", kind: type = WebUITxt2ImgPipeline):
    return pipeline_with_copies(kind, model, controlnet=control)


@pytest.fixture(scope="module")
def sd():
    return loaded([network(), network("tiny-controlnet-2")])


@pytest.fixture
def own():
    """A pipeline that a test may change."""
    return loaded(network())


def latents(pipe, **given):
    call = {"prompt": "a (red:1.2) circle", "seed": 7, "sampler": "Euler a", "num_inference_steps": 2, **given}
    return pipe(**call, output_type="latent").images


def drawn(pipe, **given):
    call = {"prompt": "a red circle", "num_inference_steps": 2, **given}
    return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(5), output_type="np").images)


# --- where models are


def offloaded(pipe, kind: str):
    """The hooks of `enable_sequential_cpu_offload` and `enable_model_cpu_offload`, with the CPU as the device."""
    chain, hook = [pipe.text_encoder, pipe.unet, pipe.vae], None
    for model in (*chain, pipe.controlnet):
        if kind == "sequential":
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
            continue
        _, hook = cpu_offload_with_hook(model, torch.device("cpu"), prev_module_hook=hook if model in chain else None)
        pipe._all_hooks = [*getattr(pipe, "_all_hooks", []), hook]
    return pipe


@pytest.mark.parametrize("kind", ["sequential", pytest.param("model", marks=NO_CARD_TO_EMPTY)])
def test_offloaded_networks_draw_the_same(expected_pictures, kind):
    pipe = offloaded(loaded([network(), network("tiny-controlnet-2")]), kind)
    for ours, expected in zip(drawn_in_three_ways(pipe), expected_pictures, strict=True):
        assert np.allclose(ours, expected, atol=1e-5)


def drawn_in_three_ways(pipe):
    """Under units in two passes, under diffusers' arguments with a sampler, and as diffusers draws."""
    units, both = [UNIT, {"image": OTHER, "weight": 0.5}], {"control_image": [CONTROL, OTHER]}
    hires = latents(pipe, control_units=units, num_inference_steps=1, hires_scale=1.5, hires_upscaler="Lanczos")
    return hires, latents(pipe, **both), drawn(pipe, **both)


@pytest.fixture(scope="module")
def expected_pictures(sd):
    return drawn_in_three_ways(sd)


def test_a_network_is_no_link_of_the_chain_of_offloading(sd):
    """It runs in turn with the UNet: as a link, each would put the other out at every step."""
    assert "controlnet" not in sd.model_cpu_offload_seq and "unet->" in sd.model_cpu_offload_seq
    assert "controlnet" not in sd._exclude_from_cpu_offload


@pytest.mark.slow
def test_compiled_models_draw_the_same(own):
    given = {"control_units": [UNIT]}
    wanted, plain = latents(own, **given), drawn(own, control_image=CONTROL)
    own.unet = torch.compile(own.unet, backend="eager")
    own.controlnet = torch.compile(own.controlnet, backend="eager")
    assert torch.allclose(latents(own, **given), wanted, atol=1e-5)
    assert np.allclose(drawn(own, control_image=CONTROL), plain, atol=1e-5)
    assert torch.allclose(
        latents(own, control_image=CONTROL), latents(own, control_units=[{"image": CONTROL}]), atol=1e-3
    )


def test_a_vae_that_works_in_tiles_decodes_what_was_drawn_under_control(own):
    given = {"control_units": [{**UNIT, "module": "inpaint_only", "mask": Image.new("L", (64, 64), 255)}]}
    large = {"width": 128, "height": 128, "output_type": "np", "seed": 1, "sampler": "Euler", "num_inference_steps": 2}
    whole = own("a circle", **large, **given).images
    own.vae.tile_sample_min_size, own.vae.tile_latent_min_size = 64, 8
    own.vae.enable_tiling()
    tiled = own("a circle", **large, **given).images
    assert tiled.shape == whole.shape and 0 < np.abs(tiled - whole).mean() < 0.2


# --- what changes the base model


def test_networks_act_on_the_base_and_leave_the_network_alone(own, tmp_path):
    weight = own.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    draw = torch.Generator().manual_seed(0)
    factors = {
        f"{layer}.lora_up.weight": torch.randn(len(weight), 2, generator=draw),
        f"{layer}.lora_down.weight": torch.randn(2, weight.shape[1], generator=draw),
    }
    save_file(factors, tmp_path / "style.safetensors")
    own.add_lora(tmp_path / "style.safetensors")
    given = {"control_units": [UNIT]}
    before, weights = latents(own, **given), {key: value.clone() for key, value in own.controlnet.state_dict().items()}
    for backend in ("webui", "peft"):
        changed = latents(own, **given, loras={"style": 1.0}, lora_backend=backend)
        assert not torch.allclose(changed, before, atol=1e-3)
        assert torch.allclose(latents(own, **given), before, atol=1e-5)
    assert all(torch.equal(value, weights[key]) for key, value in own.controlnet.state_dict().items())


def test_an_adapter_of_the_controlnet_itself_acts(own):
    """diffusers' own way to have a LoRA on a ControlNet; networks of ours do not go there."""
    before = latents(own, control_units=[UNIT])
    own.controlnet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    assert not torch.allclose(latents(own, control_units=[UNIT]), before, atol=1e-4)
    own.controlnet.disable_adapters()
    assert torch.allclose(latents(own, control_units=[UNIT]), before, atol=1e-5)


# --- what happens in between


def test_a_callback_may_change_latents_scale_and_mind(sd):
    given = {"control_units": [UNIT], "num_inference_steps": 4}
    steps = []

    def look(pipe, i, t, tensors):
        steps.append((i, tuple(tensors["latents"].shape), len(tensors["prompt_embeds"])))
        pipe._guidance_scale = 1.0 if i == 0 else pipe.guidance_scale  # no negative prompt from here on
        pipe._interrupt = i == 2
        return {"latents": tensors["latents"] * 0.5} if i == 1 else {}

    names = ["latents", "prompt_embeds"]
    changed = latents(sd, **given, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert steps == [(0, (1, 4, 8, 8), 2), (1, (1, 4, 8, 8), 1), (2, (1, 4, 8, 8), 1)]
    plain = latents(sd, **given)
    assert torch.isfinite(changed).all() and not torch.allclose(changed, plain, atol=1e-2)
    assert torch.equal(latents(sd, **given), plain)  # nothing of it is left


def test_a_stopped_first_pass_makes_no_second(sd):
    given = {"control_units": [UNIT], "hires_scale": 2}

    def stop(pipe, i, t, tensors):
        pipe._interrupt = True
        return {}

    assert latents(sd, **given, callback_on_step_end=stop).shape[-2:] == (8, 8)


class PaintedFace(ModelMixin, ConfigMixin):
    """Gives faces of one color, and counts them."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.color, self.faces = torch.nn.Parameter(torch.tensor([1.0, -1.0, -1.0])), 0

    def forward(self, face):
        self.faces += 1
        return self.color.view(1, 3, 1, 1).expand_as(face)


def test_faces_are_restored_in_images_drawn_under_control(own):
    photo = Image.open(FACES / "astro_320.png").convert("RGB").crop((60, 10, 252, 202))
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 16, 16))
    unit = {"image": photo, "mask": mask, "module": "inpaint_only"}  # what is not masked is kept
    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 1, "width": 192, "height": 192}
    own.face_restorer = PaintedFace()
    own("a circle", control_units=[unit], **given)
    assert own.face_restorer.faces == 0
    image = own("a circle", control_units=[unit], restore_faces="CodeFormer", **given).images[0]
    assert own.face_restorer.faces == 1
    assert np.abs(np.asarray(image)[119, 96].astype(int) - (255, 0, 0)).max() <= 2


# --- handed on


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (StableDiffusionControlNetPipeline, WebUITxt2ImgPipeline),
        (StableDiffusionControlNetImg2ImgPipeline, WebUIImg2ImgPipeline),
        (StableDiffusionControlNetInpaintPipeline, WebUIImg2ImgPipeline),
    ],
)
def test_every_kind_of_control_pipeline_is_taken_from_and_given_to_diffusers(sd, kind, ours):
    theirs = kind.from_pipe(sd)
    back = ours.from_pipe(theirs)
    assert theirs.controlnet is sd.controlnet is back.controlnet
    assert isinstance(back.controlnet, MultiControlNetModel) and back.unet is sd.unet


def test_sdxls_control_pipeline_is_taken_from_and_given_to_diffusers():
    theirs = StableDiffusionXLControlNetPipeline.from_pipe(loaded(network("tiny-controlnet-xl"), "tiny-sdxl-e2e"))
    theirs.set_progress_bar_config(disable=True)
    back = WebUITxt2ImgPipeline.from_pipe(theirs)
    back.set_progress_bar_config(disable=True)
    assert back.is_sdxl and back.controlnet is theirs.controlnet
    assert np.array_equal(drawn(back, image=CONTROL), drawn(theirs, image=CONTROL))


def test_names_and_folders_go_with_from_pipe(sd, tmp_path):
    sd.add_controlnet(network(), "mine")
    sd.controlnet_folder = tmp_path
    other = WebUIImg2ImgPipeline.from_pipe(sd)
    assert other.controlnet_folder == tmp_path
    assert torch.isfinite(latents(other, image=OTHER, strength=0.5, control_units=[{**UNIT, "model": "mine"}])).all()
    sd.controlnet_folder = None


def test_a_list_of_networks_is_a_kind_that_the_pipeline_expects(caplog):
    pipe = loaded([network(), network("tiny-controlnet-2")])
    assert isinstance(pipe.controlnet, MultiControlNetModel) and "Expected types" not in caplog.text
