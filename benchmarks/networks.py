"""Networks on and off: merging here against diffusers' load_lora_weights and fuse_lora, for 1, 3 and 5 files at once.

    python benchmarks/networks.py                   the table, on this machine's CPU
    python benchmarks/networks.py --files 1 5 --repeats 3
    python benchmarks/networks.py --memory          (e) alone

SD-1.5-sized random weights, read from a folder in float16 into float32; Kohya files of rank 32 in float16 over all 264
layers; one pipeline on which both sides take turns in one process, and which has its file's weights before each. CPU
seconds, the least of the repeats (forward: the median); a ratio below 1 means less than diffusers.

    (a) ready    from the files to weights that draw with them
    (b) switch   from files 1..n to files 2..n+1, the last of which is not loaded yet
    (c) off      back to none
    (d) forward  the UNet with them on, over the bare UNet
    unfused      ready, off and forward as PEFT adapters beside the weights; diffusers without fuse_lora
    hotswap      from one file of the UNet to another: diffusers' against that of MultiLoraPipeline; then against a
                 switch of merged ones
    (e) peak     the memory of (a) above what the models take;
        held     ... while they are on; and after (c). Each side in a process of its own
        after off
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging
from webui_diffusers.loaders import NetworkMerger, read_network
from webui_diffusers.loaders.checkpoint.configs import model_config_folder
from webui_diffusers.loaders.lora.peft_mix import AdapterMixer
from webui_diffusers.loaders.memory import give_back_memory
from webui_diffusers.pipelines import MultiLoraPipeline


RANK, ALPHA = 32, 16.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
Work = Callable[[], object]
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    if arguments.worker:
        side, folder = arguments.worker
        print(json.dumps(memory_taken(side, Path(folder), arguments.files[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        save_models(random_pipeline(), Path(folder))
        pipe = read_pipeline(Path(folder))
        bare = {name: deepcopy(getattr(pipe, name)) for name in ("unet", "text_encoder")}
        files = [
            write_network(pipe, Path(folder) / f"file{i}.safetensors", i) for i in range(max(arguments.files) + 1)
        ]
        layers = len(read_network(files[0]).layers)
        print(f"{layers} layers, {files[0].stat().st_size / 2**20:.0f} MiB a file, {arguments.threads} thread(s)")
        print(f"{'':12}{'files':>6}{'diffusers':>12}{'here':>10}{'ratio':>8}")
        for count in arguments.files if not arguments.memory else ():
            for line in time_rows(pipe, bare, files, count, arguments.repeats):
                print(line, flush=True)
        if not arguments.memory:
            for line in hotswap_rows(pipe, Path(folder), arguments.repeats):
                print(line, flush=True)
            for path in Path(folder).glob("unet*.safetensors"):
                path.unlink()
        del pipe, bare
        for count in arguments.files:
            theirs, ours = (worker_memory(side, folder, count, arguments.threads) for side in ("diffusers", "here"))
            for what in ("peak", "held", "after off"):
                print(row(f"(e) {what}", count, theirs[what], ours[what], "MiB"), flush=True)


def random_pipeline() -> StableDiffusionPipeline:
    """SD 1.5's UNet (860M) and text encoder (123M) with small numbers in them."""
    folder = model_config_folder("sd1")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    for model in (unet, text):
        model.to_empty(device="cpu").eval().requires_grad_(False)
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:  # as at the start of training, so that no activation grows or fades away
                parameter.data.fill_(float("norm" in key and key.endswith("weight")))
                continue
            flat = parameter.data.view(-1)
            for start in range(0, len(flat), len(noise)):
                piece = flat[start : start + len(noise)]
                piece.copy_(noise[: len(piece)])
        for name, buffer in model.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return StableDiffusionPipeline(None, text, None, unet, PNDMScheduler(), None, None, requires_safety_checker=False)


