"""The last stage: a diffusers folder in float16, the LoRA files, and thumbnails of what the model has learnt."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from train_data import Placement, place
from train_subjects import SUBJECTS
from transformers import CLIPTextModel, CLIPTokenizer


THUMBNAIL = 12
"""Side of the thumbnails by which tests tell what a picture shows."""


def build_pipeline(
    vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as one StableDiffusionPipeline with Stable Diffusion 1.5's scheduler."""
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_model(pipeline: StableDiffusionPipeline, tokenizer_folder: Path, folder: Path) -> None:
    """Write the folder; the tokenizer as vocab.json and merges.txt, a third of tokenizer.json's size."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    _name_as_published(folder / "text_encoder" / "model.safetensors")


def _name_as_published(file: Path) -> None:
    """Give the text encoder's keys the prefix that published models have, which any transformers release reads."""
    tensors = load_file(file)
    prefixed = {key if key.startswith("text_model.") else f"text_model.{key}": t for key, t in tensors.items()}
    save_file(prefixed, file, {"format": "pt"})


def save_thumbnails(drawings: dict[str, np.ndarray], file: Path) -> None:
    """One PNG: a row of thumbnails on white for each style, a column a subject; labels in a JSON file beside it."""
    rows = []
    for style in drawings.values():
        pictures = [Image.fromarray(place(drawing, Placement(scale=0.88))) for drawing in style]
        small = [np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.BOX)) for picture in pictures]
        rows.append(np.concatenate(small, axis=1))
    Image.fromarray(np.concatenate(rows)).save(file, optimize=True)
    labels = {"styles": list(drawings), "subjects": [names[0] for names in SUBJECTS.values()]}
    file.with_suffix(".json").write_text(json.dumps(labels) + "\n")
