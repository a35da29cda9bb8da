"""Load a pipeline from its folder alone and draw one picture: `python try_folder.py FOLDER CLASS [MODEL]`.

For a process of its own: the package is hidden, so that only what is in the folder can be loaded.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image


def draw_once(folder: str, class_name: str, model: str | None) -> np.ndarray:
    """(h, w, 3) in [0, 1]. model: whose weights; None: the folder's own."""
    if class_name == "FaceRestorePipeline":
        return _restore_once(folder)
    if class_name.endswith("Blocks"):
        return _run_blocks_once(folder, class_name, str(model))
    custom: dict[str, Any] = {} if model is None else {"custom_pipeline": folder}
    pipe = DiffusionPipeline.from_pretrained(model or folder, trust_remote_code=True, **custom)
    if type(pipe).__name__ != class_name:
        raise TypeError(f"`{folder}` gave a {type(pipe).__name__}, not a {class_name}")
    pipe.set_progress_bar_config(disable=True)
    more: dict[str, Any] = {}
    if "Img2Img" in class_name:
        more = {"image": Image.new("RGB", (64, 64), "red"), "strength": 1.0}
    if class_name == "DetailerPipeline":
        face = {"detections": [{"bboxes": [[8, 8, 50, 40]]}]}
        more = {"image": Image.new("RGB", (64, 64), "red"), "detailers": [face]}
    return pipe(prompt="a red circle", num_inference_steps=2, output_type="np", **more).images[0]


def _run_blocks_once(folder: str, class_name: str, model: str) -> np.ndarray:
    from diffusers import ModularPipelineBlocks

    blocks = ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)
    if type(blocks).__name__ != class_name:
        raise TypeError(f"`{folder}` gave {type(blocks).__name__}, not {class_name}")
    pipe = blocks.init_pipeline(model)
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt="a red circle", num_inference_steps=2, output_type="np", output="images")[0]


def _restore_once(folder: str) -> np.ndarray:
    """No face restorer is small: a picture without faces goes in, and has to come out as it was."""
    import torch
    from diffusers import ConfigMixin, ModelMixin

    class Unused(ModelMixin, ConfigMixin):
        weight = torch.nn.Parameter(torch.zeros(1))

    pipe = DiffusionPipeline.from_pretrained(folder, face_restorer=Unused(), trust_remote_code=True)
    return pipe(Image.new("RGB", (64, 64), "red"), output_type="np").images[0]


if __name__ == "__main__":
    sys.modules["webui_diffusers"] = None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as nowhere:
        image = draw_once(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    if image.ndim != 3 or not np.isfinite(image).all():
        raise ValueError(f"drew {image.shape} with values that are no colours")
    sys.stdout.write(f"{Path(sys.argv[1]).name}: {image.shape[1]}x{image.shape[0]}, mean {image.mean():.3f}\n")
