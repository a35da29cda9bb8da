"""WebUITxt2ImgPipeline: the webui's txt2img tab as a diffusers pipeline. `__call__` is the story of one image.

Sampling is a function over sigmas and not `scheduler.step`: the webui's pictures come from k-diffusion's loops, one
noise stream per image, and conditioning that changes by step; a scheduler's `step` sees none of these. `scheduler`
stays a component: it says which betas and which prediction type the model has, and it steps where no `sampler` is
named.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
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
from webui_diffusers.pipelines.base import WebUIMixin
from webui_diffusers.pipelines.components import overridable_components
from webui_diffusers.pipelines.conditioning import SizeArguments
from webui_diffusers.pipelines.drop_in import (
    argument_or_default,
    asks_for_diffusers_own,
    draw_as_diffusers,
    ip_adapter_embeds,
    size_or_default,
)
from webui_diffusers.pipelines.finish import (
    face_restoration,
    finite_latents,
    hide_flagged,
    picture_texts,
    pictures_of,
)
from webui_diffusers.pipelines.images.enlarge import enlarge_latents
from webui_diffusers.pipelines.images.init_latents import without_picture
from webui_diffusers.pipelines.images.seamless import seamless_tiling
from webui_diffusers.pipelines.images.vae import decode_latents
from webui_diffusers.pipelines.options import webui_settings
from webui_diffusers.pipelines.output import WebUIPipelineOutput
from webui_diffusers.pipelines.passes import (
    check_texts,
    given_conditioning,
    guidance_options,
    pass_models,
    pass_noise,
    run_pass,
    watch_steps,
)
from webui_diffusers.pipelines.registry import networks_on
from webui_diffusers.pipelines.request import (
    HiresArguments,
    StepArguments,
    check_callback_inputs,
    check_leftovers,
    check_step_arguments,
    first_pass,
    hires_request,
    noise_request,
    pick,
    prompt_list,
    prompt_settings,
    refined_passes,
    with_second_texts,
)


class WebUITxt2ImgPipeline(WebUIMixin, StableDiffusionPipeline):
    """Stable Diffusion 1.x, 2.x and SDXL with the webui's prompts, samplers, noise, hires fix, networks and faces.

    Everything StableDiffusionPipeline (with `text_encoder_2`: StableDiffusionXLPipeline) does works the same, and
    draws the same picture bit for bit as long as only its arguments are used and prompts carry no syntax. Name a
    `sampler`, a `seed` or any other argument of the webui's and the picture is the webui's.

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
        hires_prompt: str | list[str] | None = None,
        hires_negative_prompt: str | list[str] | None = None,
        hires_sampler: str | None = None,
        hires_schedule: str | None = None,
        restore_faces: str | None = None,
        face_fidelity: float | None = None,
        refiner_switch_at: float | None = None,
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
        """Draw pictures.

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
            tiling: opposite edges of the picture meet.
            loras: {name or path: weight} or [(name or path, te, unet[, dyn])], besides the prompt's own tags.
            lora_backend: whose numbers: "webui", "reference" (the format's own library) or "peft".
            hires_scale, hires_size: second pass at that scale, or at (width, height) where 0 follows the other side.
            hires_upscaler: "Latent…", "None", "Lanczos", "Nearest", a Real-ESRGAN label, or a path to a model file.
                None: the component `upscaler` if there is one, else "Latent".
            hires_steps: 0 means as many as the first pass. hires_strength: 0..1, how much is drawn anew.
            hires_prompt, hires_negative_prompt, hires_sampler, hires_schedule: None means the first pass's.
            restore_faces: "CodeFormer", "GFPGAN", ... : the component `face_restorer` is applied to each picture.
            face_fidelity: 0 (strongest) to 1 (most faithful), for CodeFormer. None: the option `code_former_weight`.
            refiner_switch_at: share of the noise levels after which the component `refiner` takes over, 0..1.
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
        options = webui_settings(webui_options)
        given["guidance_scale"] = guidance_scale = argument_or_default(self, "guidance_scale", guidance_scale)
        size = size_or_default(self, width, height, sampler)
        if asks_for_diffusers_own(self, given):
            return draw_as_diffusers(self, given, kwargs)
        prompts, negatives = prompt_list(prompt, negative_prompt, num_images_per_prompt, prompt_embeds)
        seeds = None
        if seed is not None or (sampler is not None and generator is None):
            seeds = noise_request(len(prompts), seed, subseed, subseed_strength, seed_resize, noise_source)
        asked_steps = pick(StepArguments, given)
        first = first_pass(prompts, negatives, size, num_inference_steps, sampler, schedule, asked_steps=asked_steps)
        first = with_second_texts(first, prompt_2, negative_prompt_2, is_sdxl=self.is_sdxl)
        hires = hires_request(pick(HiresArguments, given, "hires_"), first, prompts, negatives)
        second = None if hires is None else hires.second
        check_step_arguments(asked_steps, sampler, has_hires=hires is not None)
        upscaler = None if hires is None else self.attached.upscaler(hires.upscaler, self.upscaler)
        uses = self.attached.network_uses(first.tags, loras)
        second_uses = uses if second is None else self.attached.network_uses(second.tags, loras)
        refined = refined_passes(refiner_switch_at, options, hires is not None, self.refiner)
        restore = face_restoration(self, restore_faces, face_fidelity, options)
        settings = prompt_settings(options, clip_skip)
        embeds = None if prompt_embeds is None else given_conditioning(given, is_sdxl=self.is_sdxl)
        if embeds is None:
            check_texts(self.attached.encoder(self, uses), first, second, settings)
        conditioned = partial(pass_models, self, settings, options, pick(SizeArguments, given), embeds)
        two_sided, image_embeds = (
            sampler is not None or guidance_scale > 1,
            ip_adapter_embeds(self, given, len(prompts)),
        )
        guidance = guidance_options(options, given, two_sided=two_sided, image_embeds=image_embeds)
        self._begin(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)
        watch = partial(watch_steps, self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        drawn = partial(run_pass, options=options, scheduler=self.scheduler, watch=watch, eta=eta)
        noise_of = partial(pass_noise, seeds, generator, options, self.vae, self._execution_device)

        with networks_on(self, lora_backend) as networks, seamless_tiling(*([self.unet, self.vae] if tiling else [])):
            # 2. Networks named in the prompt
            self._network_reports = networks.switch(uses)

            # 3. Text -> conditioning
            models = conditioned(first, uses, refines=refined.first)

            # 4. First pass: noise -> latents
            noise = noise_of(first)
            x = drawn(first, models, without_picture(self, guidance, first), noise, start=latents)

            # 5. Hires pass: the same image, larger, through the tail of a schedule
            if hires is not None and not self.interrupt:
                self._network_reports = networks.switch(second_uses)
                init = enlarge_latents(self.vae, x, hires.target, upscaler, options, noise.global_generator())
                models = conditioned(second, second_uses, refines=refined.second)
                x = drawn(second, models, without_picture(self, guidance, second), noise_of(second), init=init)

            # 6. Latents -> pixels
            pixels = None if output_type == "latent" else decode_latents(self.vae, finite_latents(x))

        # 7. Faces, and what the safety checker says
        images, flagged = x, None
        if pixels is not None:
            pixels, flagged = hide_flagged(self, pixels)
            images = pictures_of(pixels, output_type, truncates=sampler is not None, restore=restore)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, flagged

        # 8. What drew it, in the webui's words
        texts = picture_texts(self, given, seeds, first, uses, models[0].conditioning.embeddings)
        return WebUIPipelineOutput(images, flagged, texts, [] if seeds is None else seeds.seeds)
