"""What the worker does for a request: drawing, enlarging, reading a picture's text. Plain values in and out."""

import json
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..infotext.files import read_infotext
from ..infotext.read import parse_infotext
from .calls import BadRequestField, Batch, Generation
from .pictures import decode_file, decode_picture, encode_picture
from .requests import ExtrasBatchRequest, ExtrasRequest, GenerationRequest
from .scripts import script_arguments
from .shelf import ModelShelf
from .worker import Progress


def draw_generation(
    shelf: ModelShelf, generation: Generation, asked: GenerationRequest, progress: Progress
) -> dict[str, Any]:
    """The answer to txt2img and img2img. An interrupted job answers with what it has."""
    arguments = generation.arguments | script_arguments(asked)
    with shelf.drawing(generation) as pipe:
        progress.batches = len(generation.batches)
        progress.steps = arguments["num_inference_steps"] + (arguments.get("hires_steps") or 0)
        images: list[Image.Image] = []
        texts: list[str] = []
        for number, batch in enumerate(generation.batches):
            if progress.interrupted:
                break
            progress.batch, progress.step, progress.skipped = number, 0, False
            output = pipe(**_batch_arguments(arguments, batch), callback_on_step_end=_step_watch(progress))
            images += output.images
            texts += output.infotexts or [""] * len(output.images)
        facts = shelf.model_facts(pipe)
    kind = str(generation.settings["samples_format"]).lower()
    if generation.save_images:
        shelf.save(images, texts, kind)
    sent = [encode_picture(image, text, kind) for image, text in zip(images, texts)] if generation.send_images else []
    parameters = asked.model_dump(exclude={"init_images", "mask"})
    info = _info(generation, asked, texts, facts)
    return {"images": sent + generation.init_images, "parameters": parameters, "info": json.dumps(info)}


def _batch_arguments(arguments: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """The arguments of one call: every image its own seed, all the same texts."""
    count = len(batch.seeds)
    repeated = {name: [arguments[name]] * count for name in ("prompt", "negative_prompt")}
    return {**arguments, **repeated, "seed": batch.seeds, "subseed": batch.subseeds}


def _step_watch(progress: Progress) -> Any:
    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress.step += 1
        progress.latents = tensors["latents"]
        if progress.interrupted or progress.skipped:
            pipe._interrupt = True
        return {}

    return after_step


def _info(
    generation: Generation, asked: GenerationRequest, texts: Sequence[str], facts: dict[str, Any]
) -> dict[str, Any]:
    """The webui's `info`: what was drawn, image by image."""
    seeds = [seed for batch in generation.batches for seed in batch.seeds]
    subseeds = [seed for batch in generation.batches for seed in batch.subseeds]
    call, count = generation.arguments, len(seeds)
    return {
        "prompt": call["prompt"],
        "all_prompts": [call["prompt"]] * count,
        "negative_prompt": call["negative_prompt"],
        "all_negative_prompts": [call["negative_prompt"]] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
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
        "index_of_first_image": 0,
        "infotexts": list(texts),
        "styles": list(asked.styles or []),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": generation.settings["CLIP_stop_at_last_layers"],
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
        text = read_infotext(path)
    fields = parse_infotext(text) if text else {}
    return {"info": str(text), "items": {"parameters": str(text)} if text else {}, "parameters": fields}
