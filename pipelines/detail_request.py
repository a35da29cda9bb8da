"""The argument `detailers` made ready: every pass's detector, sampler, models and numbers, before any work."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..loaders.detectors.library import face_boxes
from ..loaders.utils import LOGGER, NameFromRequest, NameFromText, unknown_choice
from .detailer_settings import Detailer, DetailerPlan, read_detailers
from .images.detail.boxes import BOX_ORDERS, Detection, read_detection
from .images.detail.jobs import DetailTexts, filled_part, prompt_parts
from .images.fit import fit_picture
from .images.masks import mask_levels
from .loras import lora_uses
from .prompt.network_tags import split_batch_tags
from .request import DetailPass, DetailRequest, FaceRestoration, Pass, Request
from .sampling.samplers import Sampler, resolve_sampler


BOX_SIZE_MATCHES = ("Off", "Strict (SDXL only)", "Free")


def detail_request(
    pipe: Any,
    given: Mapping[str, Any],
    request: Request,
    prompts: Sequence[str],
    restoration: Callable[[], FaceRestoration | None],
    *,
    within: Image.Image | None = None,
    off: bool = False,
) -> DetailRequest | None:
    """`detailers` of a call, whose own request is made already; None where no pass is active.

    prompts: one an image, with their network tags. restoration: what "restore face" does. within: see DetailRequest.
    off: nothing is to be detailed (a black mask). Raises ValueError for settings and names that are not
    there.
    """
    plan = read_detailers(given["detailers"])
    _check_detail_options(request.options)
    skips_inpainting = plan.skip_img2img and request.init is not None and request.init.masked
    if off or skips_inpainting or not plan.active:
        return None
    tagged = False
    for one in plan.active:
        for text in {filled_part(part, own) for part in prompt_parts(one["ad_prompt"]) for own in prompts}:
            # An unknown network is refused now.
            tagged |= bool(lora_uses(pipe.networks, split_batch_tags([text])[1], given["loras"]))
    height, width = request.first.asked_size
    passes = [_detail_pass(pipe, one, request, plan, restoration) for one in plan.active]
    return DetailRequest(
        plan,
        [one for one in passes if one is not None],
        [_detail_texts(request, prompt, k) for k, prompt in enumerate(prompts)],
        (width, height),
        given["loras"],
        given["lora_backend"],
        within,
        tagged,
    )


def outer_mask(request: Request) -> tuple[bool, Image.Image | None]:
    """Whether an inpainting leaves nothing to detail (its mask is black), and the mask ("L", of the job's size) that
    what is detailed must touch: that of an inpainting of the whole picture."""
    init = request.init
    if init is None or init.mask is None:
        return False, None
    mask = mask_levels(init.mask, soft=False)
    if init.arguments.invert_mask:
        mask = ImageOps.invert(mask)
    if mask.getbbox() is None:
        return True, None
    if init.arguments.inpaint_area == "masked":
        return False, None
    height, width = request.first.asked_size
    return False, fit_picture(mask, width, height, init.arguments.resize_mode)


def _detail_pass(
    pipe: Any,
    one: Detailer,
    request: Request,
    plan: DetailerPlan,
    restoration: Callable[[], FaceRestoration | None],
) -> DetailPass | None:
    """The pass with its names resolved. One out of somebody's text may name what is not here: its sampler and models
    are the job's then, and without its detector there is no pass; the log says so."""
    first = request.first
    find = _or_told(one, "ad_model", lambda: _finder(pipe, one, first.batch_size), None)
    if find is None:
        return None
    _or_told(one, "ad_controlnet_model", lambda: _refuse_controlnet(one), None)
    same = first.sampler, first.schedule
    sampler, schedule = _or_told(one, "ad_sampler", lambda: _detail_sampler(one, first, skips=plan.skip_img2img), same)
    steps, scale = one.separate("ad_steps"), one.separate("ad_cfg_scale")
    multiplier = one.separate("ad_noise_multiplier")
    return DetailPass(
        settings=one,
        find=find,
        sampler=sampler,
        schedule=schedule,
        steps=first.steps if steps is None else steps,
        guidance_scale=first.guidance.guidance_scale if scale is None else scale,
        noise_multiplier=request.options["initial_noise_multiplier"] if multiplier is None else multiplier,
        clip_skip=one.separate("ad_clip_skip"),
        faces=restoration() if one["ad_restore_face"] else None,
        pipe=_or_told(one, "ad_checkpoint", lambda: _detail_pipe(pipe, one), pipe),
    )


def _or_told(one: Detailer, name: str, resolve: Callable[[], Any], otherwise: Any) -> Any:
    """What `resolve` gives; for a pass out of a text `otherwise`, with a warning, where that is not to be had."""
    try:
        return resolve()
    except ValueError as error:
        if not isinstance(one["ad_model"], NameFromText) or isinstance(one["ad_model"], NameFromRequest):
            raise
        what = {"ad_model": "it does not run", "ad_controlnet_model": "it is drawn without"}.get(
            name, "it is drawn with the job's own"
        )
        LOGGER.warning("The detailer's pass %d, out of a text: %s: %s", one.number, what, error)
        return otherwise


def _refuse_controlnet(one: Detailer) -> None:
    model = one["ad_controlnet_model"]
    if model not in ("None", "", None):
        raise ValueError(
            f"`detailers`, pass {one.number}: `ad_controlnet_model` is {str(model)!r}, and detailing passes draw "
            "without ControlNets. Leave it out, or draw the part with `WebUIImg2ImgPipeline` and `control_units`."
        )


def _detail_sampler(one: Detailer, first: Pass, *, skips: bool) -> tuple[Sampler | None, str | None]:
    """Sampler and schedule of a pass. Where img2img's own drawing is skipped, "Use same sampler" is Euler."""
    if not one["ad_use_sampler"]:
        return first.sampler, first.schedule
    name, schedule = one.separate("ad_sampler"), one.separate("ad_scheduler")
    if name is None:
        if skips:
            name = "Euler"
        elif first.sampler is None:
            return None, None
        else:
            name = first.sampler.label
    return resolve_sampler(name, schedule or first.schedule)


def _detail_pipe(pipe: Any, one: Detailer) -> Any:
    checkpoint, vae = one.separate("ad_checkpoint"), one.separate("ad_vae")
    models = pipe.attached.models
    if checkpoint is not None:
        checkpoint = models.find("checkpoint", checkpoint, "ad_checkpoint")
    if vae is not None:
        vae = models.find("VAE", vae, "ad_vae")
    return pipe if checkpoint is None and vae is None else models.pipe(pipe, checkpoint, vae)


def _finder(pipe: Any, one: Detailer, count: int) -> Callable[[np.ndarray, int], Detection]:
    """What finds things for a pass: the given boxes of image k, the given callable, or the detector of that name."""
    where = f"`detailers`, pass {one.number}:"
    if one.detections is not None:
        given = [one.detections] if isinstance(one.detections, Mapping) else list(one.detections)
        if len(given) != count:
            raise ValueError(f"{where} `detections` has {len(given)} entries for {count} images: give one an image.")
        found = [read_detection(entry, f"{where} `detections`") for entry in given]
        return lambda picture, k: found[k]
    if one.detector is not None:
        return lambda picture, k: read_detection(one.detector(picture), f"{where} `ad_model`")
    classes = one["ad_model_classes"]
    if one["ad_model"].lower() == "face" and pipe.face_detector is not None:
        return lambda picture, k: read_detection(face_boxes(pipe.face_detector, picture), f"{where} `ad_model`")
    detect = pipe.attached.detectors.find(one["ad_model"], confidence=one["ad_confidence"], classes=classes)
    return lambda picture, k: read_detection(detect(picture), f"{where} `ad_model`")


def _detail_texts(request: Request, prompt: str, k: int) -> DetailTexts:
    seeds, subseeds = request.seeds, request.noise.subseeds
    seed, subseed = (numbers[k] if k < len(numbers) else 0 for numbers in (seeds, subseeds))
    return DetailTexts(prompt, request.first.negatives[k], seed, subseed)


def _check_detail_options(options: Mapping[str, Any]) -> None:
    for name, known in (("ad_bbox_sortby", BOX_ORDERS), ("ad_match_inpaint_bbox_size", BOX_SIZE_MATCHES)):
        if options[name] not in known:
            raise ValueError(unknown_choice(f"`webui_options`: `{name}`", options[name], known))
