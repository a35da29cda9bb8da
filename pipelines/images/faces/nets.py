"""Networks as the plain functions that `restore_faces` calls: arrays in, arrays out."""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ....loaders.utils import LOGGER
from .flows import FaceNets, FaceOptions
from .restore import restore_faces
from .rolled import detect_turned


def restorer_function(
    model: nn.Module, fidelity: float = 0.5, generator: torch.Generator | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """A face restorer, (1, 3, 512, 512) RGB in [-1, 1] -> the same or a tuple that begins with it, as a `RestoreFace`.

    Of `fidelity` (also as `weight` or `w`), `generator`, `adain=True` and `return_rgb=False` the model gets what its
    `forward` takes by name.
    """
    offered = {
        "fidelity": fidelity,
        "weight": fidelity,
        "w": fidelity,
        "adain": True,
        "return_rgb": False,
        "generator": generator,
    }
    taken = inspect.signature(model.forward).parameters
    arguments = {name: value for name, value in offered.items() if name in taken}

    @torch.no_grad()
    def restore(face: np.ndarray) -> np.ndarray:
        return _first_tensor(model(_to_model(face, model), **arguments))[0].float().cpu().numpy()

    return restore


def parser_function(model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """A face parser, (1, 3, 512, 512) in [-1, 1] -> scores (1, classes, 512, 512) or a tuple that begins with them."""

    @torch.no_grad()
    def parse(face: np.ndarray) -> np.ndarray:
        return _first_tensor(model(_to_model(face, model)))[0].argmax(0).cpu().numpy()

    return parse


def detector_function(
    model: Callable[..., np.ndarray], *, turned: bool | None = None, notes: list[str] | None = None
) -> Callable[[np.ndarray, float | None], np.ndarray]:
    """A detector, (h, w, 3) uint8 -> (n, 15), as a `FindFaces`.

    The score threshold is passed on only to a detector that takes `threshold` (RetinaFace); MTCNN's scores mean
    something else. turned: also look for faces that do not stand upright, by default only with a detector without a
    threshold, since RetinaFace sees those by itself; notes: gets what was done about them.
    """
    forward = getattr(model, "forward", model)
    takes_threshold = "threshold" in inspect.signature(forward).parameters

    def detect(picture: np.ndarray, threshold: float | None) -> np.ndarray:
        def once(seen: np.ndarray) -> np.ndarray:
            return model(seen, threshold=threshold) if takes_threshold else model(seen)

        if takes_threshold if turned is None else not turned:
            return once(picture)
        said: list[str] = []
        rows = detect_turned(picture, once, said)
        for note in said:
            LOGGER.info("Faces: %s.", note)
        if notes is not None:
            notes.extend(said)
        return rows

    return detect


def picture_restorer(
    restorer: nn.Module,
    detector: nn.Module,
    parser: nn.Module | None = None,
    *,
    flow: str = "webui",
    fidelity: float = 0.5,
    generator: torch.Generator | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that restores the faces in an (h, w, 3) uint8 RGB picture, for pipelines that draw pictures."""
    nets = FaceNets(
        detector_function(detector),
        restorer_function(restorer, fidelity, generator),
        None if parser is None else parser_function(parser),
    )

    def restore(picture: np.ndarray) -> np.ndarray:
        return restore_faces(picture, nets, FaceOptions(flow=flow)).image

    return restore


def _to_model(face: np.ndarray, model: nn.Module) -> Tensor:
    """(3, h, w) -> (1, 3, h, w) on the model's device, in its dtype."""
    first = next(model.parameters(), None)
    x = torch.from_numpy(np.ascontiguousarray(face))[None]
    return x if first is None else x.to(first.device, first.dtype)


def _first_tensor(output: Tensor | tuple | list) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output
