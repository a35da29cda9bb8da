"""Draw the demo's pictures: `make demo`, or

    python demo/draw.py --out demo/out

Everything runs offline, on the CPU, with the tiny emoji model and the two LoRA files beside this script.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.hints.edges import canny_edges


HERE = Path(__file__).parent
SUBJECTS = ("red apple", "cat", "pizza", "rocket", "panda", "smiling face", "green apple", "ghost", "octopus")
SUBJECTS += ("banana", "house", "unicorn")


def sheet(cells: Sequence[tuple[str, Image.Image]], columns: int, caption: int = 16) -> Image.Image:
    """Pictures of one size in rows, each with its label below."""
    width, height = (max(side) for side in zip(*(picture.size for _, picture in cells)))
    rows = -(-len(cells) // columns)
    paper = Image.new("RGB", (columns * width, rows * (height + caption)), "white")
    pen = ImageDraw.Draw(paper)
    for index, (label, picture) in enumerate(cells):
        x, y = index % columns * width, index // columns * (height + caption)
        paper.paste(picture, (x + (width - picture.width) // 2, y))
        pen.text((x + width // 2, y + height + caption // 2), label, fill="black", anchor="mm")
    return paper


def control_cells(draw: Callable[..., Image.Image]) -> list[tuple[str, Image.Image]]:
    """Rows of a mirrored drawing, its edges, and what four prompts make of these edges."""
    cells = []
    for subject in ("balloon", "Christmas tree", "cat"):
        drawing = ImageOps.mirror(draw(f"a {subject}"))
        unit = {"image": drawing, "module": "canny", "model": "emoji_canny", "pixel_perfect": True}
        edges = Image.fromarray(canny_edges(np.asarray(drawing), 100, 200)).convert("RGB")
        cells += [(f"{subject}, mirrored", drawing), ("its edges", edges)]
        prompts = (f"a {subject}", "a red apple", "a pumpkin", "a blue heart")
        cells += [(prompt, draw(prompt, control_units=[unit])) for prompt in prompts]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where the pictures go")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    pipe = WebUITxt2ImgPipeline.from_pretrained(HERE / "model", dtype=torch.float32)
    pipe.lora_folder = HERE / "loras"
    pipe.set_progress_bar_config(leave=False)

    def draw(prompt: str, **arguments) -> Image.Image:
        call = {"seed": 7, "sampler": "DPM++ 2M", "num_inference_steps": 14, "guidance_scale": 5.0, **arguments}
        return pipe(prompt, **call).images[0]

    def save(name: str, columns: int, *cells: tuple[str, Image.Image]) -> None:
        sheet(cells, columns).save(out / f"{name}.png")
        print(out / f"{name}.png", flush=True)

    save("prompts", 6, *((name, draw(f"a {name}")) for name in SUBJECTS))
    scales = [0.6 + i * 0.2 for i in range(6)]
    save("weights", 6, *((f"a (sun:{w:.1f}) panda", draw(f"a (sun:{w}) panda")) for w in scales))
    edits = ("a red heart", "a [red:green:0.3] heart", "a [red|green] heart", "red heart AND cat")
    save("editing", 4, *((text, draw(text)) for text in edits))
    samplers = ("Euler a", "DPM++ 2M Karras", "DPM++ SDE", "DDIM")
    save("samplers", 4, *((sampler, draw("a cat", sampler=sampler)) for sampler in samplers))
    styles = {"no LoRA": "", "flat": "<lora:flat:1>", "contrast": "<lora:contrast:1>"}
    styles["half of each"] = "<lora:flat:0.5><lora:contrast:0.5>"
    save("styles", 4, *((name, draw(f"a panda{tags}")) for name, tags in styles.items()))
    large = draw("a cat", hires_scale=4, hires_steps=5, hires_strength=0.2, hires_upscaler="R-ESRGAN AnimeVideo")
    small = draw("a cat").resize(large.size, Image.Resampling.BICUBIC)
    pipe.controlnet_folder = HERE / "controlnets"
    save("control", 6, *control_cells(draw))
    save("hires", 2, ("4x, bicubic", small), ("hires fix, 4x, R-ESRGAN AnimeVideo", large))


if __name__ == "__main__":
    main()
