"""`upscale` and `restore`: pictures in, larger or better pictures out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.files import PICTURE_FORMATS, read_infotext, save_picture
from .common import (
    EXIT_FAILED,
    DrawCommand,
    add_options,
    choose_device,
    error_message,
    json_option,
    print_result,
    progress_total,
    report,
)
from .outputs import out_option, print_paths, quality_option, same_format_option


FLOW_CHOICES = click.Choice(["own", "webui", "facexlib", "codeformer"])
FACTOR, SHARE = click.FloatRange(0, min_open=True), click.FloatRange(0, 1)


def picture_options(folder: str) -> Callable[[Any], Any]:
    """A decorator: the options of commands that work on picture files, which go to `folder`."""
    device = click.option("--device", help="cuda, cuda:1, mps, cpu.")
    return add_options(out_option(folder), device, same_format_option, quality_option, json_option)


@click.command("upscale", cls=DrawCommand)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--upscaler", "-u", required=True, help="Label, file or Hub id; Lanczos, Nearest.")
@click.option("--scale", metavar="X", type=FACTOR, help="Times as large; the model's own otherwise.")
@click.option(
    "--tile",
    metavar="N",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Pixels of a tile; 0: no tiles.",
)
@picture_options("upscaled")
def upscale_command(pictures: Sequence[Path], upscaler: str, scale: float | None, tile: int, **values: Any) -> None:
    """Enlarge pictures in tiles, in bounded memory. PICTURES are files, or folders of them."""
    from PIL import Image, ImageOps

    from ..images.upscale import PIXEL_FILTERS
    from ..images.upscale_tiles import upscale_image

    model: Any = None
    if upscaler not in PIXEL_FILTERS:
        from ...loaders.upscaler import load_upscaler

        model = load_upscaler(upscaler).to(choose_device(values["device"]))

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

    _each_picture(pictures, values, enlarged)


@click.command("restore", cls=DrawCommand)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--restorer", "-r", default="GFPGAN", show_default=True, help="GFPGAN, CodeFormer, a file, a Hub id.")
@click.option("--fidelity", metavar="X", type=SHARE, default=0.5, help="CodeFormer: 0 strongest, 1 most faithful.")
@click.option("--visibility", metavar="X", type=SHARE, default=1.0, help="0 the picture before, 1 after.")
@click.option("--flow", type=FLOW_CHOICES, default="own", show_default=True, help="How faces are pasted.")
@click.option("--detector", default="MTCNN", show_default=True, help="MTCNN, RetinaFace, a file.")
@click.option("--upscaler", help="For --upscale: label, file or Hub id.")
@click.option("--upscale", metavar="X", type=FACTOR, default=1.0, help="Size of the result as a multiple.")
@click.option("--aligned", is_flag=True, help="The pictures are aligned faces.")
@picture_options("restored")
def restore_command(pictures: Sequence[Path], restorer: str, visibility: float, **values: Any) -> None:
    """Restore the faces in pictures. PICTURES are files, or folders of them."""
    from PIL import Image

    from ...loaders.faces.load import load_face_detector, load_face_restorer
    from ...loaders.upscaler import load_upscaler
    from ..face_restore import FaceRestorePipeline

    pipe = FaceRestorePipeline(
        face_restorer=load_face_restorer(restorer),
        face_detector=load_face_detector(values["detector"]),
        upscaler=load_upscaler(values["upscaler"]) if values["upscaler"] else None,
    ).to(choose_device(values["device"]))
    pipe.set_progress_bar_config(disable=True)

    def restored(path: Path, progress: Callable[[float], None]) -> tuple[Any, dict[str, str]]:
        with Image.open(path) as opened:
            result = pipe(
                opened,
                fidelity=values["fidelity"],
                visibility=visibility,
                flow=values["flow"],
                upscale=values["upscale"],
                has_aligned=values["aligned"],
            )
        report(f"{path.name}: {len(result.boxes[0])} faces")
        return result.images[0], {"postprocessing": f"Postprocess {restorer} visibility: {visibility}"}

    _each_picture(pictures, values, restored)


def _each_picture(given: Sequence[Path], values: Mapping[str, Any], work: Any) -> None:
    """Work on each picture; one that fails is told and does not stop the others."""
    sources = list(_picture_files(given))
    if not sources:
        raise ValueError(f"no pictures in {', '.join(map(str, given))}. Known endings: {', '.join(PICTURE_FORMATS)}.")
    written: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    with progress_total("Pictures", len(sources)) as done:
        for index, source in enumerate(sources):
            try:
                path = _target(source, values["out"], values["extension"], single=len(sources) == 1)
                if any(path == Path(other["path"]) for other in written):
                    path = path.with_name(f"{path.stem}-{index + 1}{path.suffix}")
                picture, notes = work(source, lambda share, before=index: done(before + share))
                texts = notes if path.suffix.lower() == ".png" else {}
                save_picture(picture, path, str(read_infotext(source)), quality=values["quality"], texts=texts)
                written.append({"source": str(source), "path": str(path)})
            except (ValueError, OSError) as error:
                report(f"Error: {source}: {error_message(error)}", "red")
                failed.append({"source": str(source), "error": error_message(error)})
            done(index + 1)
    print_result({"pictures": written, "failed": failed}, values["as_json"], print_paths)
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def _picture_files(given: Sequence[Path]) -> Iterator[Path]:
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
