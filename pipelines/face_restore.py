"""FaceRestorePipeline: pictures with faces in, the same pictures with better faces out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Generator, Tensor
from webui_diffusers.loaders.faces.load import load_face_detector, load_face_parser, load_face_restorer
from webui_diffusers.loaders.model_lock import changed_by_running, models_in_use
from webui_diffusers.loaders.upscaler import load_upscaler
from webui_diffusers.pipelines.bundle.saving import SavedWithCode
from webui_diffusers.pipelines.components import overridable_components
from webui_diffusers.pipelines.images.coerce import (
    GivenPicture,
    batch_of_pictures,
    finished_picture,
    given_pictures,
    unchanged_picture,
)
from webui_diffusers.pipelines.images.faces.flows import FaceNets, FaceOptions, check_face_options
from webui_diffusers.pipelines.images.faces.nets import (
    detector_function,
    parser_function,
    restorer_function,
)
from webui_diffusers.pipelines.images.faces.restore import FaceResult, restore_faces
from webui_diffusers.pipelines.images.opencv import resize_picture
from webui_diffusers.pipelines.images.upscale_tiles import upscale_image


@dataclass
class FaceRestorePipelineOutput(BaseOutput):
    """Pictures, and per picture what was found in them. With `return_dict=False` a call gives (images,).

    Coordinates are pixels of the picture as it was given (EXIF orientation applied); faces come in the order in which
    they were restored, and only those that were.
    """

    images: list[Image.Image] | np.ndarray | Tensor | list
    boxes: list[np.ndarray]  # (n, 4) x1, y1, x2, y2
    scores: list[np.ndarray]  # (n,) the detector's
    landmarks: list[np.ndarray]  # (n, 5, 2): eyes, nose, mouth corners, each pair from the picture's left
    crops: list[list[Image.Image]]  # aligned, before the net
    restored_crops: list[list[Image.Image]]  # after it
    masks: list[list[str]]  # "square" or "parse": what each face was blended with
    errors: list[list[str | None]]  # why the net failed on a face, which then stayed as it was
    notes: list[list[str]]  # what was done to find faces that do not stand upright


class FaceRestorePipeline(SavedWithCode, DiffusionPipeline):
    """Find faces, align each to 512x512, restore it, and put it back.

    face_restorer: from `load_face_restorer` (GFPGAN, CodeFormer, RestoreFormer), or any module that takes and gives
    (1, 3, 512, 512) RGB in [-1, 1]. face_detector: from `load_face_detector`; without one MTCNN, which ships here.
    face_parser: from `load_face_parser`, for masks along hair and skin in place of a soft square. upscaler: from
    `load_upscaler`, for `upscale` and `face_upsample`. Each may also be what those functions are given: a known name,
    a file, a folder, a Hub id.

    >>> pipe = FaceRestorePipeline(face_restorer="GFPGAN")
    >>> pipe(load_image("old-photo.png"), upscale=2).images[0]
    """

    model_cpu_offload_seq = "upscaler->face_detector->face_restorer->face_parser"
    _optional_components = ["face_detector", "face_parser", "upscaler"]

    @overridable_components(_optional_components)
    def __init__(
        self,
        face_restorer: ModelMixin | str,
        face_detector: ModelMixin | str = None,
        face_parser: ModelMixin | str = None,
        upscaler: ModelMixin | str = None,
    ):
        super().__init__()
        self.register_modules(
            face_restorer=_named_part(face_restorer, load_face_restorer),
            face_detector=_named_part("MTCNN" if face_detector is None else face_detector, load_face_detector),
            face_parser=_named_part(face_parser, load_face_parser),
            upscaler=_named_part(upscaler, load_upscaler),
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor | list,
        *,
        detections: Sequence[Any] | None = None,
        fidelity: float = 0.5,
        visibility: float = 1.0,
        flow: str = "own",
        use_parse: bool | None = None,
        upscale: float = 1,
        face_upsample: bool = False,
        background_upsample: bool = True,
        only_center_face: bool = False,
        only_largest: bool = False,
        has_aligned: bool = False,
        eye_dist_threshold: float | None = None,
        detection_size: int | None = None,
        turned: bool | None = None,
        draw_box: bool = False,
        generator: Generator | list[Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> FaceRestorePipelineOutput | tuple:
        """Restore the faces in one picture or many.

        Args:
            image: PIL picture, array (h, w, c) or (b, h, w, c), tensor (c, h, w) or (b, c, h, w), or a list of these.
            detections: in place of the detector: for each picture rows of 15 numbers (box, score, five points).
            fidelity: CodeFormer's w: 0 strongest restoration, 1 most faithful. Other restorers have none.
            visibility: 0 the picture before .. 1 after.
            flow: "webui", "facexlib" or "codeformer", each with its quirks, for equal pictures; "own": none of them,
                and the net's change is pasted in place of the face, so what it leaves alone stays exact.
            use_parse: blend along hair and skin by the face parser. None: as the flow does, if there is a parser
                ("webui" and "codeformer" do); without one the soft square is used and a warning says so.
            upscale: size of the output as a multiple; with an `upscaler` it enlarges the picture, else a filter.
            face_upsample: enlarge restored faces with the upscaler too (flows "codeformer" and "own").
            background_upsample: False: the upscaler is for the faces only.
            only_center_face, only_largest: restore one face. Largest wins over centre.
            has_aligned: the pictures are aligned faces: no detection, no pasting, 512x512 out.
            eye_dist_threshold: leave faces alone whose eyes are closer, in pixels. None: as the flow does (5).
            detection_size: short side of the picture that the detector sees. None: as the flow does.
            turned: look for faces that do not stand upright. None: with detectors that need it (MTCNN).
            draw_box: a green frame around each face.
            generator: for GFPGAN's noise, one or one a picture. None: the noise that its file holds.
            output_type: "pil", "np" ((b, h, w, c) in [0, 1]) or "pt" ((b, c, h, w)).

        A picture without faces is returned as it was given, value for value, unless it is enlarged.
        """
        # 1. Refuse what cannot be done, before any work
        options = FaceOptions(
            flow=flow,
            use_parse=use_parse,
            upscale=upscale,
            visibility=visibility,
            background_upsample=background_upsample,
            face_upsample=face_upsample,
            only_center=only_center_face,
            only_largest=only_largest,
            has_aligned=has_aligned,
            eye_distance=eye_dist_threshold,
            resize=detection_size,
            draw_box=draw_box,
        )
        check_face_options(options, self.upscaler is not None)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt'; got {output_type!r}.")
        if not 0 <= fidelity <= 1:
            raise ValueError(f"`fidelity` must lie between 0 and 1; got {fidelity!r}.")

        # 2. Pictures and, if given, where their faces are
        pictures = given_pictures(image)
        rows = given_detections(detections, len(pictures))
        generators = generator if isinstance(generator, list) else [generator] * len(pictures)
        if len(generators) != len(pictures):
            raise ValueError(f"`generator` has {len(generators)} entries for {len(pictures)} pictures.")

        # 3. Each picture by itself: detect, choose, align, restore, paste
        results, notes = [], []
        models = [model for model in self.components.values() if hasattr(model, "parameters")]
        with models_in_use(models, alone=any(map(changed_by_running, models))):
            for picture, found, noise in zip(pictures, rows, generators):
                said: list[str] = []
                nets = FaceNets(
                    detect=detector_function(self.face_detector, turned=turned, notes=said)
                    if found is None
                    else found,
                    restore=restorer_function(self.face_restorer, fidelity, noise),
                    parse=None if self.face_parser is None else parser_function(self.face_parser),
                    enlarge=None if self.upscaler is None else self._enlarge,
                )
                results.append(restore_faces(picture.rgb, nets, options, progress=self._one_bar()))
                notes.append(said)
            self.maybe_free_model_hooks()

        # 4. In the form that was asked for
        finished = [_finish(picture, result, output_type) for picture, result in zip(pictures, results)]
        images = batch_of_pictures(finished, output_type)
        return _describe(images, results, notes) if return_dict else (images,)

    def _enlarge(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 through the upscaler, by tiles."""
        return upscale_image(picture, self.upscaler, progress=self._one_bar())

    def _one_bar(self) -> Callable[[int, int], None]:
        """A callback (done, in all) that shows one progress bar."""
        bars: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(self.progress_bar(total=total))
            bars[0].update(done - bars[0].n)
            if done == total:
                bars[0].close()

        return progress


