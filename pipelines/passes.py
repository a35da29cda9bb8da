"""One pass over the latents of a batch: conditioning, denoiser and sampler put together.

Shared by the drawing pipelines. `pipe` here is always the pipeline whose components do the work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from .conditioning import (
    Conditioning,
    SizeArguments,
    SizeNumbers,
    TimedCond,
    WeightedCond,
    refiner_numbers,
    size_numbers,
)
from .prompt.encode import PromptEncoder
from .prompt.text_encoder import PromptSettings
from .registry import NetworkUses
from .request import NoiseRequest, PassRequest
from .sampling.denoiser import DenoiserModel, Guidance, GuidedDenoiser
from .sampling.discrete_schedule import ZERO_TERMINAL_SNR, NoiseTable, default_alphas_cumprod, scheduled_alphas_cumprod
from .sampling.latent_mask import LatentMask
from .sampling.loops import StepFn
from .sampling.noise import GeneratorNoise, SeededNoise
from .sampling.plan import img2img_steps, plan_sampling, sample_from_latents, sample_from_noise
from .sampling.scheduler_loop import sample_with_scheduler, scheduler_timesteps


class SamplingInterrupted(Exception):
    """The user stopped the pass; `latents` is how far it came."""

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


def trained_alphas_cumprod(scheduler: Any) -> Tensor:
    """The noise levels a model was trained on, from its scheduler's configuration: (1000,) float32.

    Stable Diffusion's own betas are multiplied in float64, as their trainer did; diffusers does it in float32.
    """
    config = scheduler.config
    if config.get("beta_schedule") == "scaled_linear" and config.get("trained_betas") is None:
        return default_alphas_cumprod(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    if not _knows_betas(scheduler):
        raise ValueError(
            f"`scheduler`: {type(scheduler).__name__} knows no betas, so it is for another kind of model (EDM, as "
            "Playground v2.5 and CosXL, or flow matching). The webui's samplers need one of Stable Diffusion's "
            "schedulers: name no `sampler`, and the scheduler itself steps."
        )
    return scheduler.alphas_cumprod.float().cpu()


def _knows_betas(scheduler: Any) -> bool:
    return scheduler.config.get("beta_schedule") is not None or getattr(scheduler, "alphas_cumprod", None) is not None


def noise_levels(scheduler: Any, options: Mapping[str, Any]) -> Tensor:
    """alphas_cumprod after the options. A scheduler that rescales its betas to zero terminal SNR asks for that too."""
    if scheduler.config.get("rescale_betas_zero_snr") and options["sd_noise_schedule"] == "Default":
        options = {**options, "sd_noise_schedule": ZERO_TERMINAL_SNR}
    return scheduled_alphas_cumprod(trained_alphas_cumprod(scheduler), options)


def encode_pass(
    encoder: PromptEncoder, plan: PassRequest, settings: PromptSettings, options: Mapping[str, Any]
) -> Conditioning:
    """The conditioning of one pass."""
    first_steps = plan.prompt_steps if plan.first_pass_calls is None else plan.first_pass_calls
    return encoder.conditioning(
        plan.prompts,
        plan.negatives,
        first_steps,
        hires_steps=None if plan.first_pass_calls is None else plan.prompt_steps,
        settings=settings,
        pad=bool(options["pad_cond_uncond"]),
        seconds=plan.seconds,
    )


def given_conditioning(given: Mapping[str, Any], *, is_sdxl: bool = False) -> Conditioning:
    """Conditioning from the arguments `prompt_embeds` (b, tokens, dim), `pooled_prompt_embeds` (b, dim) and their
    negative sides, each row repeated for its `num_images_per_prompt` pictures.

    The negative side is empty where it is to be encoded from `negative_prompt`. Raises ValueError for tensors that do
    not go together, and on SDXL for missing pooled ones.
    """
    embeds, pooled = given["prompt_embeds"], given["pooled_prompt_embeds"]
    negative, negative_pooled = given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"]
    for argument, one, other in (("pooled", embeds, pooled), ("negative_pooled", negative, negative_pooled)):
        if is_sdxl and one is not None and other is None:
            raise ValueError(
                f"`{argument}_prompt_embeds` is missing: SDXL reads it beside the embeddings of each token. Pass what "
                "`encode_prompt` or `PromptEncoder` gives with them."
            )
    if negative is not None and given["negative_prompt"] is not None:
        raise ValueError("`negative_prompt` and `negative_prompt_embeds` are both given: pass one of them.")
    if negative is not None and len(negative) != len(embeds):
        raise ValueError(
            f"`negative_prompt_embeds` has {len(negative)} rows and `prompt_embeds` {len(embeds)}: every prompt needs "
            "its own negative one."
        )

    def timed(rows: Tensor, pools: Tensor | None) -> list[list[TimedCond]]:
        entries = [TimedCond(2**31, row, None if pools is None else pools[i]) for i, row in enumerate(rows)]
        return [[entry] for entry in entries for _ in range(given["num_images_per_prompt"])]

    positive = [[WeightedCond(1.0, schedule)] for schedule in timed(embeds, pooled)]
    return Conditioning(positive, [] if negative is None else timed(negative, negative_pooled))


def completed_conditioning(
    given: Conditioning, encode: Callable[[], Conditioning] | None, width: int | None = None
) -> Conditioning:
    """Given conditioning with its negative side, which `encode` encodes where it is missing; zeros without `encode`.

    width: keep the last `width` channels, those of SDXL's second encoder, which its refiner reads alone.
    """

    def cut(schedule: Sequence[TimedCond]) -> list[TimedCond]:
        return [entry._replace(embeds=entry.embeds[:, -(width or 0) :]) for entry in schedule]

    positive = [[WeightedCond(piece.weight, cut(piece.schedule)) for piece in pieces] for pieces in given.positive]
    if given.negative:
        return replace(given, positive=positive, negative=[cut(schedule) for schedule in given.negative])
    if encode is not None:
        return replace(given, positive=positive, negative=encode().negative)
    nothing = [
        [
            e._replace(embeds=e.embeds * 0, pooled=None if e.pooled is None else e.pooled * 0)
            for e in pieces[0].schedule
        ]
        for pieces in positive
    ]
    return replace(given, positive=positive, negative=nothing)


def check_texts(
    encoder: PromptEncoder, first: PassRequest, second: PassRequest | None, settings: PromptSettings
) -> None:
    """Refuse prompts that would fail later: weights that are no number, negative prompts of unequal length."""
    for plan in (first,) if second is None else (first, second):
        encoder.check(plan.prompts, plan.negatives, plan.prompt_steps, settings, plan.seconds)


def pass_models(
    pipe: Any,
    settings: PromptSettings,
    options: Mapping[str, Any],
    sizes: SizeArguments,
    embeds: Conditioning | None,
    plan: PassRequest,
    uses: NetworkUses,
    *,
    refines: bool,
) -> list[DenoiserModel]:
    """The models of a pass with their conditioning: the base, and the refiner where it will take over.

    embeds: conditioning that stands for the prompts. The refiner reads the same texts with the second encoder alone.
    """
    has_encoder = pipe.text_encoder is not None or pipe.text_encoder_2 is not None
    encoder = pipe.attached.encoder(pipe, uses) if has_encoder or embeds is None else None

    def conditioned(width: int | None = None) -> Conditioning:
        used = encoder if encoder is None or width is None else encoder.last_alone()
        encode = None if used is None else partial(encode_pass, used, plan, settings, options)
        return encode() if embeds is None else completed_conditioning(embeds, encode, width)

    conditioning = conditioned()
    numbers = size_numbers(plan.asked_size, options, sizes) if pipe.is_sdxl else None
    models = [conditioned_model(pipe.unet, conditioning, pipe.scheduler, options, numbers)]
    if refines:
        width = pipe.refiner.config.cross_attention_dim
        if width != pipe.unet.config.cross_attention_dim:
            conditioning = conditioned(width)
            numbers = refiner_numbers(plan.asked_size, options, sizes)
        models.append(conditioned_model(pipe.refiner, conditioning, pipe.scheduler, options, numbers))
    return models


def conditioned_model(
    unet: Any, conditioning: Conditioning, scheduler: Any, options: Mapping[str, Any], size: SizeNumbers | None = None
) -> DenoiserModel:
    """A UNet with its conditioning and noise levels. size: SDXL's numbers, None for a UNet that takes none."""
    numbers = None if size is None else (torch.tensor(size.positive).float(), torch.tensor(size.negative).float())
    prediction = scheduler.config.get("prediction_type", "epsilon")
    table = NoiseTable(noise_levels(scheduler, options)) if _knows_betas(scheduler) else None
    return DenoiserModel(unet, table, conditioning, prediction, numbers)


