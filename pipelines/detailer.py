"""DetailerPipeline: pictures of any origin in, the same pictures with what was found in them drawn anew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Generator, Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)
from webui_diffusers.pipelines.arguments import img2img_request
from webui_diffusers.pipelines.base import WebUIMixin
from webui_diffusers.pipelines.call_state import own_call
from webui_diffusers.pipelines.checks import check_leftovers
from webui_diffusers.pipelines.components import overridable_components
from webui_diffusers.pipelines.details import DetailRun
from webui_diffusers.pipelines.drawn import request_drawn
from webui_diffusers.pipelines.images.coerce import (
    GivenPicture,
    batch_of_pictures,
    finished_picture,
    given_pictures,
    unchanged_picture,
)
from webui_diffusers.pipelines.images.seamless import seamless_tiling
from webui_diffusers.pipelines.infotext.from_call import drawn_infotexts
from webui_diffusers.pipelines.loras import networks_on
from webui_diffusers.pipelines.passes import StepWatch
from webui_diffusers.pipelines.stock_control import ControlNets


# Arguments of img2img's call that a detailing pass has no use for, at their defaults.
_UNUSED_ARGUMENTS = {
    **dict.fromkeys(("strength", "timesteps", "sigmas", "eta", "prompt_embeds", "negative_prompt_embeds")),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_image_embeds", "cross_attention_kwargs", "mask_image")),
    **dict.fromkeys(("refiner_switch_at", "soft_inpainting", "sd_upscale", "loopback", "prompt_2")),
    **dict.fromkeys(("negative_prompt_2", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")),
    **dict.fromkeys(("denoising_end", "original_size", "crops_coords_top_left", "target_size")),
    **dict.fromkeys(("negative_original_size", "negative_crops_coords_top_left", "negative_target_size")),
    **dict.fromkeys(("control_image", "controlnet_conditioning_scale", "control_mode", "control_units")),
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "guess_mode": False,
    "num_images_per_prompt": 1,
    "resize_mode": "stretch",
    "mask_blur": 4,
    "masked_content": "original",
    "inpaint_area": "whole",
    "masked_padding": 32,
    "invert_mask": False,
    "soft_mask": False,
    "guidance_rescale": 0.0,
    "pag_scale": 0.0,
    "pag_adaptive_scale": 0.0,
    "pag_applied_layers": "mid",
    "freeu": None,
}


@dataclass
class DetailerPipelineOutput(BaseOutput):
    """Pictures, and what became of each. With `return_dict=False` a call gives (images,).

    A picture in which nothing was found is the one that was given, value for value.
    """

    images: list[Image.Image] | np.ndarray | Tensor | list
    infotexts: list[str]  # the "parameters" text of each
    seeds: list[int]
    reports: list[str]  # one line a picture and pass: what was found, what became of it


class DetailerPipeline(WebUIMixin, StableDiffusionImg2ImgPipeline):
    """Find faces, hands or anything that a detector knows, and draw each anew at the model's own size.

    Passes, masks, prompts and seeds are those of the webui's extension ADetailer, with its names. For Stable Diffusion
    1.x, 2.x and SDXL.

    >>> pipe = DetailerPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    >>> pipe(load_image("photo.png"), "a smiling woman", seed=1).images[0]
    """

    _stands_for = (StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline)

    @overridable_components(WebUIMixin._optional_components)
    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker = None,
        feature_extractor: CLIPImageProcessor = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        text_encoder_2: CLIPTextModelWithProjection = None,
        tokenizer_2: CLIPTokenizer = None,
        refiner: UNet2DConditionModel = None,
        upscaler: ModelMixin = None,
        face_restorer: ModelMixin = None,
        face_detector: ModelMixin = None,
        face_parser: ModelMixin = None,
        controlnet: ControlNets = None,
        requires_safety_checker: bool = True,
        force_zeros_for_empty_prompt: bool = True,
        requires_aesthetics_score: bool = False,
    ):
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker and text_encoder_2 is None,
        )
        self._register_own(
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            refiner=refiner,
            upscaler=upscaler,
            face_restorer=face_restorer,
            face_detector=face_detector,
            face_parser=face_parser,
            controlnet=controlnet,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        )
        self.register_to_config(requires_aesthetics_score=requires_aesthetics_score)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        detailers: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.0,
        width: int | None = None,
        height: int | None = None,
        seed: int | list[int] | None = None,
        subseed: int | list[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize: tuple[int, int] | None = None,
        noise_source: str = "gpu",
        generator: Generator | list[Generator] | None = None,
        sampler: str | None = "DPM++ 2M",
        schedule: str | None = None,
        clip_skip: int | None = None,
        tiling: bool = False,
        loras: Mapping[str, float] | Sequence[tuple] | None = None,
        lora_backend: str = "webui",
        restore_faces: str | None = None,
        face_fidelity: float | None = None,
        webui_options: Mapping[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "pil",
        return_dict: bool = True,
        **kwargs: Any,
    ) -> DetailerPipelineOutput | tuple:
        """Detail one picture or many, of any size.

        Args:
            image: PIL picture, array (h, w, c) or (b, h, w, c), tensor (c, h, w) or (b, c, h, w), or a list of these.
            prompt, negative_prompt: of the pictures, one or one each; a pass may have its own.
            detailers: the passes, in order: dicts of ADetailer's settings, with or without `ad_`; see
                docs/detailer.md. None: one pass over the faces. `detections` in a pass gives, for each picture, boxes
                in place of its detector.
            width, height: at which what was found is drawn, in pixels. None: the model's own.
            seed: mask j of picture i is drawn with seed + i + j. None: drawn by chance.
            restore_faces: the restorer of passes with `ad_restore_face`; None: CodeFormer.
            output_type: "pil", "np" ((b, h, w, c) in [0, 1]) or "pt" ((b, c, h, w)); lists where sizes differ.
            Others are explained in WebUITxt2ImgPipeline.

        A picture in which nothing is found is returned as it was given, value for value. The callback may set
        `pipe._interrupt`: what is finished by then is kept.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}

        # 1. What is asked for; refused before any work where it cannot be drawn
        check_leftovers(kwargs, given)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt'; got {output_type!r}.")
        pictures = given_pictures(image)
        passes = [{"ad_model": "face"}] if detailers is None else detailers
        passes = [passes] if isinstance(passes, Mapping) else [one for one in passes if not isinstance(one, bool)]
        sample = self.unet.config.sample_size
        own = (sample if isinstance(sample, int) else sample[-1]) * self.vae_scale_factor
        given |= {
            **_UNUSED_ARGUMENTS,
            "image": [Image.fromarray(picture.rgb) for picture in pictures],
            "prompt": [prompt] * len(pictures) if isinstance(prompt, str) else prompt,
            "detailers": [True, True, *passes],
            "width": width or own,
            "height": height or own,
        }
        request = img2img_request(self, given)

        # 2. The passes, picture by picture: found -> masks -> one img2img job a mask
        padded = [self.unet, self.vae] if tiling else []
        with (
            own_call(self, **request.call_needs),
            networks_on(self, lora_backend) as networks,
            seamless_tiling(*padded),
        ):
            self._begin(request.first.guidance, clip_skip)
            watch = StepWatch(self, callback_on_step_end, callback_on_step_end_tensor_inputs, networks)
            details = DetailRun(self, request, networks, watch)
            drawn = details.edit(list(request.init.pictures)) if request.details else list(request.init.pictures)

        # 3. In the form that was asked for
        finished = [_detailed(picture, after, output_type) for picture, after in zip(pictures, drawn)]
        images = batch_of_pictures(finished, output_type)
        if not return_dict:
            return (images,)
        texts = drawn_infotexts(request_drawn(self, request, (), details=details.fields))
        return DetailerPipelineOutput(images, texts, list(request.seeds), details.report)


def _detailed(picture: GivenPicture, drawn: Image.Image, output_type: str) -> Image.Image | np.ndarray:
    """A picture in the caller's form: the caller's own where nothing was changed; transparency stays."""
    rgb = np.array(drawn)
    if rgb.shape == picture.rgb.shape and np.array_equal(rgb, picture.rgb):
        return unchanged_picture(picture, output_type)
    return finished_picture(rgb, picture.alpha if rgb.shape == picture.rgb.shape else None, output_type)
