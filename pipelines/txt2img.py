"""WebUITxt2ImgPipeline: the webui's txt2img tab as a diffusers pipeline. `__call__` is the story of one image.

Sampling is a function over sigmas and not `scheduler.step`: the webui's pictures come from k-diffusion's loops, one
noise stream per image, and conditioning that changes by step; a scheduler's `step` sees none of these. `scheduler`
stays a component: it says which betas and which prediction type the model has, and it steps where no `sampler` is
named.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
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
from webui_diffusers.pipelines.enlarge import enlarge_latents, upscaler_of
from webui_diffusers.pipelines.finish import finite_latents, hide_flagged, pictures_of
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
from webui_diffusers.pipelines.prompt.encode import PromptEncoder
from webui_diffusers.pipelines.prompt.encode_rows import RowCache
from webui_diffusers.pipelines.request import (
    HiresArguments,
    check_leftovers,
    first_pass,
    hires_request,
    noise_request,
    pick,
    prompt_list,
    prompt_settings,
    refined_passes,
)
from webui_diffusers.pipelines.sdxl import SizeArguments


class WebUITxt2ImgPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1.x, 2.x and SDXL with the webui's prompts, samplers, noise, hires fix, networks and faces.

    Everything StableDiffusionPipeline (with `text_encoder_2`: StableDiffusionXLPipeline) does works the same, and
    draws the same picture bit for bit as long as only its arguments are used and prompts carry no syntax. Name a
    `sampler`, a `seed` or any other argument of the webui's and the picture is the webui's.

    >>> pipe = WebUITxt2ImgPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    >>> pipe("(masterpiece:1.2), a fox [in snow:at night:0.5]", seed=1, sampler="Euler a").images[0]
    """

    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->image_encoder->unet->refiner->vae->upscaler->face_detector->face_restorer"
    )
    _optional_components = [
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "text_encoder_2",
        "tokenizer_2",
        "refiner",
        "upscaler",
        "face_restorer",
        "face_detector",
        "face_parser",
    ]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "add_text_embeds",
        "add_time_ids",
    ]

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
        self.register_modules(
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            refiner=refiner,
            upscaler=upscaler,
            face_restorer=face_restorer,
            face_detector=face_detector,
            face_parser=face_parser,
        )
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.default_sample_size = getattr(getattr(unet, "config", None), "sample_size", None) or 128
        self.watermark = None
        if text_encoder_2 is not None:
            self._lora_loadable_modules = ["unet", "text_encoder", "text_encoder_2"]
        self._row_cache = RowCache()
        self._upscalers: dict[str, ModelMixin] = {}

    # --- what only SDXL's pipeline has, so that its own call works on this one

    _get_add_time_ids = StableDiffusionXLPipeline._get_add_time_ids
    upcast_vae = StableDiffusionXLPipeline.upcast_vae
    denoising_end = StableDiffusionXLPipeline.denoising_end

    @property
    def is_sdxl(self) -> bool:
        """Whether the model is an SDXL: it has a second text encoder."""
        return self.text_encoder_2 is not None

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """diffusers' own, with its signature and order: StableDiffusionPipeline's, or StableDiffusionXLPipeline's."""
        parent = StableDiffusionXLPipeline if self.is_sdxl else StableDiffusionPipeline
        return parent.encode_prompt(self, *args, **kwargs)

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own checks, for the kind of model that is loaded."""
        parent = StableDiffusionXLPipeline if self.is_sdxl else StableDiffusionPipeline
        parent.check_inputs(self, *args, **kwargs)

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
        options = webui_settings(webui_options)
        given["guidance_scale"] = guidance_scale = self._default_scale() if guidance_scale is None else guidance_scale
        encoder, settings = self.prompt_encoder(), prompt_settings(options, clip_skip)
        if self._asks_for_diffusers_own(given, encoder):
            return self._draw_as_diffusers(given, kwargs)
        prompts, negatives = prompt_list(prompt, negative_prompt, num_images_per_prompt, prompt_embeds)
        seeds = None
        if generator is None or seed is not None:
            seeds = noise_request(len(prompts), seed, subseed, subseed_strength, seed_resize, noise_source)
        first = first_pass(
            prompts,
            negatives,
            size=self._size_or_default(width, height, sampler),
            steps=num_inference_steps,
            sampler=sampler,
            schedule=schedule,
        )
        hires = hires_request(pick(HiresArguments, given, "hires_"), first, prompts, negatives)
        upscaler = None if hires is None else upscaler_of(hires.upscaler, self.upscaler, self._upscalers)
        refined = refined_passes(refiner_switch_at, options, hires is not None, self.refiner)
        if prompt_embeds is None:
            check_texts(encoder, [first] if hires is None else [first, hires.second], settings)
        conditioned = partial(pass_models, self, encoder, settings, options, pick(SizeArguments, given))
        embeds = given_conditioning(given) if prompt_embeds is not None else None
        self._begin(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)
        two_sided = sampler is not None or guidance_scale > 1
        guidance = guidance_options(
            options, given, two_sided=two_sided, image_embeds=self._image_embeds(given, prompts)
        )
        drawn = partial(
            run_pass,
            options=options,
            scheduler=self.scheduler,
            watch=partial(watch_steps, self, callback_on_step_end, callback_on_step_end_tensor_inputs),
            eta=eta,
        )
        channels, device = self.vae.config.latent_channels, self._execution_device

        with seamless_tiling(*([self.unet, self.vae] if tiling else [])):
            # 2. Networks named in the prompt

            # 3. Text -> conditioning
            models = conditioned(first, embeds, refines=refined.first)

            # 4. First pass: noise -> latents
            noise = pass_noise(seeds, generator, first, channels, options, device)
            x = drawn(first, models, guidance, noise, start=latents)

            # 5. Hires pass: the same image, larger, through the tail of a schedule
            if hires is not None and not self.interrupt:
                init = enlarge_latents(self.vae, x, hires.target, upscaler, options, noise.global_generator())
                models = conditioned(hires.second, embeds, refines=refined.second)
                noise = pass_noise(seeds, generator, hires.second, channels, options, device)
                x = drawn(hires.second, models, guidance, noise, init=init)

            # 6. Latents -> pixels
            pixels = None if output_type == "latent" else decode_latents(self.vae, finite_latents(x))

        # 7. Faces, and what the safety checker says
        images, flagged = x, None
        if pixels is not None:
            pixels, flagged = hide_flagged(self, pixels)
            images = pictures_of(pixels, output_type, truncates=sampler is not None)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, flagged
        return WebUIPipelineOutput(images, flagged, None, [] if seeds is None else seeds.seeds)

    # --- parts of the story that need the pipeline itself

    def prompt_encoder(self) -> PromptEncoder:
        """The encoder of prompts, with the embeddings that were added; rows encoded before are remembered."""
        return PromptEncoder.from_pipe(self, cache=self._row_cache)

    def _asks_for_diffusers_own(self, given: Mapping[str, Any], encoder: PromptEncoder) -> bool:
        """Whether only diffusers' arguments are given, and prompts without syntax that fit one chunk."""
        defaults = signature(type(self).__call__).parameters
        own = signature(self._parent().__call__).parameters
        if any(given[name] != defaults[name].default for name in given if name not in own and given[name] is not None):
            return False
        if given["clip_skip"] is not None and not self.is_sdxl:
            return False  # diffusers' own reads `text_encoder.text_model`, which transformers 5 no longer has
        texts = [given[name] for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")]
        flat = [t for text in texts if text is not None for t in ([text] if isinstance(text, str) else text)]
        return all(encoder.is_plain(text) for text in flat)

    def _draw_as_diffusers(
        self, given: Mapping[str, Any], deprecated: Mapping[str, Any]
    ) -> WebUIPipelineOutput | tuple:
        """StableDiffusionPipeline's own call (StableDiffusionXLPipeline's for SDXL) with its own arguments."""
        parent = self._parent()
        known = signature(parent.__call__).parameters
        arguments = {name: value for name, value in given.items() if name in known}
        arguments["eta"] = given["eta"] or 0.0
        arguments["callback_on_step_end_tensor_inputs"] = list(given["callback_on_step_end_tensor_inputs"])
        if arguments.get("crops_coords_top_left", ()) is None:
            arguments["crops_coords_top_left"] = (0, 0)
        if arguments.get("negative_crops_coords_top_left", ()) is None:
            arguments["negative_crops_coords_top_left"] = (0, 0)
        output = parent.__call__(self, **arguments, **deprecated)
        if not given["return_dict"]:
            return output
        return WebUIPipelineOutput(output.images, getattr(output, "nsfw_content_detected", None), None, [])

    def _parent(self) -> type:
        """The diffusers pipeline that this one stands in for."""
        return StableDiffusionXLPipeline if self.is_sdxl else StableDiffusionPipeline

    def _default_scale(self) -> float:
        return 5.0 if self.is_sdxl else 7.5

    def _size_or_default(self, width: int | None, height: int | None, sampler: str | None) -> tuple[int, int]:
        """(width, height) in pixels. SDXL takes any with a sampler named: it is told them, and the latents are cut."""
        sample = self.unet.config.sample_size
        sides = (sample, sample) if isinstance(sample, int) else tuple(sample)
        width, height = width or sides[1] * self.vae_scale_factor, height or sides[0] * self.vae_scale_factor
        if (width % 8 or height % 8) and not (self.is_sdxl and sampler is not None):
            raise ValueError(
                f"`width` and `height` must be multiples of 8 (a latent cell is 8x8 pixels); got {width}x{height}. "
                f"The nearest are {round(width / 8) * 8 or 8}x{round(height / 8) * 8 or 8}."
            )
        return width, height

    def _begin(self, guidance_scale: float, rescale: float, clip_skip: int | None, kwargs: dict | None) -> None:
        """Set what diffusers' properties of the same names show during a call."""
        self._guidance_scale, self._guidance_rescale = guidance_scale, rescale
        self._clip_skip, self._cross_attention_kwargs = clip_skip, kwargs
        self._interrupt = False

    def _image_embeds(self, given: Mapping[str, Any], prompts: list[str]) -> tuple[list[Tensor], list[Tensor]] | None:
        """The IP-Adapter's embeddings, positive and negative, one row an image."""
        image, embeds = given["ip_adapter_image"], given["ip_adapter_image_embeds"]
        if image is None and embeds is None:
            return None
        both = self.prepare_ip_adapter_image_embeds(image, embeds, self._execution_device, len(prompts), True)
        pairs = [rows.chunk(2) for rows in both]
        return [positive for _, positive in pairs], [negative for negative, _ in pairs]
