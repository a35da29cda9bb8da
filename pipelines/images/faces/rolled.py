"""Faces that do not stand upright, found by turning the picture. For detectors such as MTCNN, whose landmarks are
poor beyond about 25 degrees of roll and which sees nothing lying on its side."""

from collections.abc import Callable

import numpy as np

from ..opencv import invert_affine, warp_affine
from .align import face_landmarks, face_roll


UPRIGHT_ROLL = 20.0  # degrees up to which a detection is taken as it is
SURE_SCORE = 0.998  # MTCNN gives upright faces more; upside down and sideways it sees "upright" faces with less
TURNED_SCORE = 0.99  # that a face must have in a turned copy to count
QUARTER_TURNS = (90.0, -90.0, 180.0)
EIGHTH_TURNS = (45.0, -45.0, 135.0, -135.0)


def detect_turned(
    picture: np.ndarray, detect: Callable[[np.ndarray], np.ndarray], notes: list[str] | None = None
) -> np.ndarray:
    """Detections of a picture, also of faces that lie on their side, (n, 15) float32 in the picture's coordinates.

    detect: (h, w, 3) uint8 -> (n, 15). Where it finds nothing or is unsure of a face, copies turned by quarters are
    tried (by eighths, if those show nothing either), and of overlapping finds the surest counts. Each face rolled by
    more than 20 degrees is then looked at again, upright. notes: gets a sentence for each thing done.
    """
    notes = [] if notes is None else notes
    rows = np.asarray(detect(picture), np.float32).reshape(-1, 15)
    if not len(rows) or rows[:, 4].min() < SURE_SCORE:
        rows = _with_turned(rows, picture, detect, QUARTER_TURNS, notes)
    if not len(rows):
        rows = _with_turned(rows, picture, detect, EIGHTH_TURNS, notes)
    rolled = np.abs([face_roll(row) for row in rows]) > UPRIGHT_ROLL
    result = [_look_again(picture, detect, row, notes) if turn else row for row, turn in zip(rows, rolled)]
    return np.stack(result) if result else rows


def _with_turned(
    rows: np.ndarray,
    picture: np.ndarray,
    detect: Callable[[np.ndarray], np.ndarray],
    angles: tuple[float, ...],
    notes: list[str],
) -> np.ndarray:
    """Detections together with those of turned copies; of overlapping ones the best score stays."""
    found = [rows]
    for angle in angles:
        turned = _detect_at(picture, detect, angle)
        found.append(turned[turned[:, 4] >= TURNED_SCORE])
    origin = np.repeat((0.0, *angles), [len(r) for r in found])
    pool = np.concatenate(found)
    kept: list[int] = []
    for i in np.argsort(-pool[:, 4], kind="stable"):
        if not any(_overlap(pool[i], pool[k]) > 0.3 for k in kept):
            kept.append(i)
            if origin[i]:
                notes.append(f"a face was found in the picture turned by {origin[i]:g} degrees")
    return pool[kept]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Shared area of two boxes over the smaller one's."""
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    smaller = min((v[2] - v[0]) * (v[3] - v[1]) for v in (a, b))
    return float(max(w, 0) * max(h, 0) / max(smaller, 1e-6))


def turn_matrix(size: tuple[int, int], angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """(2, 3) that turns a picture of `size` (w, h) clockwise as seen, and the size that then holds all of it."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    w, h = size
    out = (int(round(abs(w * c) + abs(h * s))), int(round(abs(w * s) + abs(h * c))))
    turn = np.array([[c, -s], [s, c]])
    old, new = ((np.array(v) - 1) / 2 for v in (size, out))
    return np.column_stack([turn, new - turn @ old]), out


def _detect_at(picture: np.ndarray, detect: Callable[[np.ndarray], np.ndarray], angle: float) -> np.ndarray:
    matrix, size = turn_matrix((picture.shape[1], picture.shape[0]), angle)
    rows = np.asarray(detect(warp_affine(picture, matrix, size)), np.float32).reshape(-1, 15)
    return _map_rows(rows, invert_affine(matrix))


def _look_again(
    picture: np.ndarray, detect: Callable[[np.ndarray], np.ndarray], row: np.ndarray, notes: list[str]
) -> np.ndarray:
    """The same face seen upright, twice at most; the row as it was if it is not found there."""
    for _ in range(2):
        roll = face_roll(row)
        centre, side = face_landmarks(row).mean(axis=0), 2.5 * max(row[2] - row[0], row[3] - row[1])
        side = int(np.clip(side, 64, 4096))
        c, s = np.cos(np.radians(-roll)), np.sin(np.radians(-roll))
        turn = np.array([[c, -s], [s, c]])
        matrix = np.column_stack([turn, np.full(2, (side - 1) / 2) - turn @ centre])
        found = np.asarray(detect(warp_affine(picture, matrix, (side, side))), np.float32).reshape(-1, 15)
        if not len(found):
            return row
        middles = found[:, 5:].reshape(-1, 5, 2).mean(axis=1)
        near = found[[int(np.argmin(np.linalg.norm(middles - (side - 1) / 2, axis=1)))]]
        if np.linalg.norm(middles - (side - 1) / 2, axis=1).min() > side / 4:
            return row
        row = _map_rows(near, invert_affine(matrix))[0]
        notes.append(f"a face rolled by {roll:.0f} degrees was measured upright: {face_roll(row):.0f} degrees")
        if abs(face_roll(near[0])) <= UPRIGHT_ROLL / 2:
            break
    return row


def _map_rows(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Detections through a (2, 3) matrix; a box becomes the upright box around its turned corners."""
    if not len(rows):
        return rows
    turn, shift = matrix[:, :2].T, matrix[:, 2]
    corners = rows[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2).astype(np.float64) @ turn + shift
    points = rows[:, 5:].reshape(-1, 5, 2).astype(np.float64) @ turn + shift
    columns = [corners.min(axis=1), corners.max(axis=1), rows[:, 4], points.reshape(-1, 10)]
    return np.column_stack(columns).astype(np.float32)
