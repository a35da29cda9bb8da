"""What the drawing pipelines return."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from .picture_info import save_pictures


@dataclass
class WebUIPipelineOutput(BaseOutput):
    """Pictures and what is known of them. A call with `return_dict=False` gives (images, nsfw_content_detected).

    images: PIL pictures, or an array (b, h, w, 3) in [0, 1], or a tensor (b, 3, h, w) in [0, 1], or latents.
    nsfw_content_detected: one flag an image, None without a safety checker.
    infotexts: the "parameters" text of each image, as the webui writes it.
    seeds: the seed of each image; empty where a `generator` was used.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    nsfw_content_detected: list[bool] | None = None
    infotexts: list[str] | None = None
    seeds: list[int] | None = None

    def save(self, folder: str | Path, pattern: str = "[number]-[seed]", **kwargs: Any) -> list[Path]:
        """Write the pictures with their texts into `folder`, never over a file that is there. Gives the paths.

        pattern, and `extension`, `quality`, `lossless`: as in `save_pictures`. Needs `output_type="pil"`.
        """
        return save_pictures(self.images, self.infotexts, folder, pattern, **kwargs)
