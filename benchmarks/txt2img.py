"""Drawing and encoding: WebUITxt2ImgPipeline against diffusers' own pipelines, prompts against compel.

    python benchmarks/txt2img.py                    the table, on this machine's CPU
    python benchmarks/txt2img.py --side 256 --steps 4 --repeats 5
    python benchmarks/txt2img.py --lpw lpw_stable_diffusion.py     diffusers' community pipeline, else fetched by name

SD-1.5-sized random weights in float32, and SDXL's widths at a part of its depth; same sampler, steps, size and
threads; both sides alternate in one process, and the median of the pairwise ratios counts. Peak memory is measured in
a process of its own for each side.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from diffusers.utils.dynamic_modules_utils import COMMUNITY_PIPELINES_MIRROR_ID
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging
from webui_diffusers.loaders.checkpoint.configs import model_config_folder
from webui_diffusers.pipelines import PromptEncoder, WebUITxt2ImgPipeline


WORDS = "a photo of a small red fox in deep snow, soft light, "
LPW = "main/lpw_stable_diffusion.py"
BASES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
CONTROL_BASES = {"sd1": StableDiffusionControlNetPipeline, "sdxl": StableDiffusionXLControlNetPipeline}
Draw = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="side of the picture, pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lpw", type=Path, help="the file of diffusers' community pipeline lpw_stable_diffusion")
    parser.add_argument("--base", choices=BASES, help="one model only")
    parser.add_argument("--worker", choices=["ours", "diffusers"], help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    if arguments.worker:
        print(json.dumps(peak_memory(arguments.worker, arguments)))
        return
    tables = [import_rows]
    for base in [arguments.base] if arguments.base else BASES:
        tables += [partial(rows, arguments, base) for rows in (memory_rows, drawing_rows, control_rows)]
        tables += [partial(hires_rows, arguments)] if base == "sd1" else []
    for table in (*tables, partial(encoding_rows, arguments)):
        for line in table():
            print(line, flush=True)


def random_pipeline(
    cls: type, base: str = "sd1", device: str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionPipeline:
    """SD 1.5's or SDXL's shapes with small random weights, the same every time. On a CPU, SDXL is made less deep: 1, 1
    and 2 transformer layers a block for its 0, 2 and 10, 4 layers in each text encoder; so it fits any machine."""
    folder = model_config_folder(base)
    torch.manual_seed(0)
    unet_config = dict(UNet2DConditionModel.load_config(folder, subfolder="unet"))
    shallow = base == "sdxl" and device == "cpu"
    if shallow:
        unet_config["transformer_layers_per_block"] = [1, 1, 2]
    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    models: dict[str, torch.nn.Module] = {}
    with torch.device("meta"):
        models["unet"] = UNet2DConditionModel.from_config(unet_config)
        models["vae"] = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        for name, encoder in encoders.items():
            if (Path(folder) / name).is_dir():
                config = CLIPTextConfig.from_pretrained(folder, subfolder=name)
                config.num_hidden_layers = 4 if shallow else config.num_hidden_layers
                models[name] = encoder(config)
    for model in models.values():
        fill_at_random(model, device, dtype)
    names = [name for name in ("tokenizer", "tokenizer_2") if (Path(folder) / name).is_dir()]
    tokenizers = {name: CLIPTokenizer.from_pretrained(Path(folder) / name) for name in names}
    scheduler = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="linspace")
    others = {} if cls is StableDiffusionXLPipeline else {"safety_checker": None, "feature_extractor": None}
    if cls is not StableDiffusionXLPipeline:
        others["requires_safety_checker"] = False
    pipe = cls(**models, **tokenizers, scheduler=scheduler, **others)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fill_at_random(model: torch.nn.Module, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    model.to(dtype).to_empty(device=device).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1])[None])


def call_of(name: str, pipe: StableDiffusionPipeline, arguments: argparse.Namespace) -> Draw:
    """The same job for either side: Euler steps, latents out, so that the samplers' own share shows."""
    job: dict[str, Any] = {"prompt": WORDS, "negative_prompt": "blurry", "num_inference_steps": arguments.steps}
    job |= {"height": arguments.side, "width": arguments.side, "output_type": "latent", "guidance_scale": 7.0}
    own = {"sampler": "Euler", "seed": 1, "noise_source": "cpu"}
    if name == "ours":
        return lambda: pipe(**job, **own)
    return lambda: pipe(**job, generator=torch.Generator().manual_seed(1))


