"""One pass over the latents of a batch: conditioning, denoiser and sampler put together; and img2img's single pass.

Nothing here knows of a call: all of it is said by the Request. `pipe` is the pipeline whose components do the work.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Generator, Tensor

from ..loaders.lora.peft_inject import scaled_adapters
from .conditioning import (
    Conditioning,
    SizeNumbers,
    completed_conditioning,
    refiner_numbers,
    size_numbers,
)
from .controlled import networks_at_device, pass_guidance
from .images.init_image import InitPictures
from .images.init_latents import blank_channels, encode_init, init_latents, takes_inpainting_channels
from .images.masks import LatentMasks
from .images.soft_overlay import with_soft_overlays
from .loras import ActiveLoras
from .prompt.encode import PromptEncoder
from .request import NoiseRequest, Pass, Request
from .sampling.denoiser import DenoiserModel, Guidance, GuidedDenoiser
from .sampling.guider_denoiser import guided_denoiser
from .sampling.latent_mask import LatentMask, SoftLatentMask
from .sampling.loops import StepFn
from .sampling.noise import GeneratorNoise, SeededNoise
from .sampling.odd_sizes import webui_odd_sizes
from .sampling.perturbed import freeu_on
from .sampling.plan import SamplingPlan, img2img_steps, plan_sampling, sample_from_latents, sample_from_noise
from .sampling.scheduler_loop import sample_with_scheduler, scheduler_timesteps


class SamplingInterrupted(Exception):
    """The user stopped the pass; `latents` is how far it came."""

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


@dataclass(frozen=True)
class PassStart:
    """What a pass begins with, all on one device."""

    noise: SeededNoise | GeneratorNoise
    latents: Tensor | None = None  # (b, c, h, w) of unit variance, in place of the first draw of `noise`
    init: Tensor | None = None  # (b, c, h, w) clean, for hires and img2img
    mask: LatentMask | None = None  # where `init` is kept; the caller puts it back at the end
    extra_channels: Tensor | None = None  # (b, k, h, w) beside the latent, for UNets made for inpainting


@dataclass(frozen=True)
class StepWatch:
    """What happens after each step: the progress bar, the user's callback, and the user's wish to stop.

    The callback is diffusers' `callback_on_step_end(pipe, i, t, tensors)`. `latents` that it returns replace the
    current ones; `pipe._guidance_scale` and `pipe._interrupt` are read after it.
    """

    pipe: Any
    callback: Callable[..., dict] | None = None
    tensor_inputs: Sequence[str] = ("latents",)
    networks: ActiveLoras | None = None  # some may begin or end with a step

    @contextmanager
    def steps(self, denoiser: GuidedDenoiser, count: int | None, timesteps: Tensor | None = None) -> Iterator[StepFn]:
        """The `on_step` of a pass of `count` steps; None if that is not known before.

        timesteps: those that a sampler's steps begin at. Helpers for diffusers look them up in the scheduler, by the
        number that the UNet gets.
        """
        pipe, names = self.pipe, self.tensor_inputs
        if isinstance(self.callback, (PipelineCallback, MultiPipelineCallbacks)):  # diffusers' own name theirs
            names = self.callback.tensor_inputs
        pipe._num_timesteps = count
        if timesteps is not None:
            pipe._num_timesteps = len(timesteps) if count is None else count
            pipe.scheduler.timesteps = timesteps.to(denoiser.model.unet.dtype).to(timesteps.dtype)
        with pipe.progress_bar(total=float("inf") if count is None else count) as bar:

            def after_step(i: int, x: Tensor) -> Tensor:
                bar.update()
                denoiser.end_step()
                if self.callback is not None:
                    tensors = {"latents": x, **denoiser.side_tensors()}
                    shown = {name: tensors.get(name) for name in names}
                    x = (self.callback(pipe, i, denoiser.timestep, shown) or {}).get("latents", x)
                    denoiser.change_scale(pipe.guidance_scale)
                if pipe.interrupt:
                    raise SamplingInterrupted(x)
                if self.networks is not None:
                    self.networks.before_step(i + 1)
                return x

            yield after_step


# --- text -> conditioning


def pass_models(pipe: Any, request: Request, plan: Pass) -> list[DenoiserModel]:
    """The models of a pass with their conditioning: the base, and the refiner where it will take over.

    The refiner reads the same texts with the second encoder alone. `cross_attention_kwargs={"scale": x}` scales the
    text encoders' adapters while they encode, and the UNet's while it runs.
    """

    def conditioned(encoder: PromptEncoder | None, width: int | None = None) -> Conditioning:
        encode = None if encoder is None else partial(encode_pass, encoder, request, plan)
        with scaled_adapters([each.model for each in encoder.encoders] if encoder else [], scale):
            return encode() if request.embeds is None else completed_conditioning(request.embeds, encode, width)

    scale = (plan.guidance.cross_attention_kwargs or {}).get("scale", 1.0)
    conditioning = conditioned(plan.encoder)
    numbers = size_numbers(plan.asked_size, request.options, request.sizes) if pipe.is_sdxl else None
    models = [conditioned_model(pipe, pipe.unet, plan, conditioning, numbers)]
    if plan.refines:
        width = pipe.refiner.config.cross_attention_dim
        if width != pipe.unet.config.cross_attention_dim:
            conditioning = conditioned(plan.encoder and plan.encoder.last_alone(), width)
            numbers = refiner_numbers(plan.asked_size, request.options, request.sizes)
        models.append(conditioned_model(pipe, pipe.refiner, plan, conditioning, numbers))
    return models


def encode_pass(encoder: PromptEncoder, request: Request, plan: Pass) -> Conditioning:
    """The conditioning of a pass from its texts."""
    evaluations = plan.first_pass_evaluations
    return encoder.conditioning(
        plan.prompts,
        plan.negatives,
        plan.prompt_steps if evaluations is None else evaluations,
        hires_steps=None if evaluations is None else plan.prompt_steps,
        settings=request.prompt_settings,
        pad=bool(request.options["pad_cond_uncond"]),
        seconds=plan.seconds,
    )


def conditioned_model(
    pipe: Any, unet: Any, plan: Pass, conditioning: Conditioning, size: SizeNumbers | None
) -> DenoiserModel:
    """A UNet with its conditioning and noise levels. size: SDXL's numbers, None for a UNet that takes none."""
    numbers = None if size is None else (torch.tensor(size.cond).float(), torch.tensor(size.uncond).float())
    prediction = pipe.scheduler.config.get("prediction_type", "epsilon")
    return DenoiserModel(unet, plan.table, conditioning, prediction, numbers)


