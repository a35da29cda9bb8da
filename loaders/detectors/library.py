"""Which detector a pass means by its `ad_model`.

    "face", "MTCNN"              MTCNN, which ships here
    "RetinaFace"                 what the webui's face restoration uses; downloaded once
    a path, or a name in the folder:
                                 "hand_yolov8n.pt" means hand_yolov8n.onnx there
    a callable                   picture (h, w, 3) uint8 -> boxes, scores[, masks], or a dict of them

The webui's own `.pt` files are pickles that run code when they are loaded: they are never opened.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ModelMixin

from ..faces.load import load_face_detector
from ..model_lock import loaded_once
from ..utils import LOGGER, NameFromText, unknown_choice
from .yolo import YoloDetector


FACE_DETECTOR_NAMES = {"face": "MTCNN", "mtcnn": "MTCNN", "retinaface": "RetinaFace"}
FACE_MODELS = ("mediapipe_face", "face_yolov8")  # names of the webui's that "face" may stand in for, if asked
EXPORT_HINT = (
    "where the file can be trusted, once: `pip install ultralytics` and `yolo export model={0}.pt format=onnx "
    "dynamic=True`, then put {0}.onnx into the detector folder"
)

PictureDetector = Callable[[np.ndarray], Any]


class DetectorLibrary:
    """Detectors by name, each loaded once.

    folder: where `.onnx` files are looked for by name. fallback: "face" (or "mtcnn", "RetinaFace") to let that stand
    in for the webui's face models whose files are not there; None refuses them.
    """

    def __init__(self, folder: str | Path | None = None, fallback: str | None = None):
        self.folder = None if folder is None else Path(folder).expanduser()
        self.fallback = fallback
        self._loaded: dict[str, Any] = {}

    def find(self, name: str, *, confidence: float = 0.0, classes: str = "") -> PictureDetector:
        """A function of a picture (h, w, 3) uint8 RGB: boxes (n, 4) in pixels, scores (n,), masks (n, h, w) or None.

        confidence: what boxes must score at least to be looked at. classes: names, with commas between, of what is
        looked for; empty for all. Raises ValueError for a name that is not there, saying how to get it.
        """
        face = self._face_name(name)
        if face is not None:
            detector = loaded_once(self._loaded, face, lambda: load_face_detector(face))
            return lambda picture: face_boxes(detector, picture)
        path = self.file(name)
        yolo = loaded_once(self._loaded, str(path), lambda: YoloDetector(path))
        wanted = [part.strip() for part in classes.split(",") if part.strip()]
        return lambda picture: yolo(picture, confidence, wanted)

    def file(self, name: str) -> Path:
        """The `.onnx` file of a name or path; a name out of somebody's text is looked for in the folder alone."""
        given = Path(name).expanduser()
        if given.suffix == ".onnx" and given.is_file() and not isinstance(name, NameFromText):
            return given
        stem = given.name.removesuffix(given.suffix) if given.suffix in (".pt", ".onnx", ".pth") else given.name
        for file in self.files():
            if file.stem == stem:
                return file
        raise ValueError(self._missing(name, stem))

    def files(self) -> list[Path]:
        """The `.onnx` files of the folder."""
        return sorted(self.folder.rglob("*.onnx")) if self.folder is not None and self.folder.is_dir() else []

    def _missing(self, name: str, stem: str) -> str:
        said = unknown_choice("`ad_model`:", name, ["face", "RetinaFace", *(file.stem for file in self.files())])
        if Path(name).suffix in (".pt", ".pth"):
            where = (
                "no detector folder is set that could hold" if self.folder is None else f"{self.folder} does not hold"
            )
            said = (
                f"`ad_model`: {name!r} is a pickle, which runs its maker's code when it is loaded, so it is never "
                f"opened; and {where} {stem}.onnx. Export it {EXPORT_HINT.format(stem)}."
            )
        if name.startswith(FACE_MODELS):
            said += ' Or let MTCNN find the faces: the fallback "mtcnn" (`--face-detector mtcnn`), or ad_model="face".'
        return said

    def _face_name(self, name: str) -> str | None:
        """The face detector that a name means, MTCNN or RetinaFace; None for other detectors."""
        if name.lower() in FACE_DETECTOR_NAMES:
            return FACE_DETECTOR_NAMES[name.lower()]
        if self.fallback is None or not name.startswith(FACE_MODELS):
            return None
        if any(file.stem == Path(name).stem for file in self.files()):
            return None
        if self.fallback.lower() not in FACE_DETECTOR_NAMES:
            raise ValueError(unknown_choice("face detector", self.fallback, FACE_DETECTOR_NAMES))
        stand_in = FACE_DETECTOR_NAMES[self.fallback.lower()]
        LOGGER.warning("%s stands in for the detector %s: boxes, and so pictures, differ a little.", stand_in, name)
        return stand_in


def face_boxes(detector: ModelMixin, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    """Boxes and scores of a face detector's rows of 15 numbers, best first; no masks."""
    rows = np.asarray(detector(picture), np.float64).reshape(-1, 15)
    return rows[:, :4], rows[:, 4], None
