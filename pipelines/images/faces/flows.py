"""How each face restorer of the world goes about it, as a table, and what a caller may choose.

    flow          detection picture         crop -> net -> 8 bit   masks                        pasted back
    webui         short side 640, Lanczos   truncated              parse alone, hair included   the face, truncated
    facexlib      as it is                  rounded                square; parse alone if told  the face, truncated
    codeformer    at least 512, then 640    rounded                min(parse, square)           the face, truncated
    own           as it is                  not rounded            square; parse if told        the change, rounded

The three named ones keep their quirks, since pictures made with them are compared; "own" has none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FaceFlow:
    """One row of the table above, in full."""

    resize: int | None = None  # short side of the picture that the detector sees
    detector_method: str = "lanczos4"  # "lanczos4" both ways; "fit": area when shrinking, linear when enlarging
    threshold: float | None = None  # score that the detector is asked for
    eye_distance: float | None = None  # faces with eyes closer than this are left alone, in pixels
    eye_rule: str = "eyes"  # see choose_faces
    min_side: int | None = None  # smaller pictures are enlarged first, and come out larger
    rounding: str = "rint"  # of the net's output: "trunc", "rint" or "none"
    use_parse: bool = False
    mask: str = "parse alone"  # with a parse mask: "parse alone" or "min(parse, square)"
    background: str = "lanczos4"  # how the picture is enlarged where no upscaler does it
    gray: bool = False  # colourless pictures keep the crop's tint and contrast
    paste: str = "face"  # "face", or "change": what the net did to the crop is added to the picture
    offset: str = "half scale"  # "half scale": 0.5 s when enlarging; "centres": (s - 1) / 2, pixel centres kept


FACE_FLOWS = {
    "webui": FaceFlow(
        resize=640,
        threshold=0.97,
        eye_distance=5,
        rounding="trunc",
        use_parse=True,
    ),
    "facexlib": FaceFlow(threshold=0.97),
    "codeformer": FaceFlow(
        resize=640,
        detector_method="fit",
        eye_distance=5,
        eye_rule="codeformer",
        min_side=512,
        use_parse=True,
        mask="min(parse, square)",
        background="linear",
        gray=True,
    ),
    "own": FaceFlow(eye_distance=5, rounding="none", gray=True, paste="change", offset="centres"),
}


FindFaces = Callable[[np.ndarray, float | None], np.ndarray]
"""(h, w, 3) uint8 RGB and a score threshold or None -> (n, 15) float32 detections, best first."""
RestoreFace = Callable[[np.ndarray], np.ndarray]
"""(3, 512, 512) float32 RGB in [-1, 1] -> the restored face, the same."""
ParseFace = Callable[[np.ndarray], np.ndarray]
"""(3, 512, 512) float32 RGB in [-1, 1] -> (512, 512) whole numbers, the 19 classes of CelebAMask-HQ."""
EnlargePicture = Callable[[np.ndarray], np.ndarray]
"""(h, w, 3) uint8 RGB -> (k h, k w, 3) uint8."""


@dataclass(frozen=True)
class FaceNets:
    """The networks as functions. `detect` may also be the detections themselves, in the picture's coordinates."""

    detect: FindFaces | np.ndarray
    restore: RestoreFace
    parse: ParseFace | None = None
    enlarge: EnlargePicture | None = None


@dataclass(frozen=True)
class FaceOptions:
    """What a caller chooses. None where the flow decides."""

    flow: str = "own"
    use_parse: bool | None = None
    upscale: float = 1
    visibility: float = 1.0  # 0 before .. 1 after
    background_upsample: bool = True  # enlarge the picture with the upscaler, where there is one
    face_upsample: bool = False  # enlarge restored faces with the upscaler too
    only_center: bool = False
    only_largest: bool = False
    has_aligned: bool = False  # the picture is one aligned face: no detection, no pasting
    eye_distance: float | None = None
    resize: int | None = None
    rounding: str | None = None
    face_size: int = 512
    three_points: bool = False
    border: str = "constant"
    draw_box: bool = False  # a green frame around each face

    @property
    def rules(self) -> FaceFlow:
        """The flow's row of the table."""
        return FACE_FLOWS[self.flow]


def check_face_options(options: FaceOptions, has_upscaler: bool) -> None:
    """Raises ValueError for what no flow can do, before any work."""
    if options.flow not in FACE_FLOWS:
        raise ValueError(f"`flow` must be one of {', '.join(map(repr, FACE_FLOWS))}; got {options.flow!r}.")
    if not (np.isfinite(options.upscale) and options.upscale > 0):
        raise ValueError(f"`upscale` must be a positive number; got {options.upscale!r}.")
    if options.flow == "codeformer" and options.upscale != int(options.upscale):
        raise ValueError(f"flow 'codeformer' enlarges by whole numbers only; got upscale={options.upscale!r}.")
    if not 0 <= options.visibility <= 1:
        raise ValueError(f"`visibility` must lie between 0 and 1; got {options.visibility!r}.")
    if options.border not in ("constant", "reflect", "reflect101"):
        raise ValueError(f"`border` must be 'constant', 'reflect' or 'reflect101'; got {options.border!r}.")
    if options.face_upsample and not has_upscaler:
        raise ValueError(
            "`face_upsample` enlarges the restored faces with the upscaler, and there is none. "
            "Give the pipeline an `upscaler` component, or leave `face_upsample` off."
        )
    if options.face_upsample and options.flow not in ("codeformer", "own"):
        raise ValueError(f"flow {options.flow!r} does not enlarge faces (`face_upsample`): use 'codeformer' or 'own'.")
