"""WebUIImg2ImgPipeline: the webui's img2img tab as a diffusers pipeline, inpainting included: a mask makes it so.

An image is brought to the size of the job, encoded, noised, and denoised through the tail of a schedule.
With a mask it is laid over the result where it was to stay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from webui_diffusers.pipelines.checks import check_callback_inputs, check_leftovers
from webui_diffusers.pipelines.components import overridable_components
from webui_diffusers.pipelines.controlled import control_edits, shown_controls
from webui_diffusers.pipelines.details import DetailRun
from webui_diffusers.pipelines.drawn import request_drawn
from webui_diffusers.pipelines.drop_in import draw_as_diffusers, stock_call
from webui_diffusers.pipelines.images.coerce import pictures_as
from webui_diffusers.pipelines.images.init_image import finish_over_init, opaque_images
from webui_diffusers.pipelines.images.seamless import seamless_tiling
from webui_diffusers.pipelines.img2img_scripts import run_script
from webui_diffusers.pipelines.infotext.from_call import drawn_infotexts
from webui_diffusers.pipelines.loras import networks_on
from webui_diffusers.pipelines.options import webui_settings
from webui_diffusers.pipelines.output import WebUIPipelineOutput, decoded_pixels, output_images
from webui_diffusers.pipelines.passes import StepWatch, redraw
from webui_diffusers.pipelines.stock_control import ControlNets


class WebUIImg2ImgPipeline(WebUIMixin, StableDiffusionImg2ImgPipeline):
    """Stable Diffusion 1.x, 2.x and SDXL over an image, with the webui's prompts, samplers, noise and masks.

    Everything StableDiffusionImg2ImgPipeline (with `text_encoder_2`: StableDiffusionXLImg2ImgPipeline) does works the
    same, and draws the same image bit for bit as long as only its arguments are used and prompts carry no syntax.
    Give a `sampler`, a `seed`, a `mask_image` or any other argument of the webui's and the image is the webui's.

    >>> pipe = WebUIImg2ImgPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    >>> pipe("a (red:1.2) fox", photo, 0.6, seed=1, sampler="Euler a", mask_image=mask).images[0]
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

    # --- what only SDXL's pipeline has, or has another way, so that its own call works on this one

    _get_add_time_ids = StableDiffusionXLImg2ImgPipeline._get_add_time_ids
    upcast_vae = StableDiffusionXLImg2ImgPipeline.upcast_vae
    denoising_start = StableDiffusionXLImg2ImgPipeline.denoising_start
    denoising_end = StableDiffusionXLImg2ImgPipeline.denoising_end
    guidance_rescale = StableDiffusionXLImg2ImgPipeline.guidance_rescale

    def get_timesteps(self, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        """diffusers' own, for the kind of model that is loaded."""
        return self._stands_for[self.is_sdxl].get_timesteps(self, *args, **kwargs)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Tensor:
        """diffusers' own, for the kind of model that is loaded."""
        return self._stands_for[self.is_sdxl].prepare_latents(self, *args, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: Generator | list[Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        width: int | None = None,
        height: int | None = None,
        resize_mode: str = "stretch",
        mask_image: Any = None,
        mask_blur: float | tuple[float, float] | None = None,
        masked_content: str = "original",
        inpaint_area: str = "whole",
        masked_padding: int = 32,
        padding_mask_crop: int | None = None,
        invert_mask: bool = False,
        soft_mask: bool = False,
        seed: int | list[int] | None = None,
        subseed: int | list[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize: tuple[int, int] | None = None,
        noise_source: str = "gpu",
        sampler: str | None = None,
        schedule: str | None = None,
        tiling: bool = False,
        loras: Mapping[str, float] | Sequence[tuple] | None = None,
        lora_backend: str = "webui",
        restore_faces: str | None = None,
        face_fidelity: float | None = None,
        refiner_switch_at: float | None = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float | list[float] | None = None,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        guess_mode: bool = False,
        control_mode: int | list[int] | None = None,
        control_units: Sequence[Mapping[str, Any]] | None = None,
        soft_inpainting: bool | Mapping[str, float] | None = None,
        detailers: Sequence[Any] | Mapping[str, Any] | None = None,
        sd_upscale: bool | Mapping[str, Any] | None = None,
        loopback: bool | Mapping[str, Any] | None = None,
        pag_scale: float = 0.0,
        pag_adaptive_scale: float = 0.0,
        pag_applied_layers: str | list[str] = "mid",
        freeu: Mapping[str, float] | None = None,
        webui_options: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        prompt_2: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] | None = None,
        negative_target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        **kwargs: Any,
    ) -> WebUIPipelineOutput | tuple:
        """Generate images from images.

        The arguments up to `callback_on_step_end_tensor_inputs` and from `guidance_rescale` on are diffusers' and mean
        what they mean in StableDiffusionImg2ImgPipeline and StableDiffusionXLImg2ImgPipeline; those of the webui that
        are not explained here are explained in WebUITxt2ImgPipeline.

        The VAE's encoding of an image is drawn, and in the webui by torch's global generator, whatever the seed is.
        It is so here: for the same image to the last bit call `torch.manual_seed` before (Stable Diffusion's own
        VAEs hardly differ otherwise), or pass a `generator`, which then draws that, beside the noise of `seed`.

        Args:
            image: an image or one for each prompt or image: PIL, array (h, w, 3), tensor (3, h, w); or latents.
            strength: 0..1, how much is drawn anew: int(strength * steps) + 1 steps run, as many as asked for with the
                option `img2img_fix_steps`. None: as in the diffusers pipeline for such a call: 0.8, and 0.3 for SDXL;
                with a control image 0.8; with that or `padding_mask_crop` and a mask 1.0.
            width, height: of what is drawn, in pixels. None: the image's, cut to multiples of 8.
            resize_mode: how the image gets that size: "stretch", "crop" (cover it, cut what stands out), "fill" (fit
                inside, fill the borders), "latent" (stretch its latents).
            mask_image: white, or opaque in an image with transparency, where the image is drawn anew.
            mask_blur: standard deviation in pixels of the image, or (along x, along y). None: 4, and 0 with
                `padding_mask_crop`.
            masked_content: what the masked part begins as: "original", "fill" (the colours around it), "latent noise",
                "latent nothing".
            inpaint_area: "whole", or "masked": what the mask shows is cut out, drawn at width x height, and put back.
            masked_padding: pixels of the image kept around the mask in the cut.
            padding_mask_crop: the same in one, as in diffusers' inpainting pipelines: the area is "masked", with that
                many pixels around it. With diffusers' arguments alone it is their image bit for bit.
            invert_mask: draw what the mask does not show. soft_mask: latent cells may be drawn anew in part.
            seed: image i is drawn with seed + i; see WebUITxt2ImgPipeline.
            control_image, controlnet_conditioning_scale, control_guidance_start, control_guidance_end, guess_mode,
                control_mode, control_units: see WebUITxt2ImgPipeline. A unit without an image sees the init image.
            pag_scale, pag_adaptive_scale, pag_applied_layers, freeu: see WebUITxt2ImgPipeline.
            webui_options: further settings under the webui's own names; see `WEBUI_OPTIONS`. Of img2img:
                img2img_fix_steps, initial_noise_multiplier, img2img_extra_noise, img2img_color_correction,
                img2img_background_color, overlay_inpaint, inpainting_mask_weight.

        Returns:
            WebUIPipelineOutput, or (images, nsfw_content_detected) with `return_dict=False`.

        Raises:
            ValueError: for anything that cannot be drawn as asked, before any work is done.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}

        # 1. What is asked for; refused before any work where it cannot be drawn
        check_leftovers(kwargs, given)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        if (texts := stock_call(self, given)) is not None:
            opaque = opaque_images(image, webui_settings(webui_options)["img2img_background_color"])
            return draw_as_diffusers(self, {**given, "image": opaque}, texts, kwargs)
        request = img2img_request(self, given)

        padded = [self.unet, self.vae] if tiling else []
        with (
            own_call(self, **request.call_needs),
            networks_on(self, lora_backend) as networks,
            seamless_tiling(*padded),
        ):
            self._begin(request.first.guidance, clip_skip)
            watch = StepWatch(self, callback_on_step_end, callback_on_step_end_tensor_inputs, networks)
            details = DetailRun(self, request, networks, watch)
            if request.script is None:
                # 2. Networks on, text -> conditioning, images -> latents, and those through the tail of a schedule
                drawn = redraw(self, request, networks, watch)

                # 3. Latents -> pixels, and what the safety checker says
                x = drawn.latents
                images, flagged = (x, None) if output_type == "latent" else decoded_pixels(self, x)

                # 4. Pixels -> images, their faces, details, and what is laid over
                if output_type != "latent":
                    finish = finish_over_init(drawn.images, drawn.rows, request.options)
                    edits = [*control_edits(request.overlays), request.faces and request.faces.edit]
                    edits += [request.details and details.edit, finish]
                    images = output_images(images, output_type, truncates=sampler is not None, edits=edits)
            else:
                # 2 to 4, for a script: several such jobs in place of one, or none
                drawn, flagged = run_script(self, request, networks, watch, details), None
                images, request = pictures_as(drawn.pictures, output_type), drawn.request
        if not return_dict:
            return images, flagged

        # 5. What drew it, in the webui's words
        texts = drawn_infotexts(request_drawn(self, request, drawn.embeddings, details=details.fields))
        return WebUIPipelineOutput(images, flagged, texts, list(request.seeds), shown_controls(request))
