"""Drawing and encoding: WebUITxt2ImgPipeline against diffusers' StableDiffusionPipeline, prompts against compel.

    python benchmarks/txt2img.py                    the table, on this machine's CPU
    python benchmarks/txt2img.py --side 256 --steps 4 --repeats 5
    python benchmarks/txt2img.py --lpw lpw_stable_diffusion.py     also diffusers' community pipeline of that name

SD-1.5-sized random weights in float32, same sampler, steps, size and threads; both sides alternate in one process, and
the median of the pairwise ratios counts. Peak memory is measured in a process of its own for each side.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from webui_diffusers.loaders.model_configs import model_config_folder
from webui_diffusers.pipelines import PromptEncoder, WebUITxt2ImgPipeline


WORDS = "a photo of a small red fox in deep snow, soft light, "
Draw = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="side of the picture, pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lpw", type=Path, help="diffusers' examples/community/lpw_stable_diffusion.py")
    parser.add_argument("--worker", choices=["ours", "diffusers"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        print(json.dumps(peak_memory(arguments.worker, arguments)))
        return
    for line in (*import_rows(), *memory_rows(arguments), *drawing_rows(arguments), *encoding_rows(arguments)):
        print(line, flush=True)


def random_pipeline(cls: type) -> StableDiffusionPipeline:
    """SD 1.5's shapes with small random weights, the same every time."""
    folder = model_config_folder("sd1")
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
    for model in (unet, vae, text):
        model.to_empty(device="cpu").eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.02)
        for name, buffer in model.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1])[None])
    tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
    scheduler = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="linspace")
    pipe = cls(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(name: str, pipe: StableDiffusionPipeline, arguments: argparse.Namespace) -> Draw:
    """The same job for either side: Euler steps, latents out, so that the samplers' own share shows."""
    job: dict[str, Any] = {"prompt": WORDS, "negative_prompt": "blurry", "num_inference_steps": arguments.steps}
    job |= {"height": arguments.side, "width": arguments.side, "output_type": "latent", "guidance_scale": 7.0}
    own = {"sampler": "Euler", "seed": 1, "noise_source": "cpu"}
    if name == "ours":
        return lambda: pipe(**job, **own)
    return lambda: pipe(**job, generator=torch.Generator().manual_seed(1))


def drawing_rows(arguments: argparse.Namespace) -> list[str]:
    """Wall time of a plain prompt, ours / diffusers."""
    ours = random_pipeline(WebUITxt2ImgPipeline)
    theirs = StableDiffusionPipeline.from_pipe(ours)
    theirs.set_progress_bar_config(disable=True)
    pair = call_of("ours", ours, arguments), call_of("diffusers", theirs, arguments)
    row = ratio_row("plain prompt, wall time", *pair, arguments.repeats)
    return [f"{row}  ({arguments.steps} steps of {arguments.side}x{arguments.side}, {arguments.threads} thread(s))"]


def encoding_rows(arguments: argparse.Namespace) -> list[str]:
    """Encoding prompt and negative prompt of 1, 3 and 8 chunks, ours / theirs, nothing cached."""
    pipe = random_pipeline(StableDiffusionPipeline)
    rivals = {}
    if importlib.util.find_spec("compel"):
        rivals["compel"] = compel_encoder(pipe)
    if arguments.lpw:
        rivals["lpw"] = lpw_encoder(arguments.lpw, pipe)
    if not rivals:
        return ["prompt encoding: nothing to compare with (pip install compel, or --lpw PATH)"]
    rows = []
    for chunks in (1, 3, 8):
        text = (WORDS * 40).split(", ")[: chunks * 5]
        prompt = ", ".join(text)

        def ours(prompt: str = prompt) -> None:
            PromptEncoder.from_pipe(pipe)(prompt, prompt[: len(prompt) // 2])

        for name, encode in rivals.items():
            row = ratio_row(
                f"encoding ~{chunks} chunk(s) / {name}", ours, lambda p=prompt, e=encode: e(p), arguments.repeats
            )
            rows.append(row)
    return rows


def compel_encoder(pipe: StableDiffusionPipeline) -> Callable[[str], Any]:
    compel = importlib.import_module("compel")
    encoder = compel.Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, truncate_long_prompts=False)

    def encode(prompt: str) -> Any:
        pair = [encoder(prompt), encoder(prompt[: len(prompt) // 2])]
        return encoder.pad_conditioning_tensors_to_same_length(pair)

    return encode


def lpw_encoder(path: Path, pipe: StableDiffusionPipeline) -> Callable[[str], Any]:
    """diffusers' community pipeline, with the attribute that transformers 5 took from its text encoder put back."""
    spec = importlib.util.spec_from_file_location("lpw", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(pipe.text_encoder, "text_model"):
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return lambda prompt: module.get_weighted_text_embeddings(
        pipe, prompt, prompt[: len(prompt) // 2], max_embeddings_multiples=12
    )


def ratio_row(label: str, ours: Draw, theirs: Draw, repeats: int) -> str:
    """Both in turn, after a warm-up of each; the median ratio and the span."""
    ratios = []
    for draw in (ours, theirs):
        draw()
    for _ in range(repeats):
        times = []
        for draw in (ours, theirs):
            begun = time.perf_counter()
            draw()
            times.append(time.perf_counter() - begun)
        ratios.append(times[0] / times[1])
    return f"{label:45} {statistics.median(ratios):5.2f}  [{min(ratios):.2f} .. {max(ratios):.2f}]"


def memory_rows(arguments: argparse.Namespace) -> list[str]:
    """Peak resident memory of one job above the loaded model, ours / diffusers."""
    peaks = {}
    for name in ("ours", "diffusers"):
        command = [sys.executable, __file__, "--worker", name, "--side", str(arguments.side), "--steps", "2"]
        peaks[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    whole = peaks["ours"]["peak"] / peaks["diffusers"]["peak"]
    return [f"{'plain prompt, peak memory of the process':45} {whole:5.2f}  ({peaks['ours']['peak'] / 2**20:.2f} GiB)"]


def peak_memory(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    cls = WebUITxt2ImgPipeline if name == "ours" else StableDiffusionPipeline
    pipe = random_pipeline(cls)
    call_of(name, pipe, arguments)()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # KiB


def import_rows(repeats: int = 5) -> list[str]:
    """What importing the pack adds to importing diffusers, and what its grammar alone costs."""

    def seconds(code: str) -> float:
        timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True) for _ in range(repeats)]
        return min(float(run.stdout) for run in runs)

    base, both = seconds("import diffusers"), seconds("import diffusers, webui_diffusers.pipelines")
    prompt = seconds("from webui_diffusers.pipelines.prompt import parse_attention")
    return [
        f"{'import webui_diffusers.pipelines adds':45} {both - base:5.2f} s",
        f"{'import of the prompt grammar alone':45} {prompt:5.2f} s",
    ]


if __name__ == "__main__":
    main()
