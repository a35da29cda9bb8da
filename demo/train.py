"""Train the demo's model from the emoji packages: `python demo/train.py` does all that is not done yet.

Stages (each can be named to do it alone, once those before it are done): drawings, vae, text, unet, decoder, flat,
contrast, export. Checkpoints lie in `demo/cache/`; a stopped run goes on where it was.
Needs npm and pip (for the data), `resvg-py`, and this project's own dependencies.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from train_data import SIZE, fetch_drawings
from train_export import build_pipeline, save_model, save_thumbnails
from train_lora import save_lora, train_lora
from train_plot import draw_losses
from train_text import build_tokenizer, train_text
from train_unet import CaptionedLatents, train_unet
from train_vae import refine_decoder, train_vae
from transformers import CLIPTextModel


HERE = Path(__file__).parent
STAGES = ("drawings", "vae", "text", "unet", "decoder", "flat", "contrast", "export")
STEPS = {"vae": 1600, "text": 500, "unet": 2750, "decoder": 1000, "flat": 750, "contrast": 1200}
VARIANTS = {"noto": 30, "flat": 12, "contrast": 12}
"""Placements of each drawing whose latents are kept."""

STYLES = {"flat": "Fluent flat", "contrast": "Fluent high contrast"}


class Training:
    """The stages over one cache folder. A stage that is done is only loaded."""

    def __init__(self, cache: Path, out: Path, steps: dict[str, int]) -> None:
        self.cache, self.out, self.steps = cache, out, steps
        self.drawings = fetch_drawings(cache)
        self.tokenizer = build_tokenizer(cache)

    def run(self, stage: str) -> None:
        if stage in ("flat", "contrast"):
            self.lora(stage)
        elif stage != "drawings":
            getattr(self, stage)()

    def vae(self) -> AutoencoderKL:
        return train_vae(self.drawings, self.cache / "vae", self.steps["vae"])

    def decoder(self) -> AutoencoderKL:
        return refine_decoder(self.vae(), self.drawings, self.cache / "decoder", self.steps["decoder"])

    def text(self) -> CLIPTextModel:
        return train_text(self.tokenizer, self.cache / "text", self.steps["text"])

    def latents(self, style: str) -> CaptionedLatents:
        return CaptionedLatents(self.vae(), self.drawings[style], self.cache / f"latents-{style}.pt", VARIANTS[style])

    def unet(self) -> tuple:
        data, steps = self.latents("noto"), self.steps["unet"]
        return train_unet(data, self.text(), self.tokenizer, self.cache / "unet", steps)

    def lora(self, style: str) -> None:
        unet, encoder = self.unet()
        steps = self.steps[style]
        tensors = train_lora(self.latents(style), unet, encoder, self.tokenizer, self.cache / style, steps)
        save_lora(tensors, self.out / "loras" / f"{style}.safetensors", STYLES[style], steps)

    def export(self) -> None:
        unet, encoder = self.unet()
        pipeline = build_pipeline(self.decoder(), encoder, self.tokenizer, unet)
        save_model(pipeline, self.cache / "tokenizer", self.out / "model")
        save_thumbnails(self.drawings, self.out / "thumbnails.png")
        draw_losses(self.cache, tuple(STEPS), self.out / "losses.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"some of: {', '.join(STAGES)} (default: all)")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="folder of data and checkpoints")
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets model/ and loras/")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; 1 where cores are shared")
    parser.add_argument("--brief", type=float, default=1.0, help="share of the steps to do, to try the road")
    chosen = parser.parse_args()
    unknown = set(chosen.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    torch.set_num_threads(chosen.threads)
    training = Training(chosen.cache, chosen.out, {k: max(1, int(v * chosen.brief)) for k, v in STEPS.items()})
    for stage in chosen.stages:
        print(f"{stage}: {len(training.drawings['noto'])} subjects at {SIZE} px", flush=True)
        training.run(stage)


if __name__ == "__main__":
    main()
