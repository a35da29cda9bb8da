"""Face restorers, detectors and parsers from wherever they are: a name, a file, a folder, the Hub.

name            file                              licence                   comes from
GFPGAN          GFPGANv1.4.pth                    Apache-2.0                downloaded once, checked by hash
CodeFormer      codeformer.pth                    S-Lab 1.0, no commerce    downloaded once; extra [codeformer]
RetinaFace      detection_Resnet50_Final.pth      MIT                       downloaded once
ParseNet        parsing_parsenet.pth              as facexlib gives it      downloaded once
MTCNN           mtcnn.safetensors                 MIT                       ships with the pack
"""

import re
from collections.abc import Callable
from pathlib import Path

from diffusers import ModelMixin
from huggingface_hub import hf_hub_download
from torch import Tensor

from ..data_files import package_file
from ..downloads import PublishedFile, fetch_published
from ..pickles import network_flaw
from ..utils import NameFromText
from ..weight_files import WeightFile, WeightFileError, open_weights
from .mtcnn import FaceDetector
from .parsenet import FaceParser
from .restorer import FACE_ARCHITECTURES, FaceRestorer, face_restorer_from_weights
from .retinaface import RetinaFaceDetector


FACE_FILES = {
    "GFPGAN": PublishedFile(
        "GFPGANv1.4.pth",
        "https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
        348632874,
        "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
    ),
    "CodeFormer": PublishedFile(
        "codeformer-v0.1.0.pth",
        "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
        376637898,
        "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
    ),
    "RetinaFace": PublishedFile(
        "detection_Resnet50_Final.pth",
        "https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth",
        109497761,
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
    ),
    "ParseNet": PublishedFile(
        "parsing_parsenet.pth",
        "https://github.com/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth",
        85331193,
        "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
    ),
}

_FACE_WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_OTHER_FACE_NAMES = {"CodeFormer": ("codeformer.pth", "codeformer.safetensors"), "GFPGAN": ("GFPGANv1.3.pth",)}


def load_face_restorer(source: str | Path, *, folder: str | Path | None = None) -> FaceRestorer:
    """A face restorer: GFPGAN (1.2 to 1.4), RestoreFormer or, with the extra [codeformer], CodeFormer.

    source: "GFPGAN" or "CodeFormer" (looked for in `folder`, else downloaded once); a weight file; a folder that
    `save_pretrained` wrote; a Hub repository of that kind, or "org/repo/file.pth". Which net it is, is told by its
    keys. Raises WeightFileError for a file that is none, ImportError where CodeFormer's extra is missing.
    """
    return _load_face_part(source, folder, ("GFPGAN", "CodeFormer"), (FaceRestorer,), _restorer_from_file)


def load_face_detector(source: str | Path = "MTCNN", *, folder: str | Path | None = None) -> ModelMixin:
    """A face detector: "MTCNN" (ships here), "RetinaFace" (what the webui uses), or as `load_face_restorer`."""
    if str(source) == "MTCNN":
        return _detector_from_file(package_file("weights/mtcnn.safetensors"))
    return _load_face_part(source, folder, ("RetinaFace",), (FaceDetector, RetinaFaceDetector), _detector_from_file)


def load_face_parser(source: str | Path = "ParseNet", *, folder: str | Path | None = None) -> FaceParser:
    """A parser of face parts: "ParseNet" (what the webui uses), or as `load_face_restorer`."""
    return _load_face_part(source, folder, ("ParseNet",), (FaceParser,), _parser_from_file)


def fetch_face_file(name: str, folder: str | Path | None = None) -> Path:
    """The file of a name in `FACE_FILES`: in `folder` (under any of its usual names), in the cache, or downloaded.

    Raises WeightFileError, saying which file to put where, offline and when the download fails.
    """
    if folder is not None:
        for other in (FACE_FILES[name].name, *_OTHER_FACE_NAMES.get(name, ())):
            if (Path(folder) / other).is_file():
                return Path(folder) / other
    return fetch_published(FACE_FILES[name], name, folders=() if folder is None else (folder,))


def _load_face_part(
    source: str | Path,
    folder: str | Path | None,
    names: tuple[str, ...],
    kinds: tuple[type[ModelMixin], ...],
    from_file: Callable[[Path], ModelMixin],
) -> ModelMixin:
    if isinstance(source, NameFromText) and source not in names:
        raise WeightFileError(
            f"{str(source)!r} is a face restorer that a picture's text names. It is none of those known here "
            f"({', '.join(names)}), and names out of texts are not opened or downloaded. Give one of these instead."
        )
    text, path = str(source), Path(source).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return _saved_face_part(text, kinds)
        return from_file(_face_file_in(path, names))
    if path.is_file():
        return from_file(path)
    if text in names:
        return from_file(fetch_face_file(text, folder))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.endswith(_FACE_WEIGHT_SUFFIXES):
        return _saved_face_part(text, kinds)
    inside = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+)", text)
    if inside and not path.is_absolute() and not text.startswith("."):
        return from_file(Path(hf_hub_download(inside[1], inside[2])))
    raise WeightFileError(
        f"`{text}` is no file or folder here, no Hub id, and no known name; those are {', '.join(names)}. "
        "Check the spelling and the folder."
    )


