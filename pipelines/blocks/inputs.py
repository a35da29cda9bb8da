"""What the blocks can be asked, one row an input; each means what WebUITxt2ImgPipeline's argument of the name does."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from PIL import Image
from torch import Generator, Tensor

from ..conditioning import Conditioning


class AskedInput(NamedTuple):
    """A row of the table: type, default, description."""

    type_hint: Any
    default: Any
    description: str


_Text = str | list[str]
_Size = tuple[int, int]

BLOCK_INPUTS: dict[str, AskedInput] = {
    "prompt": AskedInput(_Text, None, "In the webui's grammar: (a:1.2), [a:b:0.5], [a|b], AND, BREAK, <lora:x:1>."),
    "negative_prompt": AskedInput(_Text, None, "The same for what not to draw. SDXL reads an empty one as nothing."),
    "prompt_2": AskedInput(_Text, None, "Another text for SDXL's second encoder."),
    "negative_prompt_2": AskedInput(_Text, None, "Another negative text for SDXL's second encoder."),
    "height": AskedInput(int, None, "In pixels; by default the model's own. Any size from 8 up with a sampler."),
    "width": AskedInput(int, None, "In pixels; by default the model's own."),
    "num_inference_steps": AskedInput(int, 50, "Steps. Prompt editing counts with them."),
    "timesteps": AskedInput(
        list[int], None, "Instead of steps, for a scheduler. A tensor (of a set-timesteps block) is not read."
    ),
    "sigmas": AskedInput(list[float], None, "Instead of steps, for a scheduler."),
    "denoising_end": AskedInput(float, None, "The share of the noise levels at which a scheduler stops, 0 to 1."),
    "guidance_scale": AskedInput(
        float, None, "Of this call. None: the guider's, 7.5 unless set; SDXL's pipelines have 5.0."
    ),
    "guidance_rescale": AskedInput(float, None, "0 to 1. None: the guider's."),
    "pag_scale": AskedInput(float, 0.0, "Perturbed-attention guidance beside plain guidance; a guider has its own."),
    "pag_adaptive_scale": AskedInput(float, 0.0, "How much less of it there is at lower noise."),
    "pag_applied_layers": AskedInput(str | list[str], "mid", "Whose self-attention is perturbed."),
    "freeu": AskedInput(dict[str, float], None, "Factors b1, b2, s1, s2 of the UNet for this call."),
    "num_images_per_prompt": AskedInput(int, 1, "How many images of each prompt."),
    "eta": AskedInput(float, None, "Noise of a step. None: 0 for a scheduler, the webui's option for a sampler."),
    "generator": AskedInput(Generator | list[Generator], None, "diffusers' own noise, where there is no `seed`."),
    "latents": AskedInput(
        Tensor, None, "(b, c, h, w), the first noise: of unit variance, or of a prepare-latents block."
    ),
    "seed": AskedInput(int | list[int], None, "Image i gets seed + i; None or -1 draws one. A list has one for each."),
    "subseed": AskedInput(int | list[int], None, "The seed of the variation."),
    "subseed_strength": AskedInput(float, 0.0, "How much of the variation's noise is mixed in, 0 to 1."),
    "seed_resize": AskedInput(_Size, None, "(width, height) in pixels whose composition the noise keeps."),
    "noise_source": AskedInput(str, "gpu", '"gpu" (what an NVIDIA card draws, on any device), "cpu" or "nv".'),
    "sampler": AskedInput(str, None, 'Label of the webui ("DPM++ 2M", "Euler a", ...). None: the scheduler steps.'),
    "schedule": AskedInput(str, None, 'Schedule type of the webui ("Karras", ...). None: the sampler\'s own.'),
    "tiling": AskedInput(bool, False, "Opposite edges of the image meet."),
    "clip_skip": AskedInput(int, None, "Layers left out, as the webui reads it (SDXL: with its option only)."),
    "loras": AskedInput(
        dict[str, float] | list[tuple], None, "{name or path: weight} or [(name or path, te, unet)], beside the tags."
    ),
    "lora_backend": AskedInput(
        str, "webui", 'Whose numbers: "webui", "reference" (the format\'s library\'s) or "peft".'
    ),
    "cross_attention_kwargs": AskedInput(
        dict[str, Any], None, 'For attention processors; "scale" is that of adapters.'
    ),
    "webui_options": AskedInput(dict[str, Any], None, "Further settings under the webui's own names."),
    "refiner_switch_at": AskedInput(float, None, "Share of the noise levels after which `refiner` takes over."),
    "hires_scale": AskedInput(float, None, "A second pass over the image, this much larger."),
    "hires_size": AskedInput(_Size, None, "(width, height) of the second pass; 0 follows the other side."),
    "hires_upscaler": AskedInput(
        str, None, '"Latent", "Lanczos", a model\'s label or path. None: the component, if any.'
    ),
    "hires_steps": AskedInput(int, 0, "0: as many as the first pass."),
    "hires_strength": AskedInput(float, 0.7, "How much of the image is drawn anew, 0 to 1."),
    "hires_guidance_scale": AskedInput(float, None, "None: the first pass's, as with the next four."),
    "hires_prompt": AskedInput(_Text, None, "The second pass's text."),
    "hires_negative_prompt": AskedInput(_Text, None, "The second pass's negative text."),
    "hires_sampler": AskedInput(str, None, "The second pass's sampler."),
    "hires_schedule": AskedInput(str, None, "The second pass's schedule."),
    "restore_faces": AskedInput(str, None, '"CodeFormer", "GFPGAN", ...: applied to each image.'),
    "face_fidelity": AskedInput(float, None, "0 (strongest) to 1 (most faithful), for CodeFormer."),
    "output_type": AskedInput(str, "pil", '"pil", "np", "pt" or "latent".'),
    "original_size": AskedInput(_Size, None, "(height, width) that SDXL reads. None: the size asked for."),
    "crops_coords_top_left": AskedInput(_Size, None, "(top, left) that SDXL reads. None: the webui's options."),
    "target_size": AskedInput(_Size, None, "(height, width) that SDXL reads."),
    "negative_original_size": AskedInput(_Size, None, "The same for the negative side."),
    "negative_crops_coords_top_left": AskedInput(_Size, None, "The same for the negative side."),
    "negative_target_size": AskedInput(_Size, None, "The same for the negative side."),
}

# Arguments of the pipeline's call that are other blocks' work here, with what they are when nobody gives them.
LEFT_OUT: dict[str, Any] = {
    "hires_model": None,
    "image": None,
    "control_image": None,
    "controlnet_conditioning_scale": None,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "guess_mode": False,
    "control_mode": None,
    "control_units": None,
    "detailers": None,
    "ip_adapter_image": None,
    "ip_adapter_image_embeds": None,
    "prompt_embeds": None,
    "negative_prompt_embeds": None,
    "pooled_prompt_embeds": None,
    "negative_pooled_prompt_embeds": None,
}

TEXT_INPUTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "clip_skip", "loras", "lora_backend")
TEXT_STEP_INPUTS = ("num_inference_steps", "timesteps", "sigmas", "sampler", "cross_attention_kwargs", "webui_options")
NOISE_INPUTS = ("seed", "subseed", "subseed_strength", "seed_resize", "noise_source", "generator", "latents")
_SIDE_SIZES = ("original_size", "crops_coords_top_left", "target_size")
_SIZE_INPUTS = (*_SIDE_SIZES, *(f"negative_{name}" for name in _SIDE_SIZES))
_XL_INPUTS = ("prompt_2", "negative_prompt_2", *_SIZE_INPUTS)
_STEP_INPUTS = ("num_inference_steps", "timesteps", "sigmas", "denoising_end", "eta", "sampler", "schedule")
_GUIDANCE_INPUTS = ("guidance_scale", "guidance_rescale", "pag_scale", "pag_adaptive_scale", "pag_applied_layers")
_MODEL_INPUTS = ("freeu", "loras", "lora_backend", "cross_attention_kwargs", "webui_options", "refiner_switch_at")
PASS_INPUTS = (
    *("height", "width", "num_images_per_prompt", *_STEP_INPUTS, *_GUIDANCE_INPUTS, "tiling"),
    *(*_MODEL_INPUTS, *_SIZE_INPUTS),
)
HIRES_INPUTS = tuple(name for name in BLOCK_INPUTS if name.startswith("hires_"))
DECODE_INPUTS = ("output_type", "tiling", "sampler", "restore_faces", "face_fidelity", "webui_options")
EMBED_NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")

_HANDED: dict[str, AskedInput] = {
    "prompt_embeds": AskedInput(Tensor, None, "(b, tokens, dim) of a text encoder block; only one encoding a prompt."),
    "negative_prompt_embeds": AskedInput(Tensor, None, "(b, tokens, dim) of the negative prompts."),
    "pooled_prompt_embeds": AskedInput(Tensor, None, "(b, dim) of SDXL's second encoder."),
    "negative_pooled_prompt_embeds": AskedInput(Tensor, None, "(b, dim) of the negative prompts."),
    "batch_size": AskedInput(int, None, "Number of prompts, where an input block repeated their embeddings."),
    "webui_conditioning": AskedInput(
        Conditioning, None, "The prompts with their edits and pieces, which WebUIDenoiseStep reads before embeddings."
    ),
    "webui_loras": AskedInput(list, None, "The networks of tags and `loras`, for the blocks that put them on."),
    "latents": AskedInput(Tensor, None, "(b, c, h, w) of the denoised image."),
    "images": AskedInput(list[Image.Image], None, "The images, as `output_type` says."),
    "infotexts": AskedInput(list[str], None, 'The "parameters" text of each image; empty outside the whole set.'),
    "seeds": AskedInput(list[int], None, "The seed of each image, as far as one is known."),
}


def input_params(names: Iterable[str], handed: Iterable[str] = (), *, xl: bool = True) -> list[InputParam]:
    """The declarations of inputs. handed: those that another block makes. xl: False leaves out SDXL's own."""
    asked = [name for name in dict.fromkeys(names) if xl or name not in _XL_INPUTS]
    rows = [(name, BLOCK_INPUTS[name]) for name in asked] + [(name, _HANDED[name]) for name in handed]
    return [
        InputParam(name, type_hint=row.type_hint, default=row.default, description=row.description)
        for name, row in rows
    ]


def output_params(*names: str) -> list[OutputParam]:
    """The declarations of what a block makes; embeddings are marked as diffusers' own denoise blocks look for them."""
    return [
        OutputParam(
            name,
            type_hint=_HANDED[name].type_hint,
            description=_HANDED[name].description,
            kwargs_type="denoiser_input_fields" if name in EMBED_NAMES else None,
        )
        for name in names
    ]


def call_arguments_of(block_state: Any) -> dict[str, Any]:
    """Every argument of WebUITxt2ImgPipeline's call: what a block's state has of them, and defaults."""
    given = {name: getattr(block_state, name, row.default) for name, row in BLOCK_INPUTS.items()}
    if isinstance(given["timesteps"], Tensor):
        given["timesteps"] = None
    return {**LEFT_OUT, **given}