# --- noise -> latents


def pass_noise(pipe: Any, request: NoiseRequest, plan: Pass, delta: int) -> SeededNoise | GeneratorNoise:
    """The noise of one pass: by seeds, or by diffusers' generators. delta: the option eta_noise_seed_delta."""
    shape = (pipe.vae.config.latent_channels, *plan.cells)
    device = request.device
    if request.seeds is None:
        return GeneratorNoise(shape, plan.batch_size, request.generator, device=device)
    return SeededNoise(
        shape,
        request.seeds,
        source=request.source,
        subseeds=request.subseeds,
        subseed_strength=request.subseed_strength,
        seed_resize=request.seed_resize,
        eta_noise_seed_delta=delta,
        device=device,
    )


def noise_start(pipe: Any, request: Request, plan: Pass, init: Tensor | None = None) -> PassStart:
    """What a pass of txt2img begins with. init: the enlarged latents, in the second pass.

    An inpainting UNet gets a mask that is all white, over grey.
    """
    noise = pass_noise(pipe, request.noise, plan, request.options["eta_noise_seed_delta"])
    channels = None
    if takes_inpainting_channels(pipe.unet, pipe.vae.config.latent_channels):
        channels = blank_channels(pipe.vae, plan.width, plan.height, plan.batch_size, request.noise.device)
    return PassStart(noise, request.latents if init is None else None, init, extra_channels=channels)