def drawing_rows(arguments: argparse.Namespace, base: str) -> list[str]:
    """CPU time of a plain prompt, ours / diffusers."""
    ours = random_pipeline(WebUITxt2ImgPipeline, base)
    theirs = BASES[base].from_pipe(ours)
    theirs.set_progress_bar_config(disable=True)
    pair = call_of("ours", ours, arguments), call_of("diffusers", theirs, arguments)
    row = ratio_row(f"{base}: plain prompt, CPU time", *pair, arguments.repeats)
    return [f"{row}  ({arguments.steps} steps of {arguments.side}x{arguments.side}, {arguments.threads} thread(s))"]


def control_rows(arguments: argparse.Namespace, base: str) -> list[str]:
    """CPU time of a plain prompt under a ControlNet, ours / diffusers."""
    ours = random_pipeline(WebUITxt2ImgPipeline, base)
    pair = control_pair(ours, base, arguments)
    row = ratio_row(f"{base}: under a ControlNet, CPU time", *pair, arguments.repeats)
    return [f"{row}  ({arguments.steps} steps of {arguments.side}x{arguments.side}, {arguments.threads} thread(s))"]


def control_pair(ours: DiffusionPipeline, base: str, arguments: argparse.Namespace) -> tuple[Draw, Draw]:
    """A plain prompt under a ControlNet of random weights, drawn by ours and by diffusers."""
    with torch.device("meta"):
        network = ControlNetModel.from_config(
            ControlNetModel.from_unet(ours.unet, load_weights_from_unet=False).config
        )
    fill_at_random(network, ours.device.type, ours.unet.dtype)
    ours.register_modules(controlnet=network)
    theirs = CONTROL_BASES[base].from_pipe(ours)
    theirs.set_progress_bar_config(disable=True)
    image = Image.effect_mandelbrot((arguments.side, arguments.side), (-2, -1.5, 1, 1.5), 50).convert("RGB")

    def drawn(name: str, pipe: DiffusionPipeline, argument: str) -> Draw:
        return lambda: call_of(name, lambda **job: pipe(**job, **{argument: image}), arguments)()

    return drawn("ours", ours, "control_image"), drawn("diffusers", theirs, "image")


def hires_rows(arguments: argparse.Namespace) -> list[str]:
    """A hires pass of twice the side over the latents, against diffusers' two pipelines one after the other."""
    ours = random_pipeline(WebUITxt2ImgPipeline)
    first, second = StableDiffusionPipeline.from_pipe(ours), StableDiffusionImg2ImgPipeline.from_pipe(ours)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    hires = {"hires_scale": 2, "hires_upscaler": "Latent", "hires_strength": 0.5, "hires_steps": 2 * arguments.steps}
    draw = call_of("diffusers", first, arguments)
    evaluations: list[int] = []
    ours.unet.register_forward_hook(lambda *_: evaluations.append(1))

    def mine() -> None:
        call_of("ours", lambda **job: ours(**job, **hires), arguments)()

    def theirs() -> None:
        latents = torch.nn.functional.interpolate(draw().images, scale_factor=2, mode="bilinear")
        given = {"image": latents, "strength": 0.5, "num_inference_steps": 2 * count, "output_type": "latent"}
        second(WORDS, negative_prompt="blurry", guidance_scale=7.0, **given)

    mine()
    count = len(evaluations) - arguments.steps
    evaluations.clear()
    theirs()
    if len(evaluations) != arguments.steps + count:
        raise AssertionError(f"{len(evaluations)} evaluations for {arguments.steps + count}")
    size = f"{arguments.steps} steps of {arguments.side}x{arguments.side}, {count} of twice the side"
    return [f"{ratio_row('sd1: hires over latents, CPU time', mine, theirs, arguments.repeats)}  ({size})"]


