"""What a repository of blocks for Modular Diffusers has beside its code."""

from importlib import import_module
from pathlib import Path

from webui_diffusers.pipelines.bundle.build import PipelineEntry


SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def write_block_index(entry: PipelineEntry, folder: Path) -> None:
    """modular_config.json and modular_model_index.json, as diffusers' own command `custom_blocks` writes them."""
    module = entry.file.removesuffix(".py").replace("/", ".")
    block = getattr(import_module(f"webui_diffusers.{module}"), entry.class_name)()
    auto_map = {"ModularPipelineBlocks": f"block.{entry.class_name}"}
    block.register_to_config(auto_map=auto_map, requirements=dict(block._requirements))
    block.save_config(save_directory=folder)
    block.init_pipeline().save_pretrained(str(folder), overwrite_modular_index=False)


def block_lines(name: str, place: str) -> str:
    """The lines that load a set of blocks, with the model that it is for."""
    load = f'blocks = ModularPipelineBlocks.from_pretrained("{place}", trust_remote_code=True)'
    start = f'pipe = blocks.init_pipeline("{SDXL if name.endswith("-xl") else SD15}")\npipe.load_components()'
    return f"\n# {name}\nfrom diffusers import ModularPipelineBlocks\n{load}\n{start}"