def _saved_face_part(source: str, kinds: tuple[type[ModelMixin], ...]) -> ModelMixin:
    """What `save_pretrained` wrote, in a folder or on the Hub, if it is one of these kinds."""
    name = kinds[0].load_config(source).get("_class_name")
    for kind in kinds:
        if kind.__name__ == name:
            return kind.from_pretrained(source)
    raise WeightFileError(
        f"`{source}` holds a {name}, and {' or '.join(kind.__name__ for kind in kinds)} was expected. "
        "Load it with the function for its kind."
    )


def _face_file_in(folder: Path, names: tuple[str, ...]) -> Path:
    """The published file in a folder of the user's, else its only weight file."""
    for name in names:
        for known in (FACE_FILES[name].name, *_OTHER_FACE_NAMES.get(name, ())):
            if (folder / known).is_file():
                return folder / known
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _FACE_WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise WeightFileError(
            f"`{folder}` holds {len(files)} weight files ({', '.join(p.name for p in files[:5]) or 'none'}), and it "
            "is not clear which one is meant. Give the file's own path."
        )
    return files[0]


def _restorer_from_file(path: Path) -> FaceRestorer:
    with open_weights(path) as file:
        keys = set(file.keys())
        fits = [name for name, kind in FACE_ARCHITECTURES.items() if keys.issuperset(kind.marks)]
        if not fits:
            raise WeightFileError(
                f"`{path}` is no face restorer known here ({_guess_face_file(file)}). "
                f"Use a file of {', '.join(FACE_ARCHITECTURES)}."
            )
        weights = {key: file.tensor(key) for key in file.keys()}
    flaw = network_flaw(weights)
    if flaw:
        raise WeightFileError(f"`{path}` is no face restorer: {flaw}. It is damaged; get another copy.")
    return _fitted(path, fits[-1], lambda: face_restorer_from_weights(fits[-1], weights))


def _detector_from_file(path: Path) -> ModelMixin:
    with open_weights(path) as file:
        weights = {key.removeprefix("module."): file.tensor(key) for key in file.keys()}
        guess = _guess_face_file(file)
    if "pnet.conv1.weight" in weights:
        return _fitted(path, "MTCNN", lambda: _with_weights(FaceDetector(), weights))
    if "BboxHead.0.conv1x1.weight" in weights and "body.layer1.0.conv1.weight" in weights:
        return _fitted(path, "RetinaFace", lambda: _with_weights(RetinaFaceDetector(), weights))
    raise WeightFileError(f"`{path}` is no face detector known here ({guess}). Use RetinaFace (ResNet-50) or MTCNN.")


def _parser_from_file(path: Path) -> FaceParser:
    with open_weights(path) as file:
        weights = {key.removeprefix("module."): file.tensor(key) for key in file.keys()}
        guess = _guess_face_file(file)
    if "out_mask_conv.conv2d.weight" not in weights:
        raise WeightFileError(f"`{path}` is no face parser known here ({guess}). Use ParseNet.")
    return _fitted(path, "ParseNet", lambda: _with_weights(FaceParser(), weights))


def _with_weights(model: ModelMixin, weights: dict[str, Tensor]) -> ModelMixin:
    model.load_state_dict(weights)
    return model.float().eval()


def _fitted(path: Path, name: str, build: Callable[[], ModelMixin]) -> ModelMixin:
    """Build, or say that the file is a variant of `name` that does not fit."""
    try:
        return build()
    except ImportError:
        raise  # the extra that it needs is named
    except Exception as error:  # architectures meet arbitrary tensors, and fail on them in as many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightFileError(
            f"`{path}` looks like {name}, but its tensors do not fit that net ({lines[-1].strip()[:160]}; "
            f"{max(len(lines) - 1, 1)} such). It is an unsupported version of it, or an incomplete file."
        ) from error


def _guess_face_file(file: WeightFile) -> str:
    """What a weight file probably is, by its keys."""
    for start, meaning in _FACE_GUESSES.items():
        if any(key.startswith(start) for key in file.keys()):
            return f"its keys are those of {meaning}"
    return f"its keys begin with `{', '.join(file.keys()[:2])}`"


_FACE_GUESSES = {
    "model.diffusion_model.": "a Stable Diffusion checkpoint",
    "lora_": "a LoRA",
    "stylegan_decoder.": "GFPGAN",
    "encoder.blocks.": "CodeFormer",
    "quantize.": "RestoreFormer",
    "pnet.": "MTCNN",
    "BboxHead.": "RetinaFace",
    "module.BboxHead.": "RetinaFace",
    "out_mask_conv.": "ParseNet",
    "cp.resnet.": "BiSeNet",
    "conv_first.": "an upscaler, for load_upscaler",
    "body.0.weight": "an upscaler, for load_upscaler",
}