def save_models(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """The models' folders in float16, for `read_pipeline`."""
    for name in ("unet", "text_encoder"):
        getattr(pipe, name).half().save_pretrained(folder / "model" / name)


def read_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Its models from their folder, in memory of their own, where they were mapped from the file."""
    unet = UNet2DConditionModel.from_pretrained(folder / "model" / "unet", dtype=dtype)
    text = CLIPTextModel.from_pretrained(folder / "model" / "text_encoder", dtype=dtype)
    with torch.no_grad():
        for parameter in (*unet.parameters(), *text.parameters()):
            parameter.copy_(parameter.clone())
    return StableDiffusionPipeline(None, text, None, unet, PNDMScheduler(), None, None, requires_safety_checker=False)


def write_network(pipe: StableDiffusionPipeline, path: Path, seed: int, text: bool = True) -> Path:
    """A Kohya file over all attention, feed-forward and projection layers. text: also of the text encoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    models = [("lora_unet", pipe.unet, TARGETS), ("lora_te", pipe.text_encoder, TEXT_TARGETS)]
    for prefix, model, targets in models if text else models[:1]:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(targets):
                if model is pipe.text_encoder and not name.startswith("text_model."):
                    name = f"text_model.{name}"
                out, inside, *kernel = module.weight.shape
                stem = f"{prefix}_{name.replace('.', '_')}"
                down, up = (RANK, inside, *kernel), (out, RANK, *kernel)
                for part, shape in (("down", down), ("up", up)):
                    value = torch.randn(shape, generator=generator) * 0.01
                    tensors[f"{stem}.lora_{part}.weight"] = value.half()
                tensors[f"{stem}.alpha"] = torch.tensor(ALPHA).half()
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})
    return path


def time_rows(
    pipe: StableDiffusionPipeline, bare: dict[str, nn.Module], files: list[Path], count: int, repeats: int
) -> list[str]:
    """(a) to (d) for `count` files at once, both sides taking turns. bare: models that nothing is put on."""
    first, second = files[:count], files[1 : count + 1]
    runs: dict[str, list[dict[str, float]]] = {"diffusers": [], "here": [], "adapters": [], "unfused": []}
    for _ in range(repeats):
        for side, steps in (
            ("diffusers", diffusers_side(pipe, first, second)),
            ("here", our_side(pipe, first, second)),
            ("adapters", adapter_side(pipe, first)),
            ("unfused", unfused_side(pipe, first)),
        ):
            runs[side].append(sequence(pipe.unet, bare["unet"], *steps))
            make_clean(pipe, bare)
    best = {side: {key: min(run[key] for run in each) for key in each[0]} for side, each in runs.items()}
    theirs, ours = best["diffusers"], best["here"]
    for side, each in runs.items():
        best[side]["forward"] = statistics.median(run["forward"] for run in each)
    rows = [
        row(f"({letter}) {key}", count, theirs[key], ours[key], "s")
        for letter, key in zip("abc", ("ready", "switch", "off"))
    ]
    rows.append(
        f"{'(d) forward':12}{count:>6}{theirs['forward']:>11.2f}x{ours['forward']:>9.2f}x"
        f"{ours['forward'] / theirs['forward']:>8.2f}"
    )
    ours, theirs = best["adapters"], best["unfused"]
    shares = [f"{key} {ours[key] / theirs[key]:.2f}" for key in ("ready", "off", "forward")]
    rows.append(
        f"{'    unfused':12}{count:>6}   {', '.join(shares)}  (forward {ours['forward']:.2f} of the bare UNet)"
    )
    return rows


@torch.no_grad()
def make_clean(pipe: StableDiffusionPipeline, bare: dict[str, nn.Module]) -> None:
    """The file's weights again, to the bit: unfusing rounds them."""
    for name, model in bare.items():
        for parameter, value in zip(getattr(pipe, name).parameters(), model.parameters(), strict=True):
            parameter.copy_(value)


def hotswap_rows(pipe: StableDiffusionPipeline, folder: Path, repeats: int) -> Iterator[str]:
    """From one file of the UNet to another, which is not loaded yet: diffusers' hotswap against MultiLoraPipeline's,
    and against another merge."""
    files = [write_network(pipe, folder / f"unet{i}.safetensors", i, text=False) for i in range(repeats + 1)]
    ours = MultiLoraPipeline(**pipe.components, requires_safety_checker=False)
    taken = {}
    for side in (pipe, ours):
        side.load_lora_weights(folder, weight_name=files[0].name, adapter_name="swapped")
        for path in files[1:]:
            given = {"weight_name": path.name, "adapter_name": "swapped", "hotswap": True}
            swap = seconds(lambda given=given, side=side: side.load_lora_weights(folder, **given))
            taken[side] = min(swap, taken.get(side, swap))
        side.unload_lora_weights()
    yield row("hotswap", 1, taken[pipe], taken[ours], "s")
    merger = NetworkMerger(pipe)
    merger.switch([(read_network(files[0]), 1.0, 1.0)])
    merged = min(seconds(lambda path=path: merger.switch([(read_network(path), 1.0, 1.0)])) for path in files[1:])
    merger.restore()
    yield row("    merged", 1, taken[pipe], merged, "s")


