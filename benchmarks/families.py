"""Other families than LoRA, from a file to merged weights: here against LyCORIS' own loader and merge.

    python benchmarks/families.py                  LoHa, LoKr and DoRA over SD 1.5's UNet
    python benchmarks/families.py --repeats 5

Files of rank 8 in float16 over every linear layer of the UNet's transformers, merged into random weights that were
read from a folder in float16 into float32; CPU seconds, both sides turn by turn, the median of the ratios. LyCORIS
takes part where it is installed.
"""

import argparse
import importlib
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from networks import random_pipeline, read_pipeline, save_models, seconds
from safetensors.torch import save_file
from torch import Tensor, nn
from webui_diffusers.loaders import NetworkMerger, read_network


RANK, ALPHA, FACTOR = 8, 4.0, 8
PREFIX = "lora_unet"
Parts = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        save_models(random_pipeline(), Path(folder))
        pipe = read_pipeline(Path(folder))
        for name, parts in {"LoRA": lora_parts, "LoHa": loha_parts, "LoKr": lokr_parts, "DoRA": dora_parts}.items():
            path = write_family(pipe.unet, Path(folder) / f"{name}.safetensors", parts)
            print(family_row(name, pipe, path, arguments.repeats), flush=True)


def family_row(name: str, pipe: object, path: Path, repeats: int) -> str:
    """Merged from the file; and put back here, which LyCORIS leaves to a copy of the model."""
    mine, back, theirs = [], [], []
    for _ in range(repeats):
        merger = NetworkMerger(pipe)
        mine.append(seconds(lambda merger=merger: merger.switch([(read_network(path), 1.0, 1.0)], "reference")))
        back.append(seconds(merger.restore))
        if importlib.util.find_spec("lycoris"):
            before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
            theirs.append(seconds(lambda: lycoris_merge(pipe.unet, path)))
            pipe.unet.load_state_dict(before)
    label = f"{name}: from the file into the weights"
    taken = f"({statistics.median(mine):.2f} s, out again {statistics.median(back):.2f} s)"
    if not theirs:
        return f"{label:45} LyCORIS is not installed: pip install lycoris-lora  {taken}"
    ratios = [one / other for one, other in zip(mine, theirs)]
    return f"{label:45} {statistics.median(ratios):5.2f}  [{min(ratios):.2f} .. {max(ratios):.2f}]  {taken}"


def lycoris_merge(unet: nn.Module, path: Path) -> None:
    lycoris = importlib.import_module("lycoris")
    lycoris.LycorisNetwork.LORA_PREFIX = PREFIX
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), unet)
    network.merge_to(1.0)


def write_family(unet: nn.Module, path: Path, parts: Callable[[nn.Linear, torch.Generator], Parts]) -> Path:
    """A file with these parts for every linear layer of the transformers."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and "transformer_blocks" in name:
            stem = f"{PREFIX}_{name.replace('.', '_')}"
            for part, value in parts(module, generator).items():
                tensors[f"{stem}.{part}"] = value.half()
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


def small(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) * 0.01


def lora_parts(layer: nn.Linear, generator: torch.Generator) -> Parts:
    up, down = small(generator, layer.out_features, RANK), small(generator, RANK, layer.in_features)
    return {"lora_up.weight": up, "lora_down.weight": down}


def loha_parts(layer: nn.Linear, generator: torch.Generator) -> Parts:
    return {
        f"hada_w{half}_{side}": small(generator, *shape)
        for half in "12"
        for side, shape in (("a", (layer.out_features, RANK)), ("b", (RANK, layer.in_features)))
    }


def lokr_parts(layer: nn.Linear, generator: torch.Generator) -> Parts:
    return {
        "lokr_w1": small(generator, FACTOR, FACTOR),
        "lokr_w2_a": small(generator, layer.out_features // FACTOR, RANK),
        "lokr_w2_b": small(generator, RANK, layer.in_features // FACTOR),
    }


def dora_parts(layer: nn.Linear, generator: torch.Generator) -> Parts:
    lengths = layer.weight.detach().norm(dim=1, keepdim=True)
    return {**lora_parts(layer, generator), "dora_scale": lengths}


if __name__ == "__main__":
    main()