def init_start(pipe: Any, request: Request) -> PassStart:
    """What the pass of img2img begins with: images encoded, and which of them stay."""
    plan, init, device = request.first, request.init, request.noise.device
    delta = request.options["eta_noise_seed_delta"]
    shown = takes_inpainting_channels(pipe.unet, pipe.vae.config.latent_channels)
    found = init_latents(
        init.images,
        init.rows,
        plan.cells,
        init.arguments,
        encode=partial(
            encode_init,
            pipe.vae,
            rows=init.rows,
            generator=init.generator,
            each=request.noise.seeds is not None,
        ),
        noise=lambda: pass_noise(pipe, request.noise.bare, plan, delta).next(),
        device=device,
        mask_weight=request.options["inpainting_mask_weight"] if shown else None,
    )
    mask, soft = None, init.arguments.soft
    if found.mask is not None:
        mask = LatentMask(found.latents, *found.mask)
        if soft is not None:
            powers = (soft.schedule_bias, soft.preservation_strength, soft.transition_contrast_boost)
            mask = SoftLatentMask(found.latents, *found.mask, *powers)
    noise = pass_noise(pipe, request.noise, plan, delta)
    return PassStart(noise, None, found.latents, mask, found.extra_channels)


# --- latents -> latents


def run_pass(
    pipe: Any, request: Request, plan: Pass, models: Sequence[DenoiserModel], start: PassStart, watch: StepWatch
) -> Tensor:
    """Latents (b, c, h, w) float32 at the end of the pass, or where the user stopped it.

    A strength of 0 still runs the last step with a sampler, as in the webui, unless `plan.exact_steps`.
    """
    if start.init is not None and plan.strength == 0 and (plan.exact_steps or plan.sampler is None):
        return start.init
    watch.pipe._guidance_scale = plan.guidance.guidance_scale  # a callback reads and changes it
    guidance = plan.guidance
    if start.extra_channels is not None:
        guidance = replace(guidance, extra_channels=start.extra_channels)
    try:
        with (
            webui_odd_sizes(pipe.unet if plan.control.hooked else None),
            networks_at_device(pipe, plan.control),
            freeu_on(models[0].unet, guidance.freeu),
        ):
            if plan.sampler is None:
                return _scheduler_pass(pipe, request, plan, models, guidance, start, watch)
            steps, t_enc = plan.steps, None
            if start.init is not None:
                steps, t_enc = img2img_steps(plan.strength, plan.steps, plan.exact_steps)
            schedule = plan_sampling(
                plan.sampler,
                plan.schedule,
                steps,
                plan.table,
                t_enc=t_enc,
                options=request.options,
                is_sdxl=models[0].time_ids is not None,
                eta=request.eta,
            )
            denoiser = _sampler_denoiser(pipe, plan, schedule, models, guidance, start)
            with watch.steps(denoiser, schedule.step_count, schedule.timesteps) as on_step:
                if start.init is None:
                    return sample_from_noise(schedule, denoiser, start.noise, latents=start.latents, on_step=on_step)
                multiplier = plan.noise_multiplier
                return sample_from_latents(
                    schedule, denoiser, start.init, start.noise, noise_multiplier=multiplier, on_step=on_step
                )
    except SamplingInterrupted as stopped:
        return stopped.latents


def _sampler_denoiser(
    pipe: Any,
    plan: Pass,
    schedule: SamplingPlan,
    models: Sequence[DenoiserModel],
    guidance: Guidance,
    start: PassStart,
) -> GuidedDenoiser:
    """What a sampler calls in this pass."""
    control = pass_guidance(
        pipe.vae,
        plan.control,
        schedule.steps if schedule.t_enc is None else schedule.t_enc + 1,
        start.noise,
        tries=3 if plan.sampler.label == "DPM adaptive" else None,
    )
    return guided_denoiser(
        models,
        guidance,
        steps=schedule.step_count,
        total_calls=schedule.calls,
        lcm=plan.sampler.lcm,
        guidance_divisor=plan.sampler.guidance_divisor,
        mask=start.mask,
        control=control,
    )


