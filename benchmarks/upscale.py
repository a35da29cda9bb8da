"""Upscaling by tiles: ours against `realesrgan.RealESRGANer`, memory by size of the picture, quality against bicubic.

    python benchmarks/upscale.py                       the table, on this machine's CPU
    python benchmarks/upscale.py --side 512 --megapixels 0.25 1 4

Same weights (realesr-animevideov3, which ships), same tile, same threads, each measurement in a process of its own and
alternating; the least of the repeats counts. Memory is the peak of the resident set above what it was with model and
picture loaded, less the result.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace


PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "faces" / "in" / "astro_320.png"
LABEL = "R-ESRGAN AnimeVideo"


Enlarge = Callable[[np.ndarray], np.ndarray]  # (h, w, 3) uint8 RGB -> the same, larger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1024, help="side of the square picture, pixels")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--megapixels", type=float, nargs="*", default=[0.25, 1, 4, 16])
    parser.add_argument("--upscaler", default=LABEL, help="label or file, for the memory table only")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--worker", choices=["ours", "realesrgan"], help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    if arguments.worker:
        print(json.dumps(measured(arguments.worker, arguments.side, arguments.tile, arguments.upscaler)))
        return
    for line in speed_rows(arguments) + memory_rows(arguments) + quality_rows(arguments.photo):
        print(line, flush=True)


def speed_rows(arguments: argparse.Namespace) -> list[str]:
    """Time and peak memory of both, and their ratios."""
    names = ["ours", "realesrgan"] if find_spec("realesrgan") else ["ours"]
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.repeats):
        for name in names:
            found = in_own_process(name, arguments.side, LABEL, arguments)
            kept = best.setdefault(name, found)
            best[name] = {key: min(kept[key], found[key]) for key in found}
    title = f"{arguments.side}x{arguments.side} x4, tile {arguments.tile}, {arguments.threads} thread(s)"
    rows = [f"\n| {title} | wall, s | CPU, s | peak memory, MB |", "|---|---|---|---|"]
    for name in names:
        found = best[name]
        rows.append(f"| {name} | {found['wall']:.1f} | {found['cpu']:.1f} | {found['peak']:.0f} |")
    if len(names) == 2:
        ratios = [best["ours"][key] / best["realesrgan"][key] for key in ("wall", "cpu", "peak")]
        rows.append(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |")
    else:
        rows.append("| realesrgan | not installed: pip install 'webui-diffusers[realesrgan]' | | |")
    return rows


def memory_rows(arguments: argparse.Namespace) -> list[str]:
    """Memory of ours above model, picture and result, by size."""
    rows = ["\n| picture, MP | peak above model, picture and result, MB | result, MB |", "|---|---|---|"]
    for megapixels in arguments.megapixels:
        side = round((megapixels * 2**20) ** 0.5)
        found = in_own_process("ours", side, arguments.upscaler, arguments)
        rows.append(f"| {megapixels} | {found['peak'] - found['result']:.0f} | {found['result']:.0f} |")
    return rows


def quality_rows(photo: Path) -> list[str]:
    """SSIM and sharpness of a degraded photo made whole, against bicubic."""
    if not photo.is_file():
        return [f"\nno photo at {photo}: give one with --photo"]
    truth = Image.open(photo).convert("RGB")
    truth = truth.crop((0, 0, truth.width // 4 * 4, truth.height // 4 * 4))
    small = degraded(truth)
    pictures = {
        "bicubic": small.resize(truth.size, Image.Resampling.BICUBIC),
        LABEL: ours(LABEL, 256)(np.asarray(small)),
    }
    rows = [f"\n| {photo.name}: blurred, /4, noise, JPEG 60 | SSIM | sharpness (truth: 1) |", "|---|---|---|"]
    for name, picture in pictures.items():
        sharp = sharpness(picture) / sharpness(truth)
        rows.append(f"| {name} | {ssim(picture, truth):.3f} | {sharp:.2f} |")
    return rows


def degraded(truth: Image.Image) -> Image.Image:
    """A quarter of the size, as an old camera and a web site leave it; the same every time."""
    levels = gaussian_filter(np.asarray(truth, np.float32), (1.2, 1.2, 0))
    small = Image.fromarray(levels.astype(np.uint8)).resize(
        (truth.width // 4, truth.height // 4), Image.Resampling.BOX
    )
    noisy = np.asarray(small, np.float32) + np.random.default_rng(0).normal(0, 3, (small.height, small.width, 3))
    stream = BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=60)
    return Image.open(stream).convert("RGB")


def gray(picture: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(picture, np.float64) @ (0.299, 0.587, 0.114)


def ssim(picture: Image.Image | np.ndarray, truth: Image.Image) -> float:
    """Wang et al. (2004): mean over the picture of the product of luminance, contrast and structure; Gaussian 1.5."""
    x, y = gray(picture), gray(truth)
    mx, my = (gaussian_filter(z, 1.5, truncate=3.5) for z in (x, y))
    vx, vy, cov = (gaussian_filter(a * b, 1.5, truncate=3.5) for a, b in ((x, x), (y, y), (x, y)))
    vx, vy, cov = vx - mx * mx, vy - my * my, cov - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def sharpness(picture: Image.Image | np.ndarray) -> float:
    """Mean size of the Laplacian."""
    return float(np.abs(laplace(gray(picture))).mean())


def in_own_process(name: str, side: int, upscaler: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", name, "--side", str(side), "--tile", str(arguments.tile)]
    done = subprocess.run(
        [*command, "--upscaler", upscaler],
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, side: int, tile: int, upscaler: str) -> dict[str, float]:
    """wall and cpu: seconds; peak: MB above what is resident with model and picture loaded; result: MB of it."""
    photo = np.asarray(Image.open(PHOTO).convert("RGB")) if PHOTO.is_file() else noise()
    times = -(-side // photo.shape[0])
    picture = np.ascontiguousarray(np.tile(photo, (times, times, 1))[:side, :side])
    run = {"ours": ours, "realesrgan": realesrgan}[name](upscaler, tile)
    run(picture[:96, :96])
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    large = run(picture)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak": resident("VmHWM") - before, "result": large.nbytes / 2**20}


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (320, 320, 3)).astype(np.uint8)


def resident(field: str) -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def ours(upscaler: str, tile: int) -> Enlarge:
    """Our tiles around our loader's network."""
    from webui_diffusers.loaders import load_upscaler
    from webui_diffusers.pipelines.images.upscale_tiles import upscale_image

    model = load_upscaler(upscaler)
    return lambda levels: upscale_image(levels, model, tile=tile)


def realesrgan(_upscaler: str, tile: int) -> Enlarge:
    """RealESRGANer.enhance on the shipped weights, with its command line's settings: tile_pad 10, pre_pad 0."""
    import tempfile

    import torch
    from webui_diffusers.loaders.realesrgan_backend import functional_tensor_shim
    from webui_diffusers.loaders.upscaler import load_upscaler

    with functional_tensor_shim():
        import realesrgan as package
        from realesrgan.archs.srvgg_arch import SRVGGNetCompact

    state = load_upscaler(LABEL).network.state_dict()
    network = SRVGGNetCompact(3, 3, 64, num_conv=16, upscale=4, act_type="prelu")
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"params": state}, f"{folder}/weights.pth")
        runner = package.RealESRGANer(4, f"{folder}/weights.pth", model=network, tile=tile, tile_pad=10, pre_pad=0)

    def run(levels: np.ndarray) -> np.ndarray:
        with contextlib.redirect_stdout(None):  # it prints every tile
            return runner.enhance(levels[:, :, ::-1])[0][:, :, ::-1]

    return run


if __name__ == "__main__":
    main()
