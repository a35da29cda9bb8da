"""Faces in a picture, restored: detect, choose, align, restore, paste back. Functions and arrays only.

>>> nets = FaceNets(detect=detections, restore=lambda face: face)
>>> restore_faces(picture, nets, FaceOptions(flow="webui")).image
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ....loaders.utils import LOGGER
from ..opencv import Window, invert_affine, resize_picture, warp_affine
from .align import FACE_BORDER, align_face, choose_faces, face_landmarks, fit_face, fit_face_3points
from .color import blend_visibility, from_net_range, gray_of, is_gray, match_statistics, to_levels, to_net_range
from .flows import EnlargePicture, FaceNets, FaceOptions, ParseFace, check_face_options
from .masks import face_window
from .paste import (
    FaceCanvas,
    draw_face_boxes,
    paste_change,
    paste_face,
    paste_matrix,
    smooth_for_warp,
    upsampled_paste_matrix,
)


LEAST_SIDE = 8  # pixels; a picture with a shorter side shows no face, and need not be enlarged to look for one


@dataclass
class RestoredFace:
    """One face on its way, in the coordinates of the picture that it was cut from."""

    row: np.ndarray  # (15,) the detection
    matrix: np.ndarray  # (2, 3) picture -> crop
    crop: np.ndarray  # (n, n, 3) uint8
    restored: np.ndarray  # (n, n, 3) uint8, or float in 0..255
    error: str | None = None  # why the net failed; then `restored` is the crop
    mask: np.ndarray | None = None  # (h, w) 0..1, where it replaced the picture, for `window` of the output
    window: Window = (0, 0, 0, 0)
    mask_kind: str = ""  # "square" or "parse"


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


# --- the single steps, in the order in which they are taken


def detection_picture(picture: np.ndarray, resize: int | None, method: str) -> tuple[np.ndarray, float, float]:
    """The picture that the detector sees, and a, b: its coordinates times a, divided by b, are the picture's.

    method: "lanczos4", or "fit" (area when shrinking, linear when enlarging; its float error makes the short side one
    pixel less for some sizes).
    """
    if resize is None:
        return picture, 1.0, 1.0
    h, w = picture.shape[:2]
    if method == "lanczos4":
        scale = min(h, w) / resize
        return resize_picture(picture, (int(w / scale), int(h / scale)), "lanczos4"), scale, 1.0
    k = resize / min(h, w)
    size = (int(w * k), int(h * k))
    return resize_picture(picture, size, "linear" if k > 1 else "area"), 1.0, k


def find_faces(helper: np.ndarray, factor: float, nets: FaceNets, options: FaceOptions) -> list[np.ndarray]:
    """The detections to restore, (15,) float32 each, in the helper picture's coordinates."""
    rules = options.rules
    if callable(nets.detect) and min(helper.shape[:2]) < LEAST_SIDE:
        rows = np.zeros((0, 15), np.float32)
    elif callable(nets.detect):
        resize = rules.resize if options.resize is None else options.resize
        seen, a, b = detection_picture(helper, resize, rules.detector_method)
        rows = np.asarray(nets.detect(seen, rules.threshold), np.float32).reshape(-1, 15)
        rows = rows * np.float32(a) / np.float32(b)
    else:
        rows = np.array(nets.detect, np.float32).reshape(-1, 15)
        rows[:, np.arange(15) != 4] *= np.float32(factor)
    gap = rules.eye_distance if options.eye_distance is None else options.eye_distance
    size = (helper.shape[1], helper.shape[0])
    kept = choose_faces(
        rows,
        size,
        eye_distance=gap,
        eye_rule=rules.eye_rule,
        only_largest=options.only_largest,
        only_center=options.only_center,
    )
    return [rows[i] for i in kept]


def helper_picture(picture: np.ndarray, min_side: int | None) -> tuple[np.ndarray, float]:
    """The picture to work on, and the factor by which it was enlarged so that its short side is `min_side`."""
    h, w = picture.shape[:2]
    if min_side is None or min(h, w) >= min_side:
        return picture, 1.0
    factor = min_side / min(h, w)
    return resize_picture(picture, (round(w * factor), round(h * factor)), "linear", factor=factor), factor


def enlarged_background(
    picture: np.ndarray, helper: np.ndarray, nets: FaceNets, options: FaceOptions, given: np.ndarray | None
) -> np.ndarray:
    """The picture at the output size, (int(h s), int(w s), 3) of the helper picture's h, w."""
    s, (h, w) = options.upscale, helper.shape[:2]
    size = (int(w * s), int(h * s))
    wanted = options.background_upsample and (s != 1 or options.flow == "codeformer")
    if given is None and nets.enlarge is not None and wanted:
        given = nets.enlarge(picture)
        if options.flow == "codeformer":
            given = resize_picture(given, (int(picture.shape[1] * s), int(picture.shape[0] * s)), "lanczos4")
    if given is not None:
        return resize_picture(given, size, "lanczos4")
    return resize_picture(helper, size, options.rules.background)


def cut_and_restore(
    helper: np.ndarray, row: np.ndarray, nets: FaceNets, options: FaceOptions, gray: bool
) -> RestoredFace | None:
    """One face cut out and through the net; None where no crop can be fitted."""
    n = options.face_size
    matrix = _fit_or_none(row, options)
    if matrix is None:
        return None
    if options.rules.paste == "change":
        crop = fine_crop(helper, matrix, n, options.border)
    else:
        crop = align_face(helper, matrix, size=n, border=options.border)
    return restore_crop(crop, row, matrix, nets, options, gray)


