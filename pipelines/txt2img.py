"""WebUITxt2ImgPipeline: the webui's txt2img tab as a diffusers pipeline. `__call__` is the story of one image.

Sampling is a function over sigmas and not `scheduler.step`: the webui's images come from k-diffusion's loops, one
noise stream per image, and conditioning that changes by step; a scheduler's `step` sees none of these. `scheduler`
stays a component: it says which betas and which prediction type the model has, and it steps where no `sampler` is
named.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
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
from webui_diffusers.pipelines.arguments import txt2img_request
from webui_diffusers.pipelines.base import WebUIMixin
from webui_diffusers.pipelines.call_state import own_call
from webui_diffusers.pipelines.checks import call_size, check_callback_inputs, check_leftovers
from webui_diffusers.pipelines.components import overridable_components
from webui_diffusers.pipelines.controlled import control_edits, encoding_noise, shown_controls
from webui_diffusers.pipelines.details import DetailRun
from webui_diffusers.pipelines.drawn import request_drawn
from webui_diffusers.pipelines.drop_in import draw_as_diffusers, stock_call
from webui_diffusers.pipelines.images.hires import enlarge_latents
from webui_diffusers.pipelines.images.seamless import seamless_tiling
from webui_diffusers.pipelines.infotext.from_call import drawn_infotexts
from webui_diffusers.pipelines.loras import networks_on
from webui_diffusers.pipelines.output import WebUIPipelineOutput, decoded_pixels, output_images
from webui_diffusers.pipelines.passes import StepWatch, noise_start, pass_models, run_pass
from webui_diffusers.pipelines.stock_control import ControlNets


class WebUITxt2ImgPipeline(WebUIMixin, StableDiffusionPipeline):
    """Stable Diffusion 1.x, 2.x and SDXL with the webui's prompts, samplers, noise, hires fix, networks and faces.

    Everything StableDiffusionPipeline (with `text_encoder_2`: StableDiffusionXLPipeline) does works the same, and
    draws the same image bit for bit as long as only its arguments are used and prompts carry no syntax. Name a
    `sampler`, a `seed` or any other argument of the webui's and the image is the webui's.

    >>> pipe = WebUITxt2ImgPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    >>> pipe("(masterpiece:1.2), a fox [in snow:at night:0.5]", seed=1, sampler="Euler a").images[0]
    """

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

    # --- what only SDXL's pipeline has, so that its own call works on this one

    _get_add_time_ids = StableDiffusionXLPipeline._get_add_time_ids
    upcast_vae = StableDiffusionXLPipeline.upcast_vae
    denoising_end = StableDiffusionXLPipeline.denoising_end

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
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
        hires_scale: float | None = None,
        hires_size: tuple[int, int] | None = None,
        hires_upscaler: str | None = None,
        hires_steps: int = 0,
        hires_strength: float = 0.7,
        hires_guidance_scale: float | None = None,
        hires_prompt: str | list[str] | None = None,
        hires_negative_prompt: str | list[str] | None = None,
        hires_sampler: str | None = None,
        hires_schedule: str | None = None,
        hires_model: Any = None,
        restore_faces: str | None = None,
        face_fidelity: float | None = None,
        refiner_switch_at: float | None = None,
        image: Any = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float | list[float] | None = None,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        guess_mode: bool = False,
        control_mode: int | list[int] | None = None,
        control_units: Sequence[Mapping[str, Any]] | None = None,
        detailers: Sequence[Any] | Mapping[str, Any] | None = None,
        pag_scale: float = 0.0,
        pag_adaptive_scale: float = 0.0,
        pag_applied_layers: str | list[str] = "mid",
        freeu: Mapping[str, float] | None = None,
        webui_options: Mapping[str, Any] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        denoising_end: float | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] | None = None,
        negative_target_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> WebUIPipelineOutput | tuple:
        """Generate images.

        The arguments up to `callback_on_step_end_tensor_inputs` and from `prompt_2` on are diffusers' and mean what
        they mean in StableDiffusionPipeline and StableDiffusionXLPipeline. With a `sampler` named, `clip_skip` is
        read as the webui does (SD 2.x has none, SDXL only with the option `sdxl_clip_l_skip`).

        Args:
            prompt: text or list of texts in the webui's grammar: (a:1.2), [a:b:0.5], [a|b], AND, BREAK, <lora:x:1>.
            eta: noise multiplier of the step; None is 0 for a scheduler, the webui's option for a sampler.
            seed: image i is drawn with seed + i; None or -1 draws one. A list gives every image its own. Without
                `seed`, a `generator` (or nothing) means diffusers' own noise convention.
            subseed, subseed_strength: mix in the noise of a second seed, 0..1.
            seed_resize: (width, height) in pixels whose composition the noise keeps.
            noise_source: "gpu" (what an NVIDIA card draws, on any device), "cpu", "nv".
            sampler: label of the webui ("DPM++ 2M", "Euler a", "DPM++ 2M Karras", ...). None: `scheduler` steps.
            schedule: schedule type of the webui ("Karras", "Exponential", ...). None: the sampler's own.
            tiling: opposite edges of the image meet.
            loras: {name or path: weight} or [(name or path, te, unet[, dyn])], besides the prompt's own tags.
            lora_backend: whose numbers: "webui", "reference" (the format's own library) or "peft".
            hires_scale, hires_size: second pass at that scale, or at (width, height) where 0 follows the other side.
            hires_upscaler: "Latent…", "None", "Lanczos", "Nearest", a Real-ESRGAN label, or a path to a model file.
                None: the component `upscaler` if there is one, else "Latent".
            hires_steps: 0 means as many as the first pass. hires_strength: 0..1, how much is generated anew.
            hires_guidance_scale, hires_prompt, hires_negative_prompt, hires_sampler, hires_schedule: None means the
                first pass's.
            restore_faces: "CodeFormer", "GFPGAN", ... : the component `face_restorer` is applied to each image.
            face_fidelity: 0 (strongest) to 1 (most faithful), for CodeFormer. None: the option `code_former_weight`.
            hires_model: the checkpoint of the second pass: another pipeline, its components, a path, or a name that
                `add_checkpoint` made known. The first pass and its decoding keep this one.
            detailers: passes over the finished pictures: dicts of ADetailer's settings, such as `{"ad_model": "face",
                "ad_denoising_strength": 0.3}`; see docs/detailer.md. `detections` in one gives boxes in place of a
                detector. `detail_report()` says what was found.
            refiner_switch_at: share of the noise levels after which the component `refiner` takes over, 0..1.
            image, control_image, controlnet_conditioning_scale, control_guidance_start, control_guidance_end,
                guess_mode, control_mode: of the component `controlnet`, as in diffusers' ControlNet pipelines.
            control_units: ControlNets with the meaning of the webui's extension, a dict each: {"model": name, "image":
                image, "weight": 1.0, "control_mode": "Balanced", ...}; see `ControlUnit`.
            pag_scale, pag_adaptive_scale, pag_applied_layers: perturbed-attention guidance, as in diffusers'
                StableDiffusionPAGPipeline; a scale of 0 is none.
            freeu: factors of `enable_freeu` for this call alone: {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}.
            webui_options: further settings under the webui's own names; see `WEBUI_OPTIONS`.

        Returns:
            WebUIPipelineOutput, or (images, nsfw_content_detected) with `return_dict=False`.

        Raises:
            ValueError: for anything that cannot be drawn as asked, before any work is done.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}

        # 1. What is asked for; refused before any work where it cannot be drawn
        check_leftovers(kwargs, given)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        call_size(self, width, height, sampler)
        if (texts := stock_call(self, given)) is not None:
            return draw_as_diffusers(self, given, texts, kwargs)
        request = txt2img_request(self, given)
        first, second, before = request.first, request.second, request.enlargement
        embeddings: list[tuple[str, ...]] = []  # textual inversions in use, by pass

        padded = [self.unet, self.vae] if tiling else []
        artist = self  # whose models draw: the second pass may have another checkpoint's
        with ExitStack() as around:
            around.enter_context(own_call(self, **request.call_needs))
            networks = around.enter_context(networks_on(self, lora_backend))
            around.enter_context(seamless_tiling(*padded))
            self._begin(first.guidance, clip_skip)
            watch = StepWatch(self, callback_on_step_end, callback_on_step_end_tensor_inputs, networks)

            # 2. Networks named in the prompt
            self._network_reports = networks.switch(first.loras)

            # 3. Text -> conditioning
            models = pass_models(self, request, first)
            embeddings.append(models[0].conditioning.embeddings)

            # 4. First pass: noise -> latents
            start = noise_start(self, request, first)
            x = run_pass(self, request, first, models, start, watch)

            # 5. Hires pass: the same image, larger, through the tail of a schedule
            if second is not None and not self.interrupt:
                active = networks
                if before.pipe is not None:
                    artist = before.pipe
                    active = around.enter_context(networks_on(artist, lora_backend))
                    around.enter_context(seamless_tiling(*([artist.unet, artist.vae] if tiling else [])))
                if not request.options["hires_fix_use_firstpass_conds"]:
                    self._network_reports = active.switch(second.loras)
                models = pass_models(artist, request, second)
                self._network_reports = active.switch(second.loras)
                noise, options = encoding_noise(self, first, start.noise.global_generator()), request.options
                x = enlarge_latents(self.vae, x, before.target, before.upscaler, options, noise, encoder=artist.vae)
                embeddings.append(models[0].conditioning.embeddings)
                start = noise_start(artist, request, second, x)
                x = run_pass(artist, request, second, models, start, replace(watch, networks=active))

            # 6. Latents -> pixels, and what the safety checker says
            pixels, flagged = (x, None) if output_type == "latent" else decoded_pixels(self, x, vae=artist.vae)

            # 7. Pixels -> images, their faces and details
            images, details = pixels, DetailRun(self, request, networks, watch)
            if output_type != "latent":
                edits = [*control_edits(request.overlays), request.faces and request.faces.edit]
                edits.append(request.details and details.edit)
                images = output_images(pixels, output_type, truncates=sampler is not None, edits=edits)
        if not return_dict:
            return images, flagged

        # 8. What drew it, in the webui's words
        texts = drawn_infotexts(request_drawn(self, request, *embeddings, details=details.fields))
        return WebUIPipelineOutput(images, flagged, texts, list(request.seeds), shown_controls(request))
