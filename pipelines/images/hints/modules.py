"""Preprocessors: from a given image to the one that a control network is shown.

Four come with the pack. The others are those of the package controlnet_aux, whose weights have to be on this machine.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ....loaders.utils import require, unknown_choice
from .edges import canny_image


class AuxDetector(NamedTuple):
    """A detector of controlnet_aux and how it is called for a module of the extension."""

    detector: str  # its class
    arguments: dict[str, Any] = {}
    weights: str | None = "lllyasviel/Annotators"  # the repository of its weights; None: it has none


# module of the extension -> the same detector in controlnet_aux
AUX_MODULES = {
    "depth": AuxDetector("MidasDetector"),
    "depth_midas": AuxDetector("MidasDetector"),
    "depth_leres": AuxDetector("LeresDetector"),
    "depth_leres++": AuxDetector("LeresDetector", {"boost": True}),
    "depth_zoe": AuxDetector("ZoeDetector"),
    "lineart": AuxDetector("LineartDetector"),
    "lineart_realistic": AuxDetector("LineartDetector"),
    "lineart_coarse": AuxDetector("LineartDetector", {"coarse": True}),
    "lineart_anime": AuxDetector("LineartAnimeDetector"),
    "lineart_standard": AuxDetector("LineartStandardDetector", weights=None),
    "mediapipe_face": AuxDetector("MediapipeFaceDetector", weights=None),
    "mlsd": AuxDetector("MLSDdetector"),
    "normal_bae": AuxDetector("NormalBaeDetector"),
    "openpose": AuxDetector("OpenposeDetector"),
    "openpose_face": AuxDetector("OpenposeDetector", {"include_face": True}),
    "openpose_faceonly": AuxDetector("OpenposeDetector", {"include_face": True, "include_body": False}),
    "openpose_hand": AuxDetector("OpenposeDetector", {"include_hand": True}),
    "openpose_full": AuxDetector("OpenposeDetector", {"include_hand": True, "include_face": True}),
    "scribble_hed": AuxDetector("HEDdetector", {"scribble": True}),
    "scribble_pidinet": AuxDetector("PidiNetDetector", {"scribble": True}),
    "shuffle": AuxDetector("ContentShuffleDetector", weights=None),
    "softedge_hed": AuxDetector("HEDdetector"),
    "softedge_hedsafe": AuxDetector("HEDdetector", {"safe": True}),
    "softedge_pidinet": AuxDetector("PidiNetDetector"),
    "softedge_pidisafe": AuxDetector("PidiNetDetector", {"safe": True}),
}
OWN_MODULES = ("none", "invert", "canny", "inpaint", "inpaint_only")


def find_module(name: str) -> Callable[[np.ndarray, int, float, float], np.ndarray]:
    """What the module does to an image (h, w, 3) uint8, given its resolution and two thresholds.

    The inpaint modules leave the image alone: what they do to it needs the mask. Raises ValueError for an unknown
    name and OSError where a detector's weights are not on this machine; ImportError without controlnet_aux.
    """
    if name in ("none", "inpaint", "inpaint_only"):
        return lambda image, resolution, a, b: image
    if name == "invert":
        return lambda image, resolution, a, b: 255 - image
    if name == "canny":
        return lambda image, resolution, a, b: canny_image(image, int(resolution), a, b)
    if name not in AUX_MODULES:
        raise ValueError(unknown_choice("`module`:", name, (*OWN_MODULES, *AUX_MODULES)))
    return _aux_detector(name, AUX_MODULES[name])


def _aux_detector(name: str, row: AuxDetector) -> Callable[[np.ndarray, int, float, float], np.ndarray]:
    package = require("controlnet_aux", extra="controlnet", feature=f'The ControlNet module "{name}"')
    kind = getattr(package, row.detector)
    if row.weights is None:
        detector = kind()
    else:
        try:
            detector = kind.from_pretrained(row.weights, local_files_only=True)
        except OSError as error:
            raise OSError(
                f'The ControlNet module "{name}" needs the weights of {row.detector}, which are not on this machine. '
                f"Fetch them once with `hf download {row.weights}`, or run the detector yourself and pass its result "
                'with module "none".'
            ) from error

    def detect(image: np.ndarray, resolution: int, a: float, b: float) -> np.ndarray:
        known = signature(detector.__call__).parameters
        sizes = {name: int(resolution) for name in ("detect_resolution", "image_resolution") if name in known}
        found = np.asarray(detector(Image.fromarray(image), output_type="np", **sizes, **row.arguments))
        return found if found.ndim == 3 else np.repeat(found[..., None], 3, axis=2)

    return detect
