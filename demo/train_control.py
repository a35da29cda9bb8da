"""Train the demo's ControlNet: from the edges of a drawing to the drawing.

    python demo/train_control.py                  # some hours on a processor
    python demo/train_control.py --device cuda    # some minutes

The demo's model draws every subject a few times; Canny's edges of these pictures are what the network is shown, and
their latents what it learns to lead to. Half of the captions are empty, so that the edges alone must say what to draw.
Checkpoints and drawings lie in `demo/cache/`; a stopped run goes on where it was. Nothing is fetched.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from train_common import Recipe, fit
from train_subjects import COLOURS, SUBJECTS
from train_text import caption_ids
from train_unet import build_noise_schedule, noise_loss
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.hints.edges import canny_edges


HERE = Path(__file__).parent
DRAWINGS, STEPS, BATCH = 12, 6000, 32
LEARNING_RATE = 5e-4
NO_CAPTION = 0.5
HINT_CHANNELS = (8, 16, 32, 48)
CANNY = (100, 200)
"""The webui's thresholds of the module "canny"."""


def draw_all(pipe: WebUITxt2ImgPipeline, file: Path) -> dict:
    """Latents (n, 4, 16, 16), edges (n, 128, 128) and captions of every subject; read from `file` once it is there.

    The model draws a subject always at one place: so that there is something to follow, its drawings are moved.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        rng, found = np.random.default_rng(0), {"latents": [], "edges": [], "captions": []}
        names = [names[0] for names in SUBJECTS.values() for _ in range(DRAWINGS)]
        for start in tqdm(range(0, len(names), 16), desc="drawings", mininterval=5):
            chosen = names[start : start + 16]
            endings = [f", {rng.choice(list(COLOURS))} background" if rng.random() < 0.5 else "" for _ in chosen]
            captions = [name + ending for name, ending in zip(chosen, endings)]
            seeds = [start + i for i in range(len(captions))]
            given = {"seed": seeds, "sampler": "DPM++ 2M", "num_inference_steps": 12, "guidance_scale": 5.0}
            drawings = [move_drawing(drawing, rng) for drawing in pipe(captions, **given).images]
            found["latents"].append(_latents(pipe, np.stack(drawings)))
            found["edges"].append(torch.from_numpy(np.stack([canny_edges(image, *CANNY) for image in drawings])))
            found["captions"] += captions
        torch.save({"captions": found["captions"], **{k: torch.cat(found[k]) for k in ("latents", "edges")}}, file)
    return torch.load(file, weights_only=True)


def move_drawing(drawing: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """(h, w, 3) bytes: mirrored or not, 0.6 to 1 times as large, somewhere; around it the colour of its corner."""
    if rng.random() < 0.5:
        drawing = ImageOps.mirror(drawing)
    side = round(drawing.width * rng.uniform(0.6, 1.0))
    paper = Image.new("RGB", drawing.size, drawing.getpixel((1, 1)))
    left, top = (int(rng.integers(drawing.width - side + 1)) for _ in range(2))
    paper.paste(drawing.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(paper)


@torch.no_grad()
def _latents(pipe: WebUITxt2ImgPipeline, drawings: np.ndarray) -> Tensor:
    """(n, 4, h / 8, w / 8) scaled means of (n, h, w, 3) bytes, on the processor."""
    pixels = torch.from_numpy(drawings).to(pipe.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return (pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor).cpu()


def train_control(pipe: WebUITxt2ImgPipeline, data: dict, folder: Path, steps: int, seed: int = 3) -> ControlNetModel:
    """Train (or go on) for `steps` steps on the device of `pipe`; the averaged network."""
    torch.manual_seed(seed)
    unet, schedule = pipe.unet.requires_grad_(False), build_noise_schedule()
    network = (
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS).to(unet.device).train()
    )
    texts, empty = _encoded(pipe, data["captions"]), _encoded(pipe, [""])
    latents, edges = data["latents"].to(unet.device), data["edges"].to(unet.device)

    def losses_at(step: int) -> dict[str, Tensor]:
        rng, generator = np.random.default_rng((seed, step)), torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.from_numpy(rng.integers(len(texts), size=BATCH)).to(unet.device)
        bare = torch.from_numpy(rng.random(BATCH) < NO_CAPTION).to(unet.device)
        hints = (edges[rows].float() / 255)[:, None].expand(-1, 3, -1, -1)

        def control(x: Tensor, times: Tensor, text: Tensor) -> dict[str, object]:
            down, mid = network(x, times, text, hints, return_dict=False)
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

        text = torch.where(bare[:, None, None], empty, texts[rows])
        return {"loss": noise_loss(unet, text, latents[rows], schedule, generator, control)}

    recipe = Recipe(LEARNING_RATE, decay=0.999, save_every=500)
    fit({"control": network}, network.parameters(), losses_at, folder, steps, recipe)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _encoded(pipe: WebUITxt2ImgPipeline, captions: list[str]) -> Tensor:
    """(n, 77, width) of the text encoder."""
    parts = (captions[start : start + 32] for start in range(0, len(captions), 32))
    ids = (caption_ids(pipe.tokenizer, part).to(pipe.text_encoder.device) for part in parts)
    return torch.cat([pipe.text_encoder(rows).last_hidden_state for rows in ids])


def export(network: ControlNetModel, folder: Path) -> None:
    """The network as a folder of diffusers, in float16."""
    shutil.rmtree(folder, ignore_errors=True)
    network.save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="folder of drawings and checkpoints")
    parser.add_argument("--out", type=Path, default=HERE / "controlnets" / "emoji_canny", help="the folder to write")
    parser.add_argument("--device", default="cpu", help="where to train, e.g. cuda")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; 1 where cores are shared")
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_float32_matmul_precision("high")
    pipe = WebUITxt2ImgPipeline.from_pretrained(HERE / "model", dtype=torch.float32).to(chosen.device)
    pipe.set_progress_bar_config(disable=True)
    data = draw_all(pipe, chosen.cache / "control-drawings.pt")
    export(train_control(pipe, data, chosen.cache / "control", chosen.steps), chosen.out)


if __name__ == "__main__":
    main()
