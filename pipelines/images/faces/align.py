"""Landmarks to crops: which faces are taken, and the similarity that puts each into the 512x512 FFHQ frame.

A detection is 15 numbers: x1, y1, x2, y2, score, then x, y of the eye on the picture's left, the eye on its right, the
nose, the mouth corner on its left and the one on its right.
"""

import numpy as np

from ..opencv import warp_affine


FACE_SIZE = 512
FACE_TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
FACE_TEMPLATE_3 = ((192.0, 240.0), (319.0, 240.0), (257.0, 371.0))  # eyes and mouth
FACE_BORDER = (132, 133, 135)  # RGB of what lies outside the picture

# What OpenCV draws for n points: 13 pairs, from a generator whose seed is fixed. All pairs would be another method.
_LMEDS_PAIRS = {
    5: ("04", "03", "12", "10", "30", "04", "14", "31", "03", "01", "04", "41", "03"),
    3: ("01", "20", "02", "02", "20", "10", "12", "02", "20", "12", "01", "01", "21"),
}


def fit_face(landmarks: np.ndarray, *, size: int = FACE_SIZE) -> np.ndarray:
    """The similarity that maps a face's landmarks onto the FFHQ template, (2, 3) float64, picture -> size x size crop.

    landmarks: (5, 2) x, y in pixels, in the order of a detection. It is OpenCV 4's `estimateAffinePartial2D` with
    LMEDS: of 13 fixed pairs of landmarks the similarity with the smallest median error decides which landmarks count
    (about every fourth face loses one or two), then least squares over those. Raises ValueError where no similarity
    can be fitted: not finite, or all in one place.
    """
    return _fit_lmeds(landmarks, np.array(FACE_TEMPLATE) * (size / FACE_SIZE))[0]


def face_inliers(landmarks: np.ndarray) -> np.ndarray:
    """Which of the five landmarks `fit_face` goes by, (5,) bool."""
    return _fit_lmeds(landmarks, np.array(FACE_TEMPLATE))[1]


def fit_face_3points(landmarks: np.ndarray, *, size: int = FACE_SIZE) -> np.ndarray:
    """`fit_face` on eyes and nose alone, as facexlib's `template_3points` has it.

    A quirk kept for that option: the template's third point is the mouth, the landmark used is the nose, so crops come
    out too large and too low. Of three points two always fit exactly, so the third has no say.
    """
    return _fit_lmeds(np.asarray(landmarks)[:3], np.array(FACE_TEMPLATE_3) * (size / FACE_SIZE))[0]


def align_face(
    picture: np.ndarray,
    matrix: np.ndarray,
    *,
    size: int = FACE_SIZE,
    border: str = "constant",
) -> np.ndarray:
    """The face cut out and turned upright, (size, size, 3) uint8.

    picture: (h, w, 3) uint8 RGB; matrix: from `fit_face`; border: what lies outside the picture: "constant" (grey),
    "reflect" or "reflect101". Four taps per pixel, also when the face shrinks.
    """
    return warp_affine(picture, matrix, (size, size), border=border, value=FACE_BORDER)


def choose_faces(
    rows: np.ndarray,
    size: tuple[int, int],
    *,
    eye_distance: float | None = None,
    eye_rule: str = "eyes",
    only_largest: bool = False,
    only_center: bool = False,
) -> list[int]:
    """Indices of the detections to restore, in their order.

    rows: (n, 15); size: (w, h) of their picture. eye_distance: faces whose eyes are closer are dropped, in pixels.
    eye_rule: "eyes", or "codeformer", that script's off-by-one: it takes x of the right eye and of the *nose*, about
    half the distance, so it drops faces up to twice as large. only_largest: by box area inside the picture; wins over
    only_center: box centre nearest to the picture's. Ties go to the first.
    """
    kept = [i for i, row in enumerate(rows) if eye_distance is None or not _eye_gap(row, eye_rule) < eye_distance]
    if not kept or not (only_largest or only_center):
        return kept
    w, h = size
    x1, y1, x2, y2 = (np.asarray(rows)[kept, i].astype(np.float64) for i in range(4))
    if only_largest:
        areas = (np.clip(x2, 0, w) - np.clip(x1, 0, w)) * (np.clip(y2, 0, h) - np.clip(y1, 0, h))
        return [kept[int(np.argmax(areas))]]
    distances = np.hypot((x1 + x2) / 2 - w / 2, (y1 + y2) / 2 - h / 2)
    return [kept[int(np.argmin(distances))]]