def encoding_rows(arguments: argparse.Namespace) -> list[str]:
    """Encoding prompt and negative prompt of 1, 3 and 8 chunks, ours / theirs, nothing cached."""
    pipe = random_pipeline(StableDiffusionPipeline)
    rivals = {}
    rows = []
    if importlib.util.find_spec("compel"):
        rivals["compel"] = compel_encoder(pipe)
    else:
        rows.append("encoding / compel: not installed here (pip install compel)")
    lpw = arguments.lpw or fetched_lpw()
    if lpw is not None:
        rivals["lpw"] = lpw_encoder(lpw, pipe)
    else:
        rows.append("encoding / lpw: the Hub is not to be reached (give the file by --lpw PATH)")
    words = distinct_words(pipe.tokenizer)
    for chunks in (1, 3, 8):
        prompt, negative = (prompt_of(words, count) for count in (chunks, max(chunks // 2, 1)))

        def ours(prompt: str = prompt, negative: str = negative) -> dict[str, torch.Tensor]:
            return PromptEncoder.from_pipe(pipe)(prompt, negative)

        if ours()["prompt_embeds"].shape[1] != 77 * chunks:
            raise AssertionError(f"the prompt of {chunks} chunks takes another number of them")
        for name, encode in rivals.items():
            theirs = partial(encode, prompt, negative)
            rows.append(ratio_row(f"encoding {chunks} chunk(s) / {name}", ours, theirs, arguments.repeats))
    return rows


def distinct_words(tokenizer: CLIPTokenizer) -> Iterator[str]:
    """Words of one token each, none twice, so that no row of tokens is another one."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    whole = (token.removesuffix("</w>") for token, _ in vocabulary if token.endswith("</w>"))
    return (word for word in whole if len(word) > 3 and word.isascii() and word.isalpha())


def prompt_of(words: Iterator[str], chunks: int) -> str:
    """A prompt that fills `chunks` chunks of 75 tokens all but a few tokens."""
    return " ".join(islice(words, 75 * chunks - 5))


def compel_encoder(pipe: StableDiffusionPipeline) -> Callable[[str, str], Any]:
    compel = importlib.import_module("compel")
    encoder = compel.Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, truncate_long_prompts=False)

    def encode(prompt: str, negative: str) -> Any:
        pair = [encoder(prompt), encoder(negative)]
        return encoder.pad_conditioning_tensors_to_same_length(pair)

    return encode


def fetched_lpw() -> Path | None:
    """diffusers' community pipeline from where diffusers takes it by name; None without a network."""
    try:
        return Path(hf_hub_download(COMMUNITY_PIPELINES_MIRROR_ID, LPW, repo_type="dataset"))
    except (OSError, HfHubHTTPError):
        return None


def lpw_encoder(path: Path, pipe: StableDiffusionPipeline) -> Callable[[str, str], Any]:
    """diffusers' community pipeline, with the attribute that transformers 5 took from its text encoder put back."""
    spec = importlib.util.spec_from_file_location("lpw", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(pipe.text_encoder, "text_model"):
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return lambda prompt, negative: module.get_weighted_text_embeddings(
        pipe, prompt, negative, max_embeddings_multiples=12
    )


def ratio_row(
    label: str, ours: Draw, theirs: Draw, repeats: int, clock: Callable[[], float] = time.process_time
) -> str:
    """Both in turn, after a warm-up of each; the median ratio of CPU time, or of another clock's, and the span."""
    ratios = []
    for draw in (ours, theirs):
        draw()
    for _ in range(repeats):
        times = []
        for draw in (ours, theirs):
            begun = clock()
            draw()
            times.append(clock() - begun)
        ratios.append(times[0] / times[1])
    return f"{label:45} {statistics.median(ratios):5.2f}  [{min(ratios):.2f} .. {max(ratios):.2f}]"


def memory_rows(arguments: argparse.Namespace, base: str) -> list[str]:
    """Peak resident memory of one job above the loaded model, ours / diffusers."""
    peaks = {}
    for name in ("ours", "diffusers"):
        command = [sys.executable, __file__, "--worker", name, "--side", str(arguments.side), "--steps", "2"]
        command += ["--base", base]
        peaks[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    whole = peaks["ours"]["peak"] / peaks["diffusers"]["peak"]
    label = f"{base}: plain prompt, peak memory of the process"
    return [f"{label:45} {whole:5.2f}  ({peaks['ours']['peak'] / 2**20:.2f} GiB)"]


def peak_memory(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    pipe = random_pipeline(WebUITxt2ImgPipeline if name == "ours" else BASES[arguments.base], arguments.base)
    call_of(name, pipe, arguments)()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # KiB


def import_rows(repeats: int = 5) -> list[str]:
    """What importing the pack adds to importing diffusers, and what its grammar alone costs."""

    def seconds(code: str, before: str = "") -> float:
        timed = f"{before}\nimport time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True) for _ in range(repeats)]
        return min(float(run.stdout) for run in runs)

    added = seconds("import webui_diffusers.pipelines", before="import diffusers")
    prompt = seconds("from webui_diffusers.pipelines.prompt import parse_attention")
    return [
        f"{'import webui_diffusers.pipelines adds':45} {added:5.2f} s",
        f"{'import of the prompt grammar alone':45} {prompt:5.2f} s",
    ]


if __name__ == "__main__":
    main()