def given_detections(detections: Sequence[Any] | None, count: int) -> list[np.ndarray | None]:
    """`detections` as one (n, 15) float32 array, or None for "look yourself", per picture. For one picture its rows
    may also come without the outer list. Raises ValueError for anything else."""
    if detections is None:
        return [None] * count
    if count == 1 and (len(detections) == 0 or np.shape(detections[0]) == (15,)):
        detections = [detections]
    if len(detections) != count:
        raise ValueError(f"`detections` has {len(detections)} entries for {count} pictures: give one list a picture.")
    result = []
    for rows in detections:
        rows = None if rows is None else np.asarray(rows, np.float32)
        if rows is not None:
            rows = rows.reshape(0, 15) if rows.size == 0 else rows
            if rows.ndim != 2 or rows.shape[1] != 15 or not np.isfinite(rows).all():
                raise ValueError(
                    f"a detection is 15 finite numbers: x1, y1, x2, y2, score and five points x, y; got {rows.shape}."
                )
        result.append(rows)
    return result


def _finish(picture: GivenPicture, result: FaceResult, output_type: str) -> Image.Image | np.ndarray:
    """A result in the caller's form; the caller's own picture where nothing was changed."""
    if not result.faces and result.image.shape == picture.rgb.shape and np.array_equal(result.image, picture.rgb):
        return unchanged_picture(picture, output_type)
    alpha = picture.alpha
    if alpha is not None:
        alpha = resize_picture(alpha, (result.image.shape[1], result.image.shape[0]), "linear")
    return finished_picture(result.image, alpha, output_type)


def _describe(images: Any, results: list[FaceResult], notes: list[list[str]]) -> FaceRestorePipelineOutput:
    rows = [np.stack([face.row for face in r.faces]) if r.faces else np.zeros((0, 15), np.float32) for r in results]
    return FaceRestorePipelineOutput(
        images=images,
        boxes=[row[:, :4] / r.factor for row, r in zip(rows, results)],
        scores=[row[:, 4] for row in rows],
        landmarks=[(row[:, 5:] / r.factor).reshape(-1, 5, 2) for row, r in zip(rows, results)],
        crops=[[Image.fromarray(face.crop) for face in r.faces] for r in results],
        restored_crops=[[_crop_picture(face.restored) for face in r.faces] for r in results],
        masks=[[face.mask_kind for face in r.faces] for r in results],
        errors=[[face.error for face in r.faces] for r in results],
        notes=notes,
    )


def _named_part(part: ModelMixin | str | None, load: Callable[[str], ModelMixin]) -> ModelMixin | None:
    """A component, loaded if it is given by name: who takes the pipeline from the Hub has no `load_...` to call."""
    return load(part) if isinstance(part, str) else part


def _crop_picture(crop: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(crop, 0, 255)).astype(np.uint8))