def _scheduler_pass(
    pipe: Any,
    request: Request,
    plan: Pass,
    models: Sequence[DenoiserModel],
    guidance: Guidance,
    start: PassStart,
    watch: StepWatch,
) -> Tensor:
    """The same pass with diffusers' scheduler. Steps from latents are counted as with a sampler if they are to be
    exact, else as diffusers does: int(steps * strength)."""
    scheduler, steps, strength, device = pipe.scheduler, plan.steps, plan.strength, start.noise.device
    if strength is not None and plan.exact_steps:
        steps = int(plan.steps / min(strength, 0.999))
        strength = plan.steps / steps
    asked = plan.step_arguments
    timesteps = scheduler_timesteps(
        scheduler,
        steps,
        device,
        timesteps=asked.timesteps,
        sigmas=asked.sigmas,
        denoising_end=asked.denoising_end,
        strength=strength,
    )
    if not len(timesteps):
        return start.init
    noise = start.noise.next() if start.latents is None else start.latents.to(device, torch.float32)
    if start.init is None:
        x = noise * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(start.init, noise, timesteps[:1])
    control = pass_guidance(pipe.vae, plan.control, len(timesteps), start.noise)
    denoiser = guided_denoiser(models, guidance, steps=len(timesteps), total_calls=len(timesteps), control=control)
    generators = _step_generators(start.noise)
    with watch.steps(denoiser, len(timesteps)) as on_step:
        after = on_step if start.mask is None else _masked_steps(on_step, start.mask, scheduler, noise, timesteps)
        return sample_with_scheduler(
            scheduler, denoiser, x, timesteps, eta=request.eta or 0.0, generator=generators, on_step=after
        )


def _masked_steps(on_step: StepFn, mask: LatentMask, scheduler: Any, noise: Tensor, timesteps: Tensor) -> StepFn:
    """After each step what is kept is put back at the next step's noise level, as StableDiffusionInpaintPipeline
    does with a UNet of four channels."""

    def after_step(i: int, x: Tensor) -> Tensor:
        kept = mask.init
        if i + 1 < len(timesteps):
            kept = scheduler.add_noise(kept, noise, timesteps[i + 1 : i + 2])
        return on_step(i, x * mask.change + kept * mask.keep)

    return after_step


def _step_generators(noise: SeededNoise | GeneratorNoise) -> Generator | list[Generator] | None:
    """What a stochastic scheduler draws its step noise from: the caller's generators, or one per seed."""
    if isinstance(noise, GeneratorNoise):
        return noise.generator
    generators = [Generator("cpu").manual_seed(seed) for seed in noise.seeds]
    for generator in generators:  # the first draw of a seed is the noise that the pass began with
        torch.randn(noise.shape, generator=generator)
    return generators


# --- a whole job


class Redrawn(NamedTuple):
    """Latents (b, c, h, w) of an img2img job, and what its text says besides."""

    latents: Tensor
    images: InitPictures  # what it began with, and what is laid over
    rows: Sequence[int]  # which overlay each image of the batch gets
    embeddings: tuple[str, ...]  # textual inversions in use


def redraw(pipe: Any, request: Request, networks: ActiveLoras, watch: StepWatch) -> Redrawn:
    """One img2img job, in steps: networks on, text -> conditioning, images -> latents, latents -> latents.

    For any request with `init`, also those that no call made (see request.py). What is kept is put back at the end.
    The reports of the networks go to the pipeline.
    """
    plan, init = request.first, request.init
    pipe._network_reports = networks.switch(plan.loras)
    models = pass_models(pipe, request, plan)
    start = init_start(pipe, request)
    x = run_pass(pipe, request, plan, models, start, watch)
    images, rows, mask, soft = init.images, init.rows, start.mask, init.arguments.soft
    if mask is not None:
        x = mask.finished(x)
    if mask is not None and soft is not None:
        size = (plan.asked_size[1], plan.asked_size[0])
        kept = LatentMasks(mask.keep, mask.change)
        images = with_soft_overlays(images, rows, x, mask.init, kept, soft, size)
        rows = range(len(rows))
    return Redrawn(x, images, rows, models[0].conditioning.embeddings)
