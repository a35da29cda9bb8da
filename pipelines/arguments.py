"""From the arguments of a call to its Request. Everything that cannot be drawn as asked is refused here, before any
work. `given` is always the call's arguments by name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..loaders.faces.load import load_face_detector, load_face_restorer
from ..loaders.model_lock import moved_whole
from ..loaders.utils import unknown_choice
from .argument_values import check_clip_skip
from .checks import (
    call_size,
    check_step_arguments,
    checked_strength,
    noise_request,
    prompt_list,
    refuse_unread,
)
from .conditioning import SizeArguments, given_conditioning
from .controlled import with_controls
from .detail_request import detail_request, outer_mask
from .drop_in import argument_or_default
from .guidance_request import requested_guidance
from .images.faces.nets import picture_restorer
from .images.fit import flatten_picture
from .images.hires import LATENT_CELL, hires_target
from .images.init_image import batch_rows, given_images, given_mask, init_arguments, prepare_init
from .img2img_scripts import img2img_script
from .options import HIRES_REFINER_PASSES, webui_settings
from .other_models import hires_pipe
from .request import DetailRequest, Enlargement, FaceRestoration, InitRequest, Pass, Request, StepArguments
from .sampling.discrete_schedule import NoiseTable, knows_betas, scheduler_alphas_cumprod
from .sampling.labels import find_schedule
from .sampling.noise import generator_seeds
from .sampling.perturbed import self_attentions
from .sampling.samplers import resolve_sampler
from .script_settings import Loopback, SDUpscale
from .stock_texts import stock_settings
from .texts import pass_texts, prompt_encoder, prompt_settings


# Arguments of diffusers' img2img call that only its own drawing reads.
_STOCK_IMG2IMG_ONLY = ("denoising_start", "latents", "aesthetic_score", "negative_aesthetic_score")


def txt2img_request(pipe: Any, given: Mapping[str, Any]) -> Request:
    """The request of a WebUITxt2ImgPipeline's call."""
    prompts, negatives = prompt_list(
        given["prompt"], given["negative_prompt"], given["num_images_per_prompt"], given["prompt_embeds"]
    )
    size = call_size(pipe, given["width"], given["height"], given["sampler"])
    request = _one_pass(pipe, given, prompts, negatives, size)
    request = replace(request, latents=given["latents"])
    if given["hires_scale"] or any(given["hires_size"] or ()):
        request = _with_hires(pipe, given, request, prompts, negatives)
    request = _with_refiner(pipe, given["refiner_switch_at"], request)
    check_step_arguments(request.first.step_arguments, given["sampler"], has_hires=request.second is not None)
    _check_texts(request)
    request = with_controls(pipe, given, request)
    return replace(request, details=_details(pipe, given, request, prompts))


