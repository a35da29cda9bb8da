"""Faces in a picture, restored: detect, choose, align, restore, paste back. Functions and arrays only.

>>> nets = FaceNets(detect=detections, restore=lambda face: face)
>>> restore_faces(picture, nets, FaceOptions(flow="webui")).image
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..opencv import resize_picture
from .align import align_face, fit_face  # noqa: F401  the two that are public come from this page
from .color import blend_visibility, is_gray, to_levels
from .flows import FaceNets, FaceOptions, check_face_options
from .steps import (
    RestoredFace,
    cut_and_restore,
    enlarged_background,
    find_faces,
    helper_picture,
    paste_faces,
    restore_crop,
)


@dataclass
class FaceResult:
    """What `restore_faces` did. Coordinates of faces are those of the picture times `factor`."""

    image: np.ndarray  # (H, W, 3) uint8
    faces: list[RestoredFace] = field(default_factory=list)
    factor: float = 1.0  # by which a flow enlarged the picture before anything else
    gray: bool = False


def restore_faces(
    picture: np.ndarray,
    nets: FaceNets,
    options: FaceOptions,
    *,
    background: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FaceResult:
    """Restore the faces in one picture, (h, w, 3) uint8 RGB.

    background: the enlarged picture, where the caller has it (any size). progress: called as (faces done, faces),
    first with 0 done; may raise to stop. A net that fails on a face leaves that face as it was, and says so in
    `RestoredFace.error` and the log. Without a face, and without enlarging, the picture comes back bit for bit.
    """
    check_face_options(options, nets.enlarge is not None)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"`picture` must be (h, w, 3) uint8 with h, w > 0; got {picture.shape} {picture.dtype}.")
    if options.has_aligned:
        return _restore_aligned(picture, nets, options)

    gray = options.rules.gray and is_gray(picture)
    helper, factor = helper_picture(picture, options.rules.min_side)
    back = enlarged_background(picture, helper, nets, options, background)
    result = FaceResult(back, factor=factor, gray=gray)
    rows = find_faces(helper, factor, nets, options) if options.visibility > 0 else []
    if rows and progress is not None:
        progress(0, len(rows))
    for number, row in enumerate(rows):
        face = cut_and_restore(helper, row, nets, options, gray)
        if face is not None:
            result.faces.append(face)
        if progress is not None:
            progress(number + 1, len(rows))
    if result.faces:
        after = paste_faces(back, result.faces, nets, options)
        result.image = blend_visibility(back, after, options.visibility, _blend_rounding(options))
    return result


def _restore_aligned(picture: np.ndarray, nets: FaceNets, options: FaceOptions) -> FaceResult:
    """The picture is one face that fills the frame: resized to the net's size (its aspect is not kept), restored."""
    n = options.face_size
    crop = resize_picture(picture, (n, n), "linear")
    gray = options.rules.gray and is_gray(crop)
    face = restore_crop(crop, np.zeros(15, np.float32), np.eye(2, 3), nets, options, gray)
    after = to_levels(face.restored, "rint")
    return FaceResult(blend_visibility(crop, after, options.visibility, _blend_rounding(options)), [face], gray=gray)


def _blend_rounding(options: FaceOptions) -> str:
    return "trunc" if options.flow == "webui" else "rint"