def diffusers_side(pipe: StableDiffusionPipeline, first: list[Path], second: list[Path]) -> tuple[Work, Work, Work]:
    """diffusers' own way: load, set_adapters, fuse; unfuse and fuse the others; unfuse and unload."""

    def load(path: Path) -> None:
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)

    def ready() -> None:
        for path in first:
            load(path)
        pipe.set_adapters([path.stem for path in first])
        pipe.fuse_lora()

    def switch() -> None:
        pipe.unfuse_lora()
        load(second[-1])
        pipe.set_adapters([path.stem for path in second])
        pipe.fuse_lora()

    def off() -> None:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()

    return ready, switch, off


def our_side(pipe: StableDiffusionPipeline, first: list[Path], second: list[Path]) -> tuple[Work, Work, Work]:
    """The same with NetworkMerger; every weight is as before, to the bit, at the end."""
    merger = NetworkMerger(pipe)
    known = {}

    def uses(paths: list[Path]) -> list[tuple]:
        known.update({path: read_network(path) for path in paths if path not in known})
        return [(known[path], 1.0, 1.0) for path in paths]

    return lambda: merger.switch(uses(first)), lambda: merger.switch(uses(second)), merger.restore


def adapter_side(pipe: StableDiffusionPipeline, first: list[Path]) -> tuple[Work, Work, Work]:
    """As PEFT adapters beside the weights, which MultiLoraPipeline uses by default."""
    mixer = AdapterMixer(pipe)
    return lambda: mixer.switch([(read_network(path), 1.0, 1.0) for path in first]), lambda: None, mixer.restore


def unfused_side(pipe: StableDiffusionPipeline, first: list[Path]) -> tuple[Work, Work, Work]:
    """diffusers' adapters, not fused."""

    def ready() -> None:
        for path in first:
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
        pipe.set_adapters([path.stem for path in first])

    return ready, lambda: None, pipe.unload_lora_weights


def sequence(unet: nn.Module, bare: nn.Module, ready: Work, switch: Work, off: Work) -> dict[str, float]:
    """CPU seconds of each; and of a forward in between as a multiple of the bare UNet's, the two taking turns."""
    found = {"ready": seconds(ready), "switch": seconds(switch)}
    ratios = [seconds(lambda: unet_forward(unet)) / seconds(lambda: unet_forward(bare)) for _ in range(5)]
    return {**found, "forward": statistics.median(ratios), "off": seconds(off)}


def seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def unet_forward(unet: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, hidden = (torch.randn(shape, generator=generator) for shape in ((2, 4, 16, 16), (2, 77, 768)))
    unet(noise, 500, encoder_hidden_states=hidden)


def memory_taken(side: str, folder: Path, count: int) -> dict[str, float]:
    """MiB above the models' own: the peak until the files draw, what is held then, and what is left after off."""
    files = sorted(folder.glob("*.safetensors"))[:count]
    pipe = read_pipeline(folder)
    unet_forward(pipe.unet)
    gc.collect()
    give_back_memory()  # what loading freed is not counted for either side
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    ready, _, off = (our_side if side == "here" else diffusers_side)(pipe, files, files)
    ready()
    gc.collect()
    found = {"peak": status("VmHWM"), "held": status("VmRSS")}
    off()
    gc.collect()
    return {what: (kib - before) / 1024 for what, kib in {**found, "after off": status("VmRSS")}.items()}


def status(field: str) -> int:
    """KiB, from Linux's /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def worker_memory(side: str, folder: str, count: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", side, folder, "--files", str(count), "--threads", str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def row(what: str, count: int, theirs: float, ours: float, unit: str) -> str:
    digits = 0 if unit == "MiB" else 2
    return f"{what:12}{count:>6}{theirs:>9.{digits}f} {unit:<3}{ours:>6.{digits}f} {unit:<3}{ours / theirs:>7.2f}"


if __name__ == "__main__":
    main()
