"""What the drawing pipelines return."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from .infotext.files import PICTURE_FORMATS, save_picture, save_pictures


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

    def save(self, path: str | Path, pattern: str = "[number]-[seed]", **kwargs: Any) -> list[Path]:
        """Write the pictures with their texts. Gives the paths. Needs `output_type="pil"`.

        path: a file of a picture format, for a single picture; else a folder, where `pattern` makes the names and no
        file that is there is written over. kwargs: `quality`, `lossless`; for a folder also `extension`.
        """
        if Path(path).suffix.lower() in PICTURE_FORMATS and len(self.images) == 1:
            return [save_picture(self.images[0], path, self.infotexts[0] if self.infotexts else None, **kwargs)]
        return save_pictures(self.images, self.infotexts, path, pattern, **kwargs)