def face_landmarks(row: np.ndarray) -> np.ndarray:
    """The five points of a detection, (5, 2)."""
    return np.asarray(row)[5:15].reshape(5, 2)


def face_roll(row: np.ndarray) -> float:
    """How far a face is turned in the picture plane, in degrees, -180..180; positive: clockwise as seen."""
    eye_l, eye_r = face_landmarks(row)[:2].astype(np.float64)
    return float(np.degrees(np.arctan2(eye_r[1] - eye_l[1], eye_r[0] - eye_l[0])))


def _eye_gap(row: np.ndarray, rule: str) -> float:
    eye_l, eye_r, nose = face_landmarks(row)[:3].astype(np.float64)
    across = eye_r[0] - nose[0] if rule == "codeformer" else eye_l[0] - eye_r[0]
    return float(np.hypot(across, eye_l[1] - eye_r[1]))


def _fit_lmeds(landmarks: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least median of squares, then least squares over the inliers. landmarks, template: (n, 2), n 5 or 3."""
    points, target = np.asarray(landmarks, np.float32), np.asarray(template, np.float32)
    if points.shape != target.shape or not np.isfinite(points).all():
        raise ValueError(f"`landmarks` must be {target.shape} finite numbers; got {np.asarray(landmarks).tolist()}")
    n = len(target)
    best, best_errors = np.inf, None
    for i, j in (map(int, pair) for pair in _LMEDS_PAIRS[n]):
        if (points[i] == points[j]).all():
            continue
        errors = _squared_errors(points, target, _through_two(points[[i, j]], target[[i, j]]))
        median = np.sort(errors)[n // 2]
        if median < best:
            best, best_errors = median, errors
    if best_errors is None:
        raise ValueError(f"the landmarks of this face lie in one place, and no crop can be fitted: {points.tolist()}")
    sigma = max(2.5 * 1.4826 * (1 + 5 / (n - 2)) * np.sqrt(float(best)), 0.001)
    inliers = best_errors <= sigma**2
    return _least_squares(points[inliers].astype(np.float64), target[inliers].astype(np.float64)), inliers


def _through_two(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The similarity that maps two points p onto q, each (2, 2); (2, 3) float64."""
    ((x1, y1), (x2, y2)), ((u1, v1), (u2, v2)) = p.astype(np.float64), q.astype(np.float64)
    dx, dy, du, dv, cross = x1 - x2, y1 - y2, u1 - u2, v1 - v2, x1 * y2 - x2 * y1
    d = 1 / (dx**2 + dy**2)
    c, s = d * (du * dx + dv * dy), d * (dv * dx - du * dy)
    tx = d * (dv * cross - (u1 * y2 - u2 * y1) * dy - (u1 * x2 - u2 * x1) * dx)
    ty = d * (-du * cross - (v1 * x2 - v2 * x1) * dx - (v1 * y2 - v2 * y1) * dy)
    return np.array([[c, -s, tx], [s, c, ty]])


def _squared_errors(points: np.ndarray, target: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n,) float32. All in float32, as in OpenCV: where three points leave a median of 0, its noise decides."""
    (a, b, c), (d, e, f) = matrix.astype(np.float32)
    x, y = points.T
    return (a * x + b * y + c - target[:, 0]) ** 2 + (d * x + e * y + f - target[:, 1]) ** 2


def _least_squares(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity with the least squared error, q = a p + b in complex numbers; (2, 3) float64."""
    p, q = (v[:, 0] + 1j * v[:, 1] for v in (points, target))
    dp, dq = p - p.mean(), q - q.mean()
    a = np.sum(np.conj(dp) * dq) / np.sum(np.abs(dp) ** 2)
    b = q.mean() - a * p.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