def restore_crop(
    crop: np.ndarray, row: np.ndarray, matrix: np.ndarray, nets: FaceNets, options: FaceOptions, gray: bool
) -> RestoredFace:
    """An aligned crop, (n, n, 3) in 0..255, through the net."""
    restored, error = _through_net(crop, nets, options)
    if gray:
        restored = _without_colour(restored, crop, options.rules.paste)
    return RestoredFace(row, matrix, to_levels(crop, "rint"), restored, error)


def fine_crop(picture: np.ndarray, matrix: np.ndarray, size: int, border: str) -> np.ndarray:
    """`align_face` in float32, and without aliasing where the face shrinks. Touches only the face's surroundings."""
    inverse = invert_affine(matrix)
    reach = int(3 * np.sqrt(abs(np.linalg.det(inverse[:, :2])))) + 4  # of the smoothing, in pixels of the picture
    x, y = inverse @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])
    h, w = picture.shape[:2]
    x0, y0 = (int(np.clip(v.min() - reach, 0, n - 1)) for v, n in ((x, w), (y, h)))
    x1, y1 = (int(np.clip(v.max() + reach, m + 1, n)) for v, m, n in ((x, x0, w), (y, y0, h)))
    part = smooth_for_warp(picture[y0:y1, x0:x1].astype(np.float32), matrix)
    moved = np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ (x0, y0)])
    return warp_affine(part, moved, (size, size), border=border, value=FACE_BORDER)


def paste_faces(back: np.ndarray, faces: list[RestoredFace], nets: FaceNets, options: FaceOptions) -> np.ndarray:
    """All faces onto the background, one after another, rounded once; (h, w, 3) uint8. Fills in each face's mask."""
    rules, s = options.rules, options.upscale
    parse = _parser(nets, options)
    canvas = FaceCanvas(back, s, double=parse is not None)
    matrix_of = upsampled_paste_matrix if options.face_upsample else paste_matrix
    inverses = [matrix_of(face.matrix, s, rules.offset) for face in faces]
    n = int(options.face_size * s) if options.face_upsample else options.face_size
    canvas.hold([face_window(inverse, n, canvas.size, s) for inverse in inverses])
    areas = []
    for face, inverse in zip(faces, inverses):
        picture = face.restored
        if options.face_upsample and nets.enlarge is not None:
            picture = _enlarged_face(picture, n, nets.enlarge)
        classes = parse(_parser_input(picture)) if parse is not None else None
        if rules.paste == "face":
            done = paste_face(canvas, picture, inverse, classes, rules.mask)
        elif face.error is None:
            own = fine_crop(back, invert_affine(inverse), n, options.border)
            done = paste_change(canvas, picture.astype(np.float32), own, inverse, classes)
        else:
            continue
        face.mask, face.window, area = done
        face.mask_kind = "square" if classes is None else "parse"
        areas.append(area)
    result = canvas.levels("rint" if rules.paste == "change" else "trunc")
    return draw_face_boxes(result, inverses, areas, n) if options.draw_box else result


def _fit_or_none(row: np.ndarray, options: FaceOptions) -> np.ndarray | None:
    fit = fit_face_3points if options.three_points else fit_face
    try:
        return fit(face_landmarks(row), size=options.face_size)
    except ValueError as error:
        LOGGER.warning("A face was left as it is: %s", error)
        return None


def _through_net(crop: np.ndarray, nets: FaceNets, options: FaceOptions) -> tuple[np.ndarray, str | None]:
    """What the net makes of a crop, as the flow rounds it; if it fails, the crop itself and the reason."""
    x = to_net_range(crop)
    error = None
    try:
        y = np.asarray(nets.restore(x))
        if y.shape != x.shape or not np.isfinite(y).all():
            raise ValueError(f"the face restorer gave {y.shape} for {x.shape}, or numbers that are not finite")
    except Exception as failure:  # one face must not cost the others; the caller finds it in the result
        error = f"{type(failure).__name__}: {failure}"
        LOGGER.warning("The face restorer failed, and one face is left as it was: %s", error)
        y = x
    return from_net_range(y, options.rounding or options.rules.rounding), error


def _without_colour(restored: np.ndarray, crop: np.ndarray, paste: str) -> np.ndarray:
    """For pictures without colour: none from the net either. "face": with the crop's tint and contrast (the
    CodeFormer repository's way, unbounded); "change": the crop plus the luma of the change."""
    if paste == "face":
        return match_statistics(gray_of(restored), crop)
    return (crop + gray_of(restored - crop)).astype(np.float32)


def _parser(nets: FaceNets, options: FaceOptions) -> ParseFace | None:
    wanted = options.rules.use_parse if options.use_parse is None else options.use_parse
    if not wanted:
        return None
    if nets.parse is None:
        LOGGER.warning(
            "No face parser here: faces are blended with the soft square mask where flow '%s' would use the mask of "
            "face parts (hair and skin, without hat, neck and background). Add a `face_parser` for that.",
            options.flow,
        )
    return nets.parse


def _parser_input(face: np.ndarray) -> np.ndarray:
    """A restored face as a parser sees it: 512x512, (3, 512, 512) float32 in [-1, 1]."""
    return to_net_range(resize_picture(face, (512, 512), "linear"))


def _enlarged_face(face: np.ndarray, size: int, enlarge: EnlargePicture) -> np.ndarray:
    """A restored face through the upscaler, then to `size`; uint8. Cut to 0..255 first (the original lets it wrap)."""
    return resize_picture(enlarge(to_levels(face, "rint")), (size, size), "lanczos4")
