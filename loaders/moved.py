"""Where modules of version 0.1 are now. Importing one by its old name gives today's module and a DeprecationWarning.

The old names go with version 0.3. Folders that `save_pretrained` wrote name modules too, so they keep loading.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# name below webui_diffusers in version 0.1 -> today's
MOVED = {
    "pipelines.attached": "pipelines.registry",
    "pipelines.network_mixing": "pipelines.loras",
    "pipelines.mixin": "pipelines.base",
    "pipelines.stand_in": "pipelines.drop_in",
    "pipelines.bundle_sources": "pipelines.bundle.sources",
    "pipelines.saving": "pipelines.bundle.saving",
    "pipelines.infotext_read": "pipelines.infotext.read",
    "pipelines.infotext_write": "pipelines.infotext.write",
    "pipelines.infotext_table": "pipelines.infotext.fields",
    "pipelines.infotext_samplers": "pipelines.infotext.sampler_names",
    "pipelines.infotext_settings": "pipelines.infotext.settings",
    "pipelines.call_infotexts": "pipelines.infotext.from_call",
    "pipelines.picture_info": "pipelines.infotext.files",
    "pipelines.picture_names": "pipelines.infotext.filenames",
    "pipelines.picture_tools": "pipelines.infotext.other_programs",
    "pipelines.cli_axes": "pipelines.cli.axes",
    "pipelines.cli_batch": "pipelines.cli.batch",
    "pipelines.cli_common": "pipelines.cli.common",
    "pipelines.cli_draw": "pipelines.cli.txt2img",
    "pipelines.cli_explain": "pipelines.cli.explain",
    "pipelines.cli_grid": "pipelines.cli.grid",
    "pipelines.cli_info": "pipelines.cli.info",
    "pipelines.cli_jobs": "pipelines.cli.jobs",
    "pipelines.cli_lora": "pipelines.cli.lora",
    "pipelines.cli_models": "pipelines.cli.models",
    "pipelines.cli_options": "pipelines.cli.options",
    "pipelines.cli_pictures": "pipelines.cli.images",
    "pipelines.init_latents": "pipelines.images.init_latents",
    "pipelines.init_pictures": "pipelines.images.init_image",
    "pipelines.prompt.second_texts": "pipelines.prompt.prompt_2",
    "pipelines.prompt.styles": "pipelines.infotext.styles",
    "pipelines.prompt.tokenize": "pipelines.prompt.clip_tokenizer",
    "pipelines.prompt.encode_rows": "pipelines.prompt.text_encoder",
    "pipelines.sampling.steps": "pipelines.sampling.plan",
    "pipelines.sampling.noise_table": "pipelines.sampling.discrete_schedule",
    "pipelines.images.tiling": "pipelines.images.tile_grid",
    "pipelines.images.resample": "pipelines.images.opencv",
    "pipelines.images.faces_align": "pipelines.images.faces.align",
    "pipelines.images.faces_color": "pipelines.images.faces.color",
    "pipelines.images.faces_flows": "pipelines.images.faces.flows",
    "pipelines.images.faces_masks": "pipelines.images.faces.masks",
    "pipelines.images.faces_nets": "pipelines.images.faces.nets",
    "pipelines.images.faces_paste": "pipelines.images.faces.paste",
    "pipelines.images.faces_pictures": "pipelines.images.coerce",
    "pipelines.images.faces_steps": "pipelines.images.faces.restore",
    "pipelines.images.faces_turned": "pipelines.images.faces.rolled",
    "loaders.files": "loaders.weight_files",
    "loaders.published": "loaders.downloads",
    "loaders.package_files": "loaders.data_files",
    "loaders.upscaler_networks": "loaders.upscaler_model",
    "loaders.single_file": "loaders.checkpoint.load",
    "loaders.model_configs": "loaders.checkpoint.configs",
    "loaders.face_detector": "loaders.faces.mtcnn",
    "loaders.face_models": "loaders.faces.load",
    "loaders.face_parser": "loaders.faces.parsenet",
    "loaders.face_restorer": "loaders.faces.restorer",
    "loaders.face_retina": "loaders.faces.retinaface",
    "loaders.blocks": "loaders.lora.block_weights",
    "loaders.families": "loaders.lora.families",
    "loaders.network_file": "loaders.lora.read",
    "loaders.network_keys": "loaders.lora.keys",
    "loaders.network_info": "loaders.lora.metadata",
    "loaders.network_library": "loaders.lora.library",
    "loaders.network_sources": "loaders.lora.sources",
    "loaders.layer_names": "loaders.lora.targets",
    "loaders.merge": "loaders.lora.merge",
    "loaders.merge_plan": "loaders.lora.plan",
    "loaders.peft_adapters": "loaders.lora.peft_adapters",
    "loaders.peft_factors": "loaders.lora.peft_factors",
    "loaders.peft_inject": "loaders.lora.peft_inject",
    "loaders.peft_loading": "loaders.lora.peft_loading",
    "loaders.peft_mix": "loaders.lora.peft_mix",
    "loaders.peft_tuners": "loaders.lora.peft_tuners",
    "loaders.cache": "loaders.utils",
    "pipelines.log": "loaders.utils",
    "pipelines.optional": "loaders.utils",
    "pipelines.sampling.names": "loaders.utils",
    "pipelines.sampling.options": "pipelines.options",
    "pipelines.step_arguments": "pipelines.request",
    "pipelines.sdxl": "pipelines.conditioning",
    "pipelines.enlarge": "pipelines.images.hires",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds what is nowhere else under its old name, and gives the module of today in its place."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        inside = fullname.removeprefix(f"{self.package}.")
        return ModuleSpec(fullname, self) if inside != fullname and inside in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = f"{self.package}.{MOVED[old.removeprefix(f'{self.package}.')]}"
        warnings.warn(f"`{old}` is now `{new}`; the old name goes with 0.3.", DeprecationWarning, stacklevel=4)
        sys.modules[old] = import_module(new)


def keep_moved_names(package: str) -> None:
    """Let the old names be found, after everything else. package: what the pack is imported as."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules(package))
