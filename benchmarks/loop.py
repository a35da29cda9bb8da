"""What a step costs beside the UNet: a sampler's loop over a UNet that does nothing, against diffusers' own.

    python benchmarks/loop.py                 ratios of CPU time and numbers of aten operations, a step
    python benchmarks/loop.py --side 256 --repeats 9 --sampler "Euler a"

The last rows are what alternating texts take more a step than one text, and a Brownian path's share of DPM++ 2M SDE.

Both sides draw with prompt embeddings, guidance and noise of torch's CPU generator; the cost of a step is what a call
of 40 steps takes more than one of 10, divided by 30. CPU time of the thread, turn by turn, the median ratio counts.
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from webui_diffusers.loaders.checkpoint.configs import model_config_folder
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.sampling.brownian import BrownianPath


FEW, MANY = 10, 40
WIDTH = 32
RIVALS: dict[str, tuple[type, dict[str, Any]]] = {
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}),
    "LCM": (LCMScheduler, {"original_inference_steps": 50}),
    "DDIM": (DDIMScheduler, {}),
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "UniPC": (UniPCMultistepScheduler, {"solver_order": 3}),
    "DPM++ 2M SDE": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}


class IdleUNet(UNet2DConditionModel):
    """A UNet that gives its latents back."""

    def forward(self, sample: torch.Tensor, *given: Any, **others: Any) -> tuple[torch.Tensor]:
        return (sample,)


class CountOps(TorchDispatchMode):
    """Counts the aten operations that run inside."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512, help="side of the picture, pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sampler", choices=RIVALS, help="one sampler only")
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    ours = idle_pipeline(WebUITxt2ImgPipeline)
    theirs = idle_pipeline(StableDiffusionPipeline)
    print(f"{'sampler':18} {'CPU time':>22} {'ours, µs':>9} {'operations':>12}")
    for sampler in [arguments.sampler] if arguments.sampler else RIVALS:
        print(loop_row(sampler, ours, theirs, arguments), flush=True)
    if not arguments.sampler:
        for line in (alternation_row(arguments), *brownian_rows(arguments)):
            print(line, flush=True)


def idle_pipeline(cls: type) -> StableDiffusionPipeline:
    """SD 1.5's parts around an idle UNet; without text encoder, since the calls bring their embeddings."""
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D")
    unet = IdleUNet(
        sample_size=64,
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        down_block_types=blocks,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=8, **vae_blocks(4))
    others = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = cls(unet=unet, vae=vae, scheduler=scheduler, requires_safety_checker=False, **others)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoding_pipeline() -> WebUITxt2ImgPipeline:
    """An idle UNet behind a tiny text encoder."""
    pipe = idle_pipeline(WebUITxt2ImgPipeline)
    folder = model_config_folder("sd1")
    layers = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    encoder = CLIPTextModel(CLIPTextConfig(projection_dim=WIDTH, **layers)).eval()
    pipe.register_modules(text_encoder=encoder, tokenizer=CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer"))
    return pipe


def vae_blocks(count: int) -> dict[str, tuple[str, ...]]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
    }


def loop_row(sampler: str, ours: Any, theirs: Any, arguments: argparse.Namespace) -> str:
    scheduler, settings = RIVALS[sampler]
    theirs.scheduler = scheduler.from_config(ours.scheduler.config, **settings)
    generator = torch.Generator().manual_seed(0)
    rows = {
        name: torch.randn(1, 77, WIDTH, generator=generator) for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    job = {**rows, "height": arguments.side, "width": arguments.side, "output_type": "latent", "guidance_scale": 7.0}

    def our_call(steps: int) -> None:
        ours(**job, num_inference_steps=steps, sampler=sampler, seed=1, noise_source="cpu")

    def their_call(steps: int) -> None:
        theirs(**job, num_inference_steps=steps, generator=torch.Generator().manual_seed(1))

    pairs = []
    for call in (our_call, their_call):
        call(MANY)
    for _ in range(arguments.repeats):
        pairs.append([seconds_a_step(call) for call in (our_call, their_call)])
    ratios = [mine / other for mine, other in pairs]
    counts = [operations_a_step(call) for call in (our_call, their_call)]
    span = f"{statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"
    cost = statistics.median(mine for mine, _ in pairs) * 1e6
    return f"{sampler:18} {span:>22} {cost:9.0f} {counts[0]:5.0f} / {counts[1]:.0f}"


def alternation_row(arguments: argparse.Namespace) -> str:
    """What a step of a text that changes with every step takes more than one of a text that stays, milliseconds."""
    pipe = encoding_pipeline()
    job = {"height": arguments.side, "width": arguments.side, "output_type": "latent", "sampler": "Euler", "seed": 1}

    def call(steps: int, prompt: str) -> None:
        pipe(prompt, negative_prompt="dark", num_inference_steps=steps, noise_source="cpu", **job)

    taken = []
    for _ in range(arguments.repeats + 1):
        pair = [seconds_a_step(partial(call, prompt=text)) for text in ("a [fox|cat|hen] in snow", "a fox in snow")]
        taken.append((pair[0] - pair[1]) * 1000)
    more = taken[1:]
    return f"alternating texts, more a step: {statistics.median(more):.3f} ms [{min(more):.3f} .. {max(more):.3f}]"


def brownian_rows(arguments: argparse.Namespace) -> list[str]:
    """A step's increment of a Brownian path, its normal numbers alone, and torchsde's tree where it is installed."""
    shape, times = (4, arguments.side // 8, arguments.side // 8), (torch.linspace(1.467, 0.604, MANY) ** 7).tolist()
    generator, draws = torch.Generator(), []

    def draw(seed: int) -> torch.Tensor:
        draws.append(seed)
        return torch.randn(shape, generator=generator.manual_seed(seed))

    def walk(path: Callable[[float, float], torch.Tensor]) -> None:
        for i in range(len(times) - 1):
            path(times[i + 1], times[i])

    walks = {"here": lambda: walk(BrownianPath(times[-1], times[0], 1, draw))}
    if importlib.util.find_spec("torchsde"):
        tree = importlib.import_module("torchsde").BrownianTree
        walks["torchsde"] = lambda: walk(tree(times[-1], torch.zeros(shape), times[0], entropy=1))
    walks["here"]()
    seeds = draws[:]
    walks["draws"] = lambda: [draw(seed) for seed in seeds]
    taken = {
        name: min(cpu_seconds(each) for _ in range(arguments.repeats)) / (MANY - 1) for name, each in walks.items()
    }
    more = f"; torchsde's tree {taken['torchsde'] * 1e6:.0f} µs" if "torchsde" in taken else ""
    return [
        f"Brownian path, a step: {taken['here'] * 1e6:.0f} µs, of which its {len(seeds) / (MANY - 1):.1f} draws of "
        f"{taken['draws'] / len(seeds) * (MANY - 1) * 1e6:.0f} µs are {taken['draws'] / taken['here']:.0%}{more}"
    ]


def cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def seconds_a_step(call: Callable[[int], None]) -> float:
    """CPU seconds of this thread."""
    times = {}
    for steps in (FEW, MANY):
        begun = time.thread_time()
        call(steps)
        times[steps] = time.thread_time() - begun
    return (times[MANY] - times[FEW]) / (MANY - FEW)


def operations_a_step(call: Callable[[int], None]) -> float:
    counts = {}
    for steps in (FEW, MANY):
        with CountOps() as counter:
            call(steps)
        counts[steps] = counter.count
    return (counts[MANY] - counts[FEW]) / (MANY - FEW)


if __name__ == "__main__":
    main()
