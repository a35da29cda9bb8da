"""On a CUDA device: whole calls, the loop beside the UNet, and networks, ours against diffusers' own in one run.

    python benchmarks/card.py                     the tables, in float16
    python benchmarks/card.py --base sd1 --steps 20 --repeats 5

Random weights of SD 1.5's and SDXL's shapes; wall time until the device is done, both sides turn by turn after a
warm-up of each, the median of the pairwise ratios; memory as the allocator's peak above the models. The loop's rows
take the wall time of a step over a UNet that gives its latents back. Without a CUDA device it says so and ends.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from loop import FEW, MANY, RIVALS, WIDTH, idle_pipeline
from networks import diffusers_side, make_clean, our_side, read_pipeline, save_models, write_network
from transformers.utils import logging as transformers_logging
from txt2img import BASES, Draw, call_of, control_pair, ratio_row
from txt2img import random_pipeline as sized_pipeline
from webui_diffusers.pipelines import WebUITxt2ImgPipeline


SIDES = {"sd1": 512, "sdxl": 1024}
NETWORKS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--base", choices=BASES, help="one model only")
    arguments, _ = parser.parse_known_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing timed")
        return
    logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    print(f"{torch.cuda.get_device_name()}, float16, torch {torch.__version__}")
    for rows in (loop_rows(arguments), *(base_rows(base, arguments) for base in SIDES)):
        for line in rows:
            print(line, flush=True)


def loop_rows(arguments: argparse.Namespace) -> Iterator[str]:
    """What a step costs beside the UNet, by sampler, at 512x512."""
    ours, theirs = (idle_pipeline(cls).to("cuda", torch.float16) for cls in (WebUITxt2ImgPipeline, BASES["sd1"]))
    names = ("prompt_embeds", "negative_prompt_embeds")
    embeds = {name: torch.randn(1, 77, WIDTH, device="cuda", dtype=torch.float16) for name in names}
    job = {**embeds, "height": 512, "width": 512, "output_type": "latent", "guidance_scale": 7.0}
    for sampler, (scheduler, settings) in RIVALS.items():
        theirs.scheduler = scheduler.from_config(ours.scheduler.config, **settings)

        def our_call(steps: int, sampler: str = sampler) -> None:
            ours(**job, num_inference_steps=steps, sampler=sampler, seed=1)

        def their_call(steps: int) -> None:
            theirs(**job, num_inference_steps=steps, generator=torch.Generator("cuda").manual_seed(1))

        pairs = [(a_step(our_call), a_step(their_call)) for _ in range(arguments.repeats + 1)]
        ratios = [mine / other for mine, other in pairs[1:]]
        span = f"{statistics.median(ratios):5.2f}  [{min(ratios):.2f} .. {max(ratios):.2f}]"
        cost = statistics.median(mine for mine, _ in pairs[1:]) * 1e6
        yield f"{'loop beside the UNet: ' + sampler:45} {span}  ({cost:.0f} µs a step)"


def a_step(call: Any) -> float:
    """Seconds of a step: what a call of MANY steps takes more than one of FEW, shared out."""
    taken = [seconds(lambda steps=steps: call(steps)) for steps in (FEW, MANY)]
    return (taken[1] - taken[0]) / (MANY - FEW)


def base_rows(base: str, arguments: argparse.Namespace) -> Iterator[str]:
    """A plain prompt, the same under a ControlNet, and networks, for one model."""
    if arguments.base not in (None, base):
        return
    settings = argparse.Namespace(side=SIDES[base], steps=arguments.steps)
    ours = sized_pipeline(WebUITxt2ImgPipeline, base, "cuda", torch.float16)
    theirs = BASES[base].from_pipe(ours)
    theirs.set_progress_bar_config(disable=True)
    pair = call_of("ours", ours, settings), call_of("diffusers", theirs, settings)
    size = f"{arguments.steps} steps of {settings.side}x{settings.side}"
    row = ratio_row(f"{base}: plain prompt", *map(done, pair), arguments.repeats, time.perf_counter)
    yield f"{row}  ({size}, {seconds(pair[0]):.2f} s)"
    peaks = [peak_above(draw) for draw in pair]
    yield f"{f'{base}: plain prompt, memory above the models':45} {peaks[0] / peaks[1]:5.2f}  ({peaks[0]:.0f} MiB)"
    yield from network_rows(base, theirs, arguments)
    pair = control_pair(ours, base, settings)
    row = ratio_row(f"{base}: under a ControlNet", *map(done, pair), arguments.repeats, time.perf_counter)
    yield f"{row}  ({size})"


def network_rows(base: str, pipe: Any, arguments: argparse.Namespace) -> Iterator[str]:
    """Networks from their files into the weights, and out again, against load, fuse, unfuse and unload. SD 1.5's."""
    if base != "sd1":
        return
    with tempfile.TemporaryDirectory() as folder:
        models = {name: getattr(pipe, name) for name in ("unet", "text_encoder")}
        save_models(pipe, Path(folder))
        read = read_pipeline(Path(folder), torch.float16).to("cuda")
        files = [write_network(read, Path(folder) / f"file{i}.safetensors", i) for i in range(NETWORKS)]
        totals: list[list[float]] = [[], []]
        peaks: list[list[float]] = [[], []]
        for _ in range(arguments.repeats + 1):
            for i, side in enumerate((our_side, diffusers_side)):
                ready, _, off = side(read, files, files)
                begun = time.perf_counter()
                peaks[i].append(peak_above(ready))
                totals[i].append(time.perf_counter() - begun + seconds(off))
                make_clean(read, models)
    ratios = [mine / other for mine, other in list(zip(*totals))[1:]]
    span = f"{statistics.median(ratios):5.2f}  [{min(ratios):.2f} .. {max(ratios):.2f}]"
    yield f"{f'{base}: {NETWORKS} networks on and off':45} {span}  ({statistics.median(totals[0]):.2f} s)"
    mine, other = (max(each) for each in peaks)
    yield f"{f'{base}: {NETWORKS} networks, memory above the models':45} {mine / other:5.2f}  ({mine:.0f} MiB)"


def done(draw: Draw) -> Draw:
    """The same, until the device has done it."""

    def run() -> None:
        draw()
        torch.cuda.synchronize()

    return run


def seconds(draw: Draw) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    done(draw)()
    return time.perf_counter() - begun


def peak_above(draw: Draw) -> float:
    """MiB that the allocator gave out at most, above what it had given out before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    draw()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


if __name__ == "__main__":
    main()
