"""Train the demo's ControlNet: from the edges of a drawing to the drawing.

    python demo/train_control.py

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
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from train_common import Averaged, Run, rate_factor
from train_subjects import COLOURS, SUBJECTS
from train_text import caption_ids
from train_unet import SNR_CLAMP, build_noise_schedule
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.hints.edges import canny_edges
from webui_diffusers.pipelines.images.vae import latents_to_pixels


HERE = Path(__file__).parent
DRAWINGS, STEPS, BATCH = 4, 4000, 8
LEARNING_RATE = 5e-4
NO_CAPTION = 0.5
HINT_CHANNELS = (8, 16, 32, 48)


def draw_all(pipe: WebUITxt2ImgPipeline, file: Path) -> dict:
    """Latents (n, 4, 16, 16), edges (n, 128, 128) and captions of every subject; read from `file` once it is there."""
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
            latents = pipe(captions, **given, output_type="latent").images
            pixels = latents_to_pixels(pipe.vae, latents)
            found["latents"].append(latents)
            found["edges"].append(torch.from_numpy(np.stack([canny_edges(image, 100, 200) for image in pixels])))
            found["captions"] += captions
        torch.save({"captions": found["captions"], **{k: torch.cat(found[k]) for k in ("latents", "edges")}}, file)
    return torch.load(file, weights_only=True)


def train_control(pipe: WebUITxt2ImgPipeline, data: dict, folder: Path, steps: int, seed: int = 3) -> ControlNetModel:
    """Train (or go on) for `steps` steps; the averaged network."""
    torch.manual_seed(seed)
    unet, encoder, tokenizer = pipe.unet.requires_grad_(False), pipe.text_encoder.requires_grad_(False), pipe.tokenizer
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS).train()
    parameters, schedule = list(network.parameters()), build_noise_schedule()
    averaged = Averaged(parameters, decay=0.995)
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    run = Run(folder, {"control": network}, averaged, optimiser)
    first = run.load()
    with torch.no_grad():
        texts = [encoder(caption_ids(tokenizer, part)).last_hidden_state for part in _parts(data["captions"])]
        texts, empty = torch.cat(texts), encoder(caption_ids(tokenizer, [""])).last_hidden_state
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="control", mininterval=5):
        rng, generator = np.random.default_rng((seed, step)), torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.from_numpy(rng.integers(len(texts), size=BATCH))
        bare = torch.from_numpy(rng.random(BATCH) < NO_CAPTION)
        text = torch.where(bare[:, None, None], empty, texts[rows])
        hints = (data["edges"][rows].float() / 255)[:, None].expand(-1, 3, -1, -1)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate_factor(step, steps, warmup=100)
        loss = control_loss(unet, network, text, data["latents"][rows], hints, schedule, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        averaged.update(step)
        run.log.add(step, {"loss": loss.item()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            run.save(step + 1)
    averaged.copy_to()
    return network.eval().requires_grad_(False)


def control_loss(
    unet: torch.nn.Module,
    network: ControlNetModel,
    text: Tensor,
    latents: Tensor,
    hints: Tensor,
    schedule: object,
    generator: torch.Generator,
) -> Tensor:
    """Min-SNR weighted mean square error of the noise that the UNet predicts under the network."""
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),), generator=generator)
    alpha_bar = schedule.alphas_cumprod[times]
    snr = alpha_bar / (1 - alpha_bar)
    x = schedule.add_noise(latents, noise, times)
    down, mid = network(x, times, text, hints, return_dict=False)
    predicted = unet(x, times, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    return ((predicted - noise).square().mean((1, 2, 3)) * snr.clamp(max=SNR_CLAMP) / snr).mean()


def _parts(captions: list[str]) -> list[list[str]]:
    return [captions[start : start + 32] for start in range(0, len(captions), 32)]


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
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; 1 where cores are shared")
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    pipe = WebUITxt2ImgPipeline.from_pretrained(HERE / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    data = draw_all(pipe, chosen.cache / "control-drawings.pt")
    export(train_control(pipe, data, chosen.cache / "control", chosen.steps), chosen.out)


if __name__ == "__main__":
    main()
