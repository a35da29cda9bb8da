"""`upscale` and `restore`: pictures in, larger or better pictures out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..infotext.files import PICTURE_FORMATS, read_infotext, save_picture
from .common import EXIT_FAILED, choose_device, progress_total, say, tell, told
from .txt2img import show_paths


OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder, or a picture file for one picture.")]
FormatOption = Annotated[str | None, typer.Option("--format", help="png, jpg, webp, avif; as it was otherwise.")]


@told
def upscale_command(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    upscaler: Annotated[str, typer.Option("--upscaler", "-u", help="Label, file or Hub id; Lanczos, Nearest.")],
    out: OutOption = Path("upscaled"),
    scale: Annotated[float | None, typer.Option(help="Times as large; the model's own otherwise.")] = None,
    tile: Annotated[int, typer.Option(min=0, help="Pixels of a tile; 0 is the whole picture.")] = 256,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, mps, cpu.")] = None,
    extension: FormatOption = None,
    quality: Annotated[int | None, typer.Option(help="1..100, for jpg, webp, avif.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Enlarge pictures in tiles, in bounded memory."""
    from PIL import Image, ImageOps

    from ..images.upscale import PIXEL_FILTERS
    from ..images.upscale_tiles import upscale_image

    model: Any = None
    if upscaler not in PIXEL_FILTERS:
        from ...loaders.upscaler import load_upscaler

        model = load_upscaler(upscaler).to(choose_device(device))

    def enlarged(path: Path, progress: Callable[[float], None]) -> tuple[Any, dict[str, str]]:
        with Image.open(path) as opened:
            picture: Any = ImageOps.exif_transpose(opened).convert("RGB")
        factor = scale or (model.scale if model is not None else 2.0)
        target = round(picture.width * factor), round(picture.height * factor)
        if model is not None:
            picture = upscale_image(picture, model, tile=tile, progress=lambda n, total: progress(n / total))
        if picture.size != target:
            picture = picture.resize(target, PIXEL_FILTERS.get(upscaler, Image.Resampling.LANCZOS))
        return picture, {"postprocessing": f"Postprocess upscale by: {factor}, Postprocess upscaler: {upscaler}"}

    _each_picture(pictures, out, extension, quality, as_json, enlarged)


@told
def restore_command(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    restorer: Annotated[
        str, typer.Option("--restorer", "-r", help="GFPGAN, CodeFormer, a file, a Hub id.")
    ] = "GFPGAN",
    out: OutOption = Path("restored"),
    fidelity: Annotated[float, typer.Option(min=0, max=1, help="CodeFormer: 0 strongest, 1 faithful.")] = 0.5,
    visibility: Annotated[float, typer.Option(min=0, max=1, help="0 the picture before .. 1 after.")] = 1.0,
    flow: Annotated[str, typer.Option(help="own, webui, facexlib or codeformer.")] = "own",
    detector: Annotated[str, typer.Option(help="MTCNN, RetinaFace, a file.")] = "MTCNN",
    upscaler: Annotated[str | None, typer.Option(help="For --upscale: label, file or Hub id.")] = None,
    upscale: Annotated[float, typer.Option(help="Size of the result as a multiple.")] = 1.0,
    aligned: Annotated[bool, typer.Option("--aligned", help="The pictures are aligned faces.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, mps, cpu.")] = None,
    extension: FormatOption = None,
    quality: Annotated[int | None, typer.Option(help="1..100, for jpg, webp, avif.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Restore the faces in pictures."""
    from PIL import Image

    from ...loaders.faces.load import load_face_detector, load_face_restorer
    from ...loaders.upscaler import load_upscaler
    from ..face_restore import FaceRestorePipeline

    pipe = FaceRestorePipeline(
        face_restorer=load_face_restorer(restorer),
        face_detector=load_face_detector(detector),
        upscaler=load_upscaler(upscaler) if upscaler else None,
    ).to(choose_device(device))
    pipe.set_progress_bar_config(disable=True)

    def restored(path: Path, progress: Callable[[float], None]) -> tuple[Any, dict[str, str]]:
        with Image.open(path) as opened:
            result = pipe(
                opened,
                fidelity=fidelity,
                visibility=visibility,
                flow=flow,
                upscale=upscale,
                has_aligned=aligned,
            )
        say(f"{path.name}: {len(result.boxes[0])} faces")
        return result.images[0], {"postprocessing": f"Postprocess {restorer} visibility: {visibility}"}

    _each_picture(pictures, out, extension, quality, as_json, restored)


def _each_picture(
    given: list[Path], out: Path, extension: str | None, quality: int | None, as_json: bool, work: Any
) -> None:
    """Work on each picture; one that fails is told and does not stop the others."""
    sources = list(_picture_files(given))
    if not sources:
        raise ValueError(f"no pictures in {', '.join(map(str, given))}. Known endings: {', '.join(PICTURE_FORMATS)}.")
    written: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    with progress_total("Pictures", len(sources)) as done:
        for index, source in enumerate(sources):
            try:
                path = _target(source, out, extension, single=len(sources) == 1)
                if any(path == Path(other["path"]) for other in written):
                    path = path.with_name(f"{path.stem}-{index + 1}{path.suffix}")
                picture, notes = work(source, lambda share, before=index: done(before + share))
                texts = notes if path.suffix.lower() == ".png" else {}
                save_picture(picture, path, str(read_infotext(source)), quality=quality, texts=texts)
                written.append({"source": str(source), "path": str(path)})
            except (ValueError, OSError) as error:
                say(f"Error: {source}: {error}", "red")
                failed.append({"source": str(source), "error": str(error)})
            done(index + 1)
    tell({"pictures": written, "failed": failed}, as_json, show_paths)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _picture_files(given: list[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_FORMATS and p.is_file())
        else:
            yield path


def _target(source: Path, out: Path, extension: str | None, *, single: bool) -> Path:
    if single and out.suffix and not out.is_dir():
        return out
    suffix = f".{extension.lstrip('.')}" if extension else source.suffix
    path = out / f"{source.stem}{suffix if suffix.lower() in PICTURE_FORMATS else '.png'}"
    if path.resolve() == source.resolve():
        raise ValueError("it would be written over itself. Choose another folder with --out.")
    return path
