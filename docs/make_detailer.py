"""The README's sheet of detailing passes: a row of emoji, and three of them drawn anew by other prompts.

python docs/make_detailer.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import find_objects, label
from webui_diffusers.pipelines import DetailerPipeline, WebUITxt2ImgPipeline


DEMO = Path(__file__).parents[1] / "demo" / "model"
SUBJECTS = ("smiling face", "red apple", "cat", "pizza")
PROMPTS = ("[SKIP]", "a green apple, white background", "a panda, white background", "a red heart, white background")
SIDE = 104  # pixels that a subject takes


def coloured_things(picture: np.ndarray) -> tuple[list, list]:
    """A detector: boxes around what is not white, from left to right."""
    parts, _ = label(picture.min(axis=2) < 225)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(parts)]
    boxes = sorted(box for box in boxes if box[2] - box[0] > SIDE // 2)
    return boxes, [1.0] * len(boxes)


def emoji_row(pipe: WebUITxt2ImgPipeline) -> Image.Image:
    """The subjects side by side."""
    row = Image.new("RGB", (144 * len(SUBJECTS), 144), "white")
    for i, subject in enumerate(SUBJECTS):
        drawn = pipe(f"a {subject}, white background", seed=7, sampler="DPM++ 2M", num_inference_steps=14).images[0]
        small = drawn.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        row.paste(small, (144 * i + (144 - SIDE) // 2, (144 - SIDE) // 2))
    return row


def main() -> None:
    before = emoji_row(WebUITxt2ImgPipeline.from_pretrained(DEMO, dtype=torch.float32))
    pipe = DetailerPipeline.from_pretrained(DEMO, dtype=torch.float32)
    detail = {
        "ad_model": coloured_things,
        "ad_prompt": "[SEP]".join(PROMPTS),
        "ad_denoising_strength": 0.95,
        "ad_dilate_erode": 16,
        "ad_inpaint_only_masked_padding": 6,
    }
    after = pipe(before, detailers=[detail], seed=7, num_inference_steps=20, guidance_scale=5.0, noise_source="cpu")
    sheet = Image.new("RGB", (before.width, before.height * 2), "white")
    for i, picture in enumerate((before, after.images[0])):
        sheet.paste(picture, (0, i * before.height))
    sheet.save(Path(__file__).parent / "pictures" / "detailer.jpg", quality=88)


if __name__ == "__main__":
    main()