def pass_noise(
    request: NoiseRequest | None,
    generator: Generator | list[Generator] | None,
    options: Mapping[str, Any],
    vae: Any,
    device: torch.device,
    plan: PassRequest,
) -> SeededNoise | GeneratorNoise:
    """The noise of one pass: by seeds, or by diffusers' generators where no seeds were asked for."""
    shape = (vae.config.latent_channels, plan.height // 8, plan.width // 8)
    if request is None:
        return GeneratorNoise(shape, plan.batch_size, generator, device=device)
    return SeededNoise(
        shape,
        request.seeds,
        source=request.source,
        subseeds=request.subseeds,
        subseed_strength=request.subseed_strength,
        seed_resize=request.seed_resize,
        eta_noise_seed_delta=options["eta_noise_seed_delta"],
        device=device,
    )


def guidance_options(options: Mapping[str, Any], given: Mapping[str, Any], **others: Any) -> Guidance:
    """`Guidance` from the options and arguments of the same names, and from `others`."""
    names = Guidance.__dataclass_fields__
    shared = {name: source[name] for source in (options, given) for name in names if name in source}
    return Guidance(**{**shared, **others})


def run_pass(
    plan: PassRequest,
    models: Sequence[DenoiserModel],
    guidance: Guidance,
    noise: SeededNoise | GeneratorNoise,
    *,
    options: Mapping[str, Any],
    scheduler: Any,
    watch: Callable[[GuidedDenoiser, int | None], AbstractContextManager[StepFn]],
    start: Tensor | None = None,
    init: Tensor | None = None,
    eta: float | None = None,
    mask: LatentMask | None = None,
    exact_steps: bool = True,
) -> Tensor:
    """Latents (b, c, h, w) float32 at the end of the pass, or where the user stopped it.

    start: noise of unit variance to begin with, instead of the first of `noise`. init: the clean latents that hires
    and img2img begin with. watch: given the denoiser and the number of steps, what is called after each step.
    exact_steps: run `plan.steps` steps whatever the strength (hires, and an option of img2img). Else a strength of 0
    still runs the last step with a sampler, as in the webui. mask: where latents are kept; the caller puts the clean
    ones back at the end.
    """
    if init is not None and plan.strength == 0 and (exact_steps or plan.sampler is None):
        return init
    try:
        if plan.sampler is None:
            return _scheduler_pass(
                plan, models, guidance, noise, scheduler, watch, start, init, eta, mask=mask, exact_steps=exact_steps
            )
        if models[0].table is None:
            trained_alphas_cumprod(scheduler)  # which says why there is none
        steps, t_enc = plan.steps, None
        if init is not None:
            steps, t_enc = img2img_steps(plan.strength, plan.steps, exact_steps)
        settled = plan_sampling(
            plan.sampler,
            plan.schedule,
            steps,
            models[0].table,
            t_enc=t_enc,
            options=options,
            is_sdxl=models[0].time_ids is not None,
            eta=eta,
        )
        denoiser = GuidedDenoiser(
            models,
            guidance,
            total_calls=settled.calls,
            lcm=plan.sampler.lcm,
            guidance_divisor=plan.sampler.guidance_divisor,
            mask=mask,
        )
        with watch(denoiser, settled.step_count) as on_step:
            if init is None:
                return sample_from_noise(settled, denoiser, noise, latents=start, on_step=on_step)
            multiplier = 1.0 if plan.is_hires else options["initial_noise_multiplier"]
            return sample_from_latents(settled, denoiser, init, noise, noise_multiplier=multiplier, on_step=on_step)
    except SamplingInterrupted as stopped:
        return stopped.latents


def _scheduler_pass(
    plan: PassRequest,
    models: Sequence[DenoiserModel],
    guidance: Guidance,
    noise: SeededNoise | GeneratorNoise,
    scheduler: Any,
    watch: Callable[[GuidedDenoiser, int | None], AbstractContextManager[StepFn]],
    start: Tensor | None,
    init: Tensor | None,
    eta: float | None,
    *,
    mask: LatentMask | None,
    exact_steps: bool,
) -> Tensor:
    """The same pass with diffusers' scheduler. Steps from latents are counted as with a sampler if they are to be
    exact, else as diffusers does: int(steps * strength)."""
    steps, strength = plan.steps, plan.strength
    if strength is not None and exact_steps:
        steps = int(plan.steps / min(strength, 0.999))
        strength = plan.steps / steps
    asked = plan.asked_steps
    timesteps = scheduler_timesteps(
        scheduler,
        steps,
        noise.device,
        timesteps=asked.timesteps,
        sigmas=asked.sigmas,
        denoising_end=asked.denoising_end,
        strength=strength,
    )
    if not len(timesteps):
        return init
    start = noise.next() if start is None else start.to(noise.device, torch.float32)
    x = start * scheduler.init_noise_sigma if init is None else scheduler.add_noise(init, start, timesteps[:1])
    denoiser = GuidedDenoiser(models, guidance, total_calls=len(timesteps))
    with watch(denoiser, len(timesteps)) as on_step:
        after = on_step if mask is None else _masked_steps(on_step, mask, scheduler, start, timesteps)
        return sample_with_scheduler(
            scheduler, denoiser, x, timesteps, eta=eta or 0.0, generator=_step_generators(noise), on_step=after
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


@contextmanager
def watch_steps(
    pipe: Any,
    callback: Callable[..., dict] | None,
    tensor_inputs: Sequence[str],
    denoiser: GuidedDenoiser,
    steps: int | None,
) -> Iterator[StepFn]:
    """What happens after each step: the progress bar, the user's callback, and the user's wish to stop.

    The callback is diffusers' `callback_on_step_end(pipe, i, t, tensors)`. `latents` that it returns replace the
    current ones; `pipe._guidance_scale` and `pipe._interrupt` are read after it. steps: None if not known before.
    """
    with pipe.progress_bar(total=float("inf") if steps is None else steps) as bar:

        def after_step(i: int, x: Tensor) -> Tensor:
            bar.update()
            if callback is not None:
                tensors = {"latents": x, **denoiser.side_tensors()}
                returned = callback(pipe, i, denoiser.timestep, {name: tensors.get(name) for name in tensor_inputs})
                x = (returned or {}).get("latents", x)
                denoiser.change_scale(pipe.guidance_scale)
            if pipe.interrupt:
                raise SamplingInterrupted(x)
            return x

        yield after_step
