"""The models and files that a server may use, and the model in hand. Files are found by name, never by path."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...loaders.checkpoint.describe import describe_checkpoint
from ...loaders.checkpoint.load import read_refiner
from ...loaders.checkpoint.vae import load_vae
from ...loaders.faces.load import load_face_restorer
from ...loaders.model_lock import model_gate
from ...loaders.upscaler import UPSCALER_LABELS, load_upscaler
from ...loaders.utils import NameFromRequest, unknown_choice
from ..face_restore import FaceRestorePipeline
from ..from_text import load_from_library
from ..images.hires import LATENT_UPSCALERS
from ..images.upscale import PIXEL_FILTERS, enlarge_picture
from ..img2img import WebUIImg2ImgPipeline
from ..infotext.files import save_pictures
from ..infotext.styles import PromptStyle
from ..registry import model_facts
from ..txt2img import WebUITxt2ImgPipeline
from .calls import Generation
from .pictures import encode_picture
from .requests import MAX_PIXELS, ExtrasBatchRequest, ExtrasRequest
from .settings import FACE_RESTORERS, BadRequestField, usual_settings
from .worker import Progress


PREVIEW_SIDE = 32  # latent cells: enough to see what is being drawn, cheap to decode
NO_FACES = ("None", "")
OWN_VAE = ("Automatic", "None", "")  # values of `sd_vae` that mean the checkpoint's own


class ModelShelf:
    """What the server has. All that loads or draws is called by the worker alone."""

    def __init__(self, source: Any, styles: Mapping[str, PromptStyle], output_folder: str | None):
        self.styles, self.output_folder = dict(styles), output_folder
        self.library = None if hasattr(source, "components") else source
        self._pipe = None if self.library is not None else source
        self.settings: dict[str, Any] = usual_settings()
        first = self.checkpoints()
        self.settings["sd_model_checkpoint"] = first[0]["title"] if first else ""
        self._loaded = self.settings["sd_model_checkpoint"] if self._pipe is not None else None
        self._vae = self._own_vae = self._refiner = None

    @property
    def version(self) -> str:
        """The pack's."""
        try:
            return version("webui-diffusers")
        except PackageNotFoundError:
            return "unknown"

    # --- the model

    def pipeline(self) -> Any:
        """The txt2img pipeline in hand; the one that the settings name is loaded first."""
        if self._pipe is None:
            self.load(self.settings["sd_model_checkpoint"])
        return self._pipe

    @property
    def in_hand(self) -> Any:
        """The txt2img pipeline that is loaded; None where none is."""
        return self._pipe

    def load(self, title: str) -> None:
        """Make a checkpoint the model in hand, by the webui's title, its name or hash; the one before is let go.

        Raises BadRequestField for one that is not there; then all stays as it was.
        """
        if title == self._loaded and self._pipe is not None:
            return
        rows = self.checkpoints()
        wanted = next((row["title"] for row in rows if title in _names_of(row)), None)
        if wanted is None:
            titles = [row["title"] for row in rows]
            raise BadRequestField("sd_model_checkpoint", unknown_choice("checkpoint", title, titles))
        if self.library is not None and (self._pipe is None or wanted != self._loaded):
            self._pipe = load_from_library(WebUITxt2ImgPipeline, self.library, wanted, like=self._pipe)
            self._pipe.set_progress_bar_config(disable=True)
            _know_files(self._pipe, self.library)
            self._vae = self._refiner = None
        self.settings["sd_model_checkpoint"] = self._loaded = wanted

    def unload(self) -> None:
        """Let the model go. One that was given, and not found in a library, only leaves the accelerator."""
        if self._pipe is None:
            return
        with model_gate().part_lock(self._pipe.vae):  # until a preview is done
            self._pipe.to("cpu")
        if self.library is not None:
            self._pipe = self._loaded = None

    @contextmanager
    def drawing(self, generation: Generation) -> Iterator[Any]:
        """The pipeline for one request, with the models that it names; afterwards the server's own."""
        own = self.settings["sd_model_checkpoint"]
        try:
            self.load(generation.settings["sd_model_checkpoint"] or own)
            pipe = self.pipeline()
            pipe.set_progress_bar_config(disable=True)
            self._use_vae(pipe, str(generation.settings["sd_vae"]))
            self._attach_named(pipe, generation)
            if generation.kind == "txt2img":
                yield pipe
            else:
                over = WebUIImg2ImgPipeline.from_pipe(pipe, **_own_parts(pipe))
                over.set_progress_bar_config(disable=True)
                yield over
        finally:
            if generation.restore_afterwards and self._loaded != own:
                self.load(own)
        if not generation.restore_afterwards:
            kept = {name: value for name, value in generation.overrides.items() if name != "sd_model_checkpoint"}
            self.settings.update(kept)

    def _use_vae(self, pipe: Any, name: str) -> None:
        """The VAE that `sd_vae` names; "Automatic" and "None" are the checkpoint's own."""
        wanted = None if name in OWN_VAE else name
        if wanted == self._vae:
            return
        if self._own_vae is None or self._vae is None:
            self._own_vae = pipe.vae
        path = None if wanted is None else self._named("vae", wanted)
        if wanted is not None and path is None:
            raise BadRequestField("sd_vae", unknown_choice("VAE", wanted, self.names("vae")))
        pipe.register_modules(vae=self._own_vae if path is None else load_vae(path, like=self._own_vae))
        self._vae = wanted

    def _attach_named(self, pipe: Any, generation: Generation) -> None:
        """Load what the request names besides the model: only names that are listed, never paths."""
        call = generation.arguments
        self._attach_upscaler(pipe, "hr_upscaler", call.get("hires_upscaler"), LATENT_UPSCALERS)
        self._attach_upscaler(pipe, "script_args[2]", (call.get("sd_upscale") or {}).get("upscaler"))
        faces = call.get("restore_faces")
        if faces is not None and pipe.face_restorer is None and faces not in pipe.attached.face_models:
            path = self._named("face_restorer", faces)
            if path is None:
                raise BadRequestField("restore_faces", f"no file of {faces} is in the server's folders")
            pipe.attached.face_models[faces] = load_face_restorer(path)
        if generation.refiner is not None:
            self._use_refiner(pipe, generation.refiner)
        if generation.hires_model is not None:
            path = self._named("checkpoint", generation.hires_model)
            if path is not None:
                pipe.add_checkpoint(path, generation.hires_model)
            call["hires_model"] = NameFromRequest(generation.hires_model)

    def _attach_upscaler(self, pipe: Any, where: str, label: str | None, latent: Iterable[str] = ()) -> None:
        """Make an upscaler's label known to the pipeline. latent: labels that need no model."""
        if label is None or label in latent:
            return
        if label not in self.upscalers():
            raise BadRequestField(where, unknown_choice("upscaler", label, [*latent, *self.upscalers()]))
        path = self._named("upscaler", label)
        if path is not None and label not in pipe.attached.upscalers:
            pipe.attached.upscalers[label] = load_upscaler(path).to(pipe.device)

    def _use_refiner(self, pipe: Any, name: str) -> None:
        path = self._named("checkpoint", name)
        if path is None:
            known = [row["title"] for row in self.checkpoints()]
            raise BadRequestField("refiner_checkpoint", unknown_choice("checkpoint", name, known))
        if self._refiner != path:
            own = self._named("checkpoint", str(self._loaded))
            base = None if own is None else describe_checkpoint(own).base
            refiner = read_refiner(path, like=base, dtype=pipe.unet.dtype)
            refiner.register_to_config(_name_or_path=path)
            pipe.register_modules(refiner=refiner.to(pipe.device))
            self._refiner = path

    def model_facts(self, pipe: Any) -> dict[str, Any]:
        """Name and hash of the model that drew."""
        return dict(model_facts(pipe))

    def preview(self, progress: Progress) -> str | None:
        """base64 of what the latents of the last step look like, small; None where there is nothing to see."""
        latents, pipe = progress.latents, self._pipe
        if latents is None or pipe is None:
            return None
        vae = pipe.vae
        in_use = model_gate().part_lock(vae)
        if not in_use.acquire(blocking=False):  # what is drawn goes first
            return None
        try:
            small = latents[:1].detach()
            side = max(small.shape[-2:])
            if side > PREVIEW_SIDE:
                small = torch.nn.functional.interpolate(small, scale_factor=PREVIEW_SIDE / side, mode="area")
            with torch.no_grad():
                pixels = vae.decode(small.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
            levels = ((pixels[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            return encode_picture(Image.fromarray(levels), None, "jpg")
        finally:
            in_use.release()

    # --- pictures

    def enlarged(self, picture: Image.Image, asked: ExtrasRequest | ExtrasBatchRequest) -> Image.Image:
        """A picture enlarged by the request's upscalers."""
        width, height = picture.size
        if asked.resize_mode == 0:
            size = (int(width * asked.upscaling_resize), int(height * asked.upscaling_resize))
        else:
            size = (asked.upscaling_resize_w, asked.upscaling_resize_h)
        if size[0] * size[1] > MAX_PIXELS or min(size) < 1:
            raise BadRequestField("upscaling_resize", f"makes {size[0]}x{size[1]}; at most {MAX_PIXELS} pixels here")
        if asked.upscaler_1 in NO_FACES:
            return picture
        first = self._through(picture, asked.upscaler_1, size, "upscaler_1", asked)
        if asked.upscaler_2 in NO_FACES or not asked.extras_upscaler_2_visibility:
            return first
        second = self._through(picture, asked.upscaler_2, size, "upscaler_2", asked)
        return Image.blend(first, second, asked.extras_upscaler_2_visibility)

    def with_faces(self, picture: Image.Image, asked: ExtrasRequest | ExtrasBatchRequest) -> Image.Image:
        """A picture with its faces restored, as far as the request asks."""
        for name, visibility, fidelity in (
            ("GFPGAN", asked.gfpgan_visibility, 0.5),
            ("CodeFormer", asked.codeformer_visibility, asked.codeformer_weight),
        ):
            if visibility:
                restorer = load_face_restorer(self._named("face_restorer", name) or name)
                pipe = FaceRestorePipeline(face_restorer=restorer)
                picture = pipe(picture, fidelity=fidelity, visibility=visibility).images[0]
        return picture

    def save(self, images: list[Image.Image], texts: list[str], kind: str) -> None:
        """Write pictures into the server's folder. Raises BadRequestField where it has none."""
        if self.output_folder is None:
            raise BadRequestField("save_images", "the server was started without a folder for pictures")
        save_pictures(images, texts, self.output_folder, extension=kind)

    def _through(self, picture: Image.Image, name: str, size: tuple[int, int], where: str, asked: Any) -> Image.Image:
        if name not in self.upscalers():
            raise BadRequestField(where, unknown_choice("upscaler", name, self.upscalers()))
        found: Any = name
        if name not in PIXEL_FILTERS:
            found = load_upscaler(self._named("upscaler", name) or name)
        larger = enlarge_picture(picture, *(_covering(picture.size, size) if asked.upscaling_crop else size), found)
        if larger.size == size:
            return larger
        left, top = (larger.width - size[0]) // 2, (larger.height - size[1]) // 2
        return larger.crop((left, top, left + size[0], top + size[1]))

    # --- what there is

    def checkpoints(self) -> list[dict[str, Any]]:
        """The webui's rows of sd-models."""
        if self.library is not None:
            return [_checkpoint_row(entry) for entry in self.library.files("checkpoint")]
        facts = model_facts(self._pipe, hashed=False)
        name = facts.get("model_name") or "model"
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    def checkpoint_of(self, fields: Mapping[str, str]) -> str | None:
        """The title of the checkpoint that a text's fields name, by hash before name; None where it is not here."""
        rows = self.checkpoints()
        for asked in (fields.get("Model hash"), fields.get("Model")):
            for row in rows if asked else ():
                if asked in _names_of(row):
                    return row["title"]
        return None

    def names(self, kind: str) -> list[str]:
        """Names of the library's files of a kind: "vae", "controlnet", "hypernetwork", "upscaler", …"""
        return [] if self.library is None else [entry.name for entry in self.library.files(kind)]

    def loras(self) -> list[dict[str, Any]]:
        """The networks that prompts may name."""
        pipe = self._pipe  # the worker may let it go meanwhile
        known = self.names("lora") if pipe is None else [entry.name for entry in pipe.networks.entries]
        return [{"name": name, "alias": name, "path": None, "metadata": {}} for name in known]

    def embeddings(self) -> dict[str, Any]:
        """The textual inversions that prompts may name."""
        pipe = self._pipe
        names = sorted({*([] if pipe is None else pipe.attached.embeddings), *self.names("embedding")})
        fact = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": None, "vectors": None}
        return {"loaded": {name: dict(fact) for name in names}, "skipped": {}}

    def upscalers(self) -> list[str]:
        """Labels that enlarge: the two filters, the Real-ESRGAN models, the library's files."""
        pipe = self._pipe
        own = [] if pipe is None else pipe.attached.upscalers
        return list(dict.fromkeys(["None", *PIXEL_FILTERS, *UPSCALER_LABELS, *self.names("upscaler"), *own]))

    def latent_upscalers(self) -> list[str]:
        """Labels for hires fix that work on latents."""
        return list(LATENT_UPSCALERS)

    def face_restorers(self) -> list[str]:
        """Names for `face_restoration_model`."""
        return list(FACE_RESTORERS)

    def controlnets(self) -> list[str]:
        """Names for the units' `model`."""
        pipe = self._pipe
        own = [] if pipe is None else pipe.attached.controlnets
        return sorted({*self.names("controlnet"), *own})

    def refresh(self) -> None:
        """Look at the folders again."""
        if self.library is not None:
            self.library.refresh()

    def shown_settings(self) -> dict[str, Any]:
        """All settings with their values."""
        title = self.settings["sd_model_checkpoint"]
        row = next((row for row in self.checkpoints() if row["title"] == title), None)
        return {**self.settings, "sd_checkpoint_hash": (row and row["sha256"]) or ""}

    def memory(self) -> dict[str, Any]:
        """Free, used and total memory in bytes, of the machine and of the accelerator."""
        facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in _memory_lines()}
        total, free = facts.get("MemTotal", 0), facts.get("MemAvailable", 0)
        return {"ram": {"free": free, "used": total - free, "total": total}, "cuda": _cuda_memory()}

    def _named(self, kind: str, name: str) -> str | None:
        entry = None if self.library is None else self.library.find(kind, name)
        return None if entry is None else str(entry.path)


def _know_files(pipe: Any, library: Any) -> None:
    """Make the library's networks and embeddings known to prompts."""
    first, *others = library.folders("lora") or [None]
    if first is not None:
        pipe.lora_folder = first
    for file in library.files("lora"):
        if any(other in file.path.parents for other in others) and pipe.networks.find(file.name) is None:
            pipe.add_lora(file.path, file.name)
    for kind, attribute in (("controlnet", "controlnet_folder"), ("detector", "detector_folder")):
        if library.folders(kind):
            setattr(pipe, attribute, library.folders(kind)[0])
    for file in library.files("vae"):
        pipe.add_vae(file.path, file.name)
    for file in library.files("checkpoint"):
        pipe.add_checkpoint(file.path, file.name)
    folders = library.folders("embedding")
    if folders:
        pipe.attached.embeddings_folder = folders[0]
    for file in library.files("embedding"):
        if any(other in file.path.parents for other in folders[1:]):
            pipe.add_embedding(file.path, file.name)


def _names_of(row: Mapping[str, Any]) -> set[str]:
    """By what a checkpoint may be asked for."""
    return {str(row[key]) for key in ("title", "model_name", "hash", "sha256") if row[key]}


def _checkpoint_row(entry: Any) -> dict[str, Any]:
    return {
        "title": entry.title,
        "model_name": entry.name,
        "hash": entry.short_hash or None,
        "sha256": entry.sha256,
        "filename": entry.place,
        "config": None,
    }


def _covering(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the picture's shape that covers the box."""
    scale = max(box[0] / size[0], box[1] / size[1])
    return max(round(size[0] * scale), box[0]), max(round(size[1] * scale), box[1])


def _own_parts(pipe: Any) -> dict[str, Any]:
    """Components of the pack's own classes, which `from_pipe` does not hand over by itself."""
    return {name: getattr(pipe, name) for name in ("upscaler", "face_restorer", "face_detector", "face_parser")}


def _memory_lines() -> list[str]:
    file = Path("/proc/meminfo")
    return file.read_text(encoding="ascii").splitlines() if file.is_file() else []


def _cuda_memory() -> dict[str, Any]:
    """The webui's `cuda` of its answer to memory."""
    if not torch.cuda.is_available():
        return {"error": "no CUDA device"}
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    facts: dict[str, Any] = {"system": {"free": free, "used": total - free, "total": total}}
    for name in ("active", "allocated", "reserved", "inactive"):
        kind = "inactive_split" if name == "inactive" else name
        facts[name] = {what: stats.get(f"{kind}_bytes.all.{what}", 0) for what in ("current", "peak")}
    events = {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)}
    return {**facts, "events": events}
