"""Draw the demo's pictures: `make demo`, or

    python demo/draw.py --out demo/out

Everything runs offline, on the CPU, with the tiny emoji model and the two LoRA files beside this script.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from webui_diffusers.pipelines import WebUITxt2ImgPipeline


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where the pictures go")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    pipe = WebUITxt2ImgPipeline.from_pretrained(HERE / "model", dtype=torch.float32)
    pipe.lora_folder = HERE / "loras"
    pipe.set_progress_bar_config(leave=False)

    def draw(prompt: str, **arguments) -> Image.Image:
        call = {"seed": 7, "sampler": "DPM++ 2M", "num_inference_steps": 20, "guidance_scale": 4.0, **arguments}
        return pipe(prompt, **call).images[0]

    prompts = [(f"{name}", draw(f"a {name} emoji, white background")) for name in SUBJECTS]
    weights = [(f"({0.6 + i * 0.2:.1f})", draw(f"a (red:{0.6 + i * 0.2:.1f}) heart")) for i in range(6)]
    edited = [
        (text, draw(text))
        for text in ("a red heart", "a [red:green:0.25] heart", "a [red|green] heart", "a red heart AND a green heart")
    ]
    samplers = [
        (sampler, draw("a cat", sampler=sampler)) for sampler in ("Euler a", "DPM++ 2M Karras", "DPM++ SDE", "DDIM")
    ]
    styles = [
        (tags or "no LoRA", draw(f"a cat{tags}"))
        for tags in ("", "<lora:flat:1>", "<lora:contrast:1>", "<lora:flat:0.5><lora:contrast:0.5>")
    ]
    hires = {"hires_scale": 4, "hires_strength": 0.35, "hires_steps": 12}
    hires_pair = [
        ("first pass, 4x by Lanczos", draw("a cat").resize((384, 384), Image.Resampling.LANCZOS)),
        ("hires fix, R-ESRGAN AnimeVideo", draw("a cat", hires_upscaler="R-ESRGAN AnimeVideo", **hires)),
    ]
    sheets = {
        "prompts": sheet(prompts, 6),
        "weights": sheet(weights, 6),
        "editing": sheet(edited, 2),
        "samplers": sheet(samplers, 4),
        "styles": sheet(styles, 4),
        "hires": sheet(hires_pair, 2),
    }
    for name, picture in sheets.items():
        picture.save(out / f"{name}.png")
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()
