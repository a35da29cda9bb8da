"""What the worker does for a request: drawing, enlarging, reading a picture's text. Plain values in and out."""

import json
import time
from collections.abc import Sequence
from typing import Any

from ...loaders.utils import LOGGER
from ..infotext.embedded import PARAMETERS_CHUNK, embedded_texts
from ..infotext.files import read_infotext
from ..infotext.read import parse_infotext
from .calls import Batch, Generation
from .drawn import Drawn
from .pictures import decode_file, decode_picture, encode_picture
from .requests import ExtrasBatchRequest, ExtrasRequest, GenerationRequest
from .script_jobs import JobPlan
from .settings import BadRequestField
from .shelf import ModelShelf
from .worker import Progress


NOT_SAVED = "save_images: the server was started without a folder for pictures, so none was saved"


def draw_generation(shelf: ModelShelf, plan: JobPlan, asked: GenerationRequest, progress: Progress) -> dict[str, Any]:
    """The answer to txt2img and img2img. An interrupted job answers with what it has."""
    first = plan.generations[0]
    comments = list(first.comments)
    progress.batches = sum(len(one.batches) for one in plan.generations)
    parts: list[Drawn] = []
    facts: dict[str, Any] = {}
    for generation in plan.generations:
        if progress.interrupted or (progress.stopping and parts):
            break
        with shelf.drawing(generation) as pipe:
            parts.append(_drawn(pipe, generation, progress))
            facts = facts or shelf.model_facts(pipe)
    drawn = plan.arrange(parts)
    kind = first.settings["samples_format"]
    if first.save_images and shelf.output_folder is None:
        LOGGER.warning("%s.", NOT_SAVED)
        comments.append(NOT_SAVED)
    elif first.save_images:
        shelf.save(drawn.images, drawn.texts, kind)
    sent = []
    if first.send_images:
        sent = [encode_picture(image, text, kind) for image, text in zip(drawn.images, drawn.texts)]
        if not first.settings["control_net_no_detectmap"]:
            sent += [encode_picture(image, None, kind) for image in drawn.control_images]
    info = {**_info(first, asked, drawn, facts), "comments": comments}
    parameters = asked.model_dump(exclude={"init_images", "mask"})
    return {"images": sent + first.init_images, "parameters": parameters, "info": json.dumps(info)}


def _drawn(pipe: Any, generation: Generation, progress: Progress) -> Drawn:
    """The images of all batches."""
    arguments, drawn = generation.arguments, Drawn()
    progress.steps = arguments["num_inference_steps"] + (arguments.get("hires_steps") or 0)
    for batch in generation.batches:
        if progress.interrupted or (progress.stopping and drawn.images):
            break
        progress.step, progress.skipped = 0, False
        call = _batch_arguments(arguments, batch)
        output = pipe(**call, callback_on_step_end=progress.after_step)
        progress.batch += 1
        drawn.add(output.images, output.infotexts, call)
        drawn.control_images = output.control_images or []
    return drawn


def _batch_arguments(arguments: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """The arguments of one call: every image its own seed, and its own texts where the batch has them."""
    count = len(batch.seeds)
    prompts = batch.prompts or [arguments["prompt"]] * count
    negatives = batch.negatives or [arguments["negative_prompt"]] * count
    texts = {"prompt": prompts, "negative_prompt": negatives}
    return {**arguments, **texts, "seed": batch.seeds, "subseed": batch.subseeds}


def _info(first: Generation, asked: GenerationRequest, drawn: Drawn, facts: dict[str, Any]) -> dict[str, Any]:
    """The webui's `info`: what was drawn, image by image."""
    call, batch = first.arguments, first.batches[0]
    return {
        "prompt": drawn.prompts[0] if drawn.prompts else call["prompt"],
        "all_prompts": drawn.prompts,
        "negative_prompt": drawn.negatives[0] if drawn.negatives else call["negative_prompt"],
        "all_negative_prompts": drawn.negatives,
        "seed": drawn.seeds[0] if drawn.seeds else batch.seeds[0],
        "all_seeds": drawn.seeds,
        "subseed": drawn.subseeds[0] if drawn.subseeds else batch.subseeds[0],
        "all_subseeds": drawn.subseeds,
        "subseed_strength": asked.subseed_strength,
        "width": asked.width,
        "height": asked.height,
        "sampler_name": call["sampler"],
        "cfg_scale": asked.cfg_scale,
        "steps": asked.steps,
        "batch_size": asked.batch_size,
        "restore_faces": "restore_faces" in call,
        "face_restoration_model": call.get("restore_faces"),
        "sd_model_name": facts.get("model_name"),
        "sd_model_hash": facts.get("model_hash"),
        "sd_vae_name": facts.get("vae_name"),
        "sd_vae_hash": facts.get("vae_hash"),
        "seed_resize_from_w": asked.seed_resize_from_w,
        "seed_resize_from_h": asked.seed_resize_from_h,
        "denoising_strength": getattr(asked, "denoising_strength", None),
        "extra_generation_params": {},
        "index_of_first_image": drawn.first,
        "infotexts": drawn.texts,
        "styles": list(asked.styles or []),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.settings["CLIP_stop_at_last_layers"],
        "is_using_inpainting_conditioning": False,
        "version": "v1.10.1",
    }


def upscaled_pictures(
    shelf: ModelShelf,
    asked: ExtrasRequest | ExtrasBatchRequest,
    images: Sequence[str],
    names: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """The answer to the extras: each picture enlarged and its faces restored, in the order that is asked for."""
    progress.batches = progress.steps = len(images)
    answers = []
    for number, (text, name) in enumerate(zip(images, names)):
        if progress.interrupted:
            break
        progress.batch = number
        picture = decode_picture(text, name).convert("RGB")
        steps = [shelf.with_faces, shelf.enlarged]
        for step in reversed(steps) if asked.upscale_first else steps:
            picture = step(picture, asked)
        answers.append(encode_picture(picture, None, "png"))
    if not answers:
        raise BadRequestField("image", "nothing was sent, or the job was interrupted before the first picture")
    return {"html_info": "", "images": answers}


def picture_facts(image: str) -> dict[str, Any]:
    """The answer to png-info: the text of a picture file, its fields, and what else it carries."""
    with decode_file(image, "image") as path:
        text, others = read_infotext(path), embedded_texts(path)
    others.pop(PARAMETERS_CHUNK, None)
    return {"info": str(text), "items": others, "parameters": parse_infotext(text) if text else {}}