def img2img_request(pipe: Any, given: Mapping[str, Any]) -> Request:
    """The request of a WebUIImg2ImgPipeline's call."""
    refuse_unread(pipe, given, _STOCK_IMG2IMG_ONLY)
    asked = init_arguments(given)
    pictures = given_images(given["image"], pipe.vae.config.latent_channels)
    prompt, each = given["prompt"], given["num_images_per_prompt"]
    if isinstance(prompt, str) and each == 1:
        prompt = [prompt] * pictures.number
    prompts, negatives = prompt_list(prompt, given["negative_prompt"], each, given["prompt_embeds"])
    rows = batch_rows(pictures.number, len(prompts) // each, each)
    size = call_size(pipe, *pictures.job_size(given["width"], given["height"]), given["sampler"])
    request = _one_pass(pipe, given, prompts, negatives, size)
    check_step_arguments(request.first.step_arguments, given["sampler"], has_hires=False)
    first = replace(
        request.first,
        strength=checked_strength("strength", argument_or_default(pipe, "strength", given)),
        exact_steps=bool(request.options["img2img_fix_steps"]),
        noise_multiplier=request.options["initial_noise_multiplier"],
    )
    request = _with_refiner(pipe, given["refiner_switch_at"], replace(request, first=first))
    _check_texts(request)
    mask, background = given_mask(given["mask_image"]), request.options["img2img_background_color"]
    images = prepare_init(pictures, mask, size, asked, background)
    flat = [flatten_picture(picture, background) for picture in pictures.pictures]
    init = InitRequest(asked, images, rows, mask is not None, given["generator"], flat, mask)
    request = replace(request, init=init, script=img2img_script(given, init, prompts))
    if asked.soft is not None and given["sampler"] is None:
        raise ValueError('`soft_inpainting` works with the webui\'s samplers: name one (sampler="Euler a", say).')
    request = with_controls(pipe, given, request)
    return replace(request, details=_details(pipe, given, request, prompts))


def _details(pipe: Any, given: Mapping[str, Any], request: Request, prompts: list[str]) -> DetailRequest | None:
    def restoration() -> FaceRestoration | None:
        name = given["restore_faces"] or "CodeFormer"
        return _face_restoration(pipe, name, given["face_fidelity"], request.options)

    if given["detailers"] and given["output_type"] == "latent":
        raise ValueError('`detailers` work on pictures, and `output_type` is "latent". Ask for another output.')
    if isinstance(request.script, SDUpscale | Loopback) and given["detailers"]:
        raise ValueError(
            "`detailers` and `sd_upscale` or `loopback` are both given: every tile or loop would be detailed by "
            "itself. Draw first, then pass the picture on with `detailers` alone."
        )
    off, within = outer_mask(request)
    return detail_request(pipe, given, request, prompts, restoration, within=within, off=off)


def _one_pass(
    pipe: Any, given: Mapping[str, Any], prompts: list[str], negatives: list[str], size: tuple[int, int]
) -> Request:
    """What all calls have: the first pass and what holds for both. size: (width, height) in pixels."""
    options = webui_settings(given["webui_options"])
    check_clip_skip(given["clip_skip"], pipe.text_encoder)
    scheduler, table = pipe.scheduler, None
    if knows_betas(scheduler) or given["sampler"] is not None or given.get("hires_sampler") is not None:
        table = NoiseTable(scheduler_alphas_cumprod(scheduler, options))
    noise = noise_request(given, len(prompts), pipe._execution_device)
    seeds = noise.seeds or generator_seeds(noise.generator, len(prompts), noise.device)
    settings = prompt_settings(options, given["clip_skip"])
    embeds = None if given["prompt_embeds"] is None else given_conditioning(given, is_sdxl=pipe.is_sdxl)
    return Request(
        first=_first_pass(pipe, given, prompts, negatives, size, options, table),
        noise=noise,
        options=options,
        prompt_settings=settings if given["sampler"] is not None else stock_settings(pipe, given, settings),
        sizes=SizeArguments(
            original_size=given["original_size"],
            crops_coords_top_left=given["crops_coords_top_left"],
            target_size=given["target_size"],
            negative_original_size=given["negative_original_size"],
            negative_crops_coords_top_left=given["negative_crops_coords_top_left"],
            negative_target_size=given["negative_target_size"],
        ),
        embeds=embeds,
        eta=given["eta"],
        faces=_face_restoration(pipe, given["restore_faces"], given["face_fidelity"], options),
        tiling=bool(given["tiling"]),
        scheduler=scheduler,
        seeds=seeds,
    )


def _first_pass(
    pipe: Any,
    given: Mapping[str, Any],
    prompts: list[str],
    negatives: list[str],
    size: tuple[int, int],
    options: Mapping[str, Any],
    table: NoiseTable | None,
) -> Pass:
    (width, height), cell = size, pipe.vae_scale_factor
    step_arguments = StepArguments(given["timesteps"], given["sigmas"], given["denoising_end"])
    steps = step_arguments.count(given["num_inference_steps"])
    if steps < 1:
        raise ValueError(f"`num_inference_steps` must be at least 1; got {steps}.")
    if given["sampler"] is None and given["schedule"] is not None:
        raise ValueError(
            f"`schedule` is {given['schedule']!r} but no `sampler` is named: the pipeline's scheduler has its own. "
            'Name a sampler (sampler="Euler", say), or set the scheduler up instead.'
        )
    chosen = (None, None) if given["sampler"] is None else resolve_sampler(given["sampler"], given["schedule"])
    texts = pass_texts(pipe, given, prompts)
    return Pass(
        prompts=texts.prompts,
        negatives=negatives,
        written=texts.written,
        loras=texts.loras,
        encoder=prompt_encoder(pipe, given, texts.loras),
        sampler=chosen[0],
        schedule=chosen[1],
        table=table,
        steps=steps,
        width=width // cell * cell,
        height=height // cell * cell,
        cell=cell,
        asked_size=(height, width),
        guidance=requested_guidance(pipe, given, options, len(prompts)),
        seconds=texts.seconds,
        step_arguments=step_arguments,
    )


def _with_hires(
    pipe: Any, given: Mapping[str, Any], request: Request, prompts: list[str], negatives: list[str]
) -> Request:
    """The request with its second pass, and what comes before it. prompts: the first pass's, with their tags."""
    first = request.first
    if first.cell != LATENT_CELL:
        raise ValueError(
            f"`hires_scale`, `hires_size`: the VAE has {first.cell} pixels a latent cell, and hires fix is "
            f"the webui's, for {LATENT_CELL}. Leave them out."
        )
    target = hires_target(first.asked_size[1], first.asked_size[0], given["hires_scale"], given["hires_size"])
    texts = pass_texts(pipe, given, _texts_or("hires_prompt", given["hires_prompt"], prompts))
    sampler, schedule = first.sampler, first.schedule
    if given["hires_sampler"] is not None:
        sampler, schedule = resolve_sampler(given["hires_sampler"], given["hires_schedule"] or first.schedule)
    elif given["hires_schedule"] is not None:
        if sampler is None:
            raise ValueError("`hires_schedule` needs a sampler: name `hires_sampler` (or `sampler`) too.")
        schedule = find_schedule(given["hires_schedule"])
    scale = given["hires_guidance_scale"]
    scale = first.guidance.guidance_scale if scale is None else float(scale)
    second = replace(
        first,
        prompts=texts.prompts,
        negatives=_texts_or("hires_negative_prompt", given["hires_negative_prompt"], negatives),
        written=texts.written,
        loras=texts.loras,
        encoder=first.encoder if texts.loras == first.loras else prompt_encoder(pipe, given, texts.loras),
        sampler=sampler,
        schedule=schedule,
        steps=given["hires_steps"] or first.steps,
        width=target.width,
        height=target.height,
        asked_size=(target.enlarged_height, target.enlarged_width),
        guidance=replace(
            first.guidance,
            guidance_scale=scale,
            do_classifier_free_guidance=sampler is not None or scale > 1,
            repeats_last=sampler is not None,
        ),
        first_pass_evaluations=first.prompt_steps,
        strength=checked_strength("hires_strength", given["hires_strength"]),
        step_arguments=StepArguments(),
    )
    label, upscaler = pipe.attached.upscaler(given["hires_upscaler"], pipe.upscaler)
    asked = (given["hires_scale"], given["hires_size"], given["hires_steps"])
    artist = hires_pipe(pipe, given["hires_model"])
    if artist is not None:
        table = NoiseTable(scheduler_alphas_cumprod(artist.scheduler, request.options))
        second = replace(second, table=table, encoder=prompt_encoder(artist, given, texts.loras))
        if second.guidance.pag is not None:
            self_attentions(artist.unet, second.guidance.pag.applied_layers)  # refuses names that it does not have
    return replace(request, second=second, enlargement=Enlargement(target, label, upscaler, *asked, artist))


def _with_refiner(pipe: Any, switch_at: float | None, request: Request) -> Request:
    """The request with the passes in which the refiner takes over. With hires fix that is a matter of the option
    `hires_fix_refiner_pass`."""
    if switch_at is None:
        return request
    if pipe.refiner is None:
        raise ValueError(
            f"`refiner_switch_at` is {switch_at} but the pipeline has no refiner. Load one: "
            "`pipe.register_modules(refiner=unet)` with the refiner's UNet2DConditionModel."
        )
    if not 0 <= switch_at <= 1:
        raise ValueError(f"`refiner_switch_at` must be from 0 to 1; got {switch_at}.")
    which = request.options["hires_fix_refiner_pass"]
    if which not in HIRES_REFINER_PASSES:
        raise ValueError(unknown_choice("`hires_fix_refiner_pass`:", which, HIRES_REFINER_PASSES))
    if request.second is None:
        return replace(request, first=replace(request.first, refines=True))
    return replace(
        request,
        first=replace(request.first, refines=which != "second pass"),
        second=replace(request.second, refines=which != "first pass"),
    )


def _face_restoration(
    pipe: Any, name: str | None, fidelity: float | None, options: Mapping[str, Any]
) -> FaceRestoration | None:
    """What `restore_faces=name` does, as the webui does it; None for nothing.

    The pipeline's component `face_restorer` is what restores, whatever its kind; without one, the file known by
    `name` ("CodeFormer", "GFPGAN", a path) is loaded once. Without `face_detector`, MTCNN finds the faces.
    fidelity: 0..1; None is the option `code_former_weight`.
    """
    if name is None or name == "None":
        return None
    restorer, detector = pipe.face_restorer, pipe.face_detector
    if restorer is None:
        restorer = pipe.attached.face_model(name, load_face_restorer)
    if detector is None:
        detector = pipe.attached.face_model("MTCNN", load_face_detector)
    device = pipe._execution_device
    weight = options["code_former_weight"] if fidelity is None else fidelity
    restorer, detector = moved_whole(restorer, device), moved_whole(detector, device)
    restore = picture_restorer(restorer, detector, pipe.face_parser, fidelity=weight)
    return FaceRestoration(name, restore)


def _texts_or(argument: str, given: str | Sequence[str] | None, default: list[str]) -> list[str]:
    """The hires text of every image; an empty one means the first pass's."""
    if not given:
        return default
    texts = [given] * len(default) if isinstance(given, str) else list(given)
    if len(texts) != len(default):
        raise ValueError(
            f"`{argument}` has {len(texts)} entries for {len(default)} images: give one text, or one each."
        )
    return [text or before for text, before in zip(texts, default, strict=True)]


def _check_texts(request: Request) -> None:
    """Refuse prompts that would fail later: weights that are no number, negative prompts of unequal length."""
    if request.embeds is not None:
        return
    for plan in (request.first,) if request.second is None else (request.first, request.second):
        settings, alike = request.prompt_settings, plan.sampler is not None
        plan.encoder.check(plan.prompts, plan.negatives, plan.prompt_steps, settings, plan.seconds, alike=alike)
