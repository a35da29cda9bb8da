"""The demo model's data: emoji drawings from npm packages, rendered, placed on backgrounds, and captioned."""

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from train_subjects import COLOURS, SUBJECTS


SIZE = 128
"""Side of the model's pictures in pixels."""

CROP = 96
"""Side of the pieces that the autoencoder learns from."""

RENDER_SIZE = 192
"""Side of the cached drawings, from which every size is made."""

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
}
"""Style -> npm package. Noto Emoji: Apache-2.0; Fluent Emoji: MIT."""

STYLES = tuple(PACKAGES)


@dataclass(frozen=True)
class Placement:
    """How one drawing is put on a square: its side as a share of SIZE, shift in pixels, mirrored, background RGB."""

    scale: float = 0.9
    dx: float = 0.0
    dy: float = 0.0
    mirrored: bool = False
    background: tuple[int, int, int] = (255, 255, 255)


def fetch_drawings(cache: Path) -> dict[str, np.ndarray]:
    """Style -> (number of subjects, RENDER_SIZE, RENDER_SIZE, 4) uint8 RGBA, in the order of SUBJECTS.

    Fetches the packages with `npm pack` and renders with resvg the first time; afterwards reads `cache/drawings.npz`.
    """
    stored = cache / "drawings.npz"
    if not stored.exists():
        cache.mkdir(parents=True, exist_ok=True)
        drawings = {style: _render_set(_fetch_set(cache, style)) for style in STYLES}
        np.savez_compressed(stored, **drawings)
    with np.load(stored) as arrays:
        drawings = {style: arrays[style] for style in STYLES}
    if len(drawings["noto"]) != len(SUBJECTS):
        raise ValueError(
            f"{stored} holds {len(drawings['noto'])} subjects, the table {len(SUBJECTS)}: delete the file"
        )
    return drawings


def _fetch_set(cache: Path, style: str) -> dict:
    """The package's icons.json: {"icons": {name: {"body": svg}}, "width", "height"}."""
    target = cache / f"{style}.json"
    if not target.exists():
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGES[style]], cwd=cache, check=True, capture_output=True, text=True
        )
        archive = cache / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            target.write_bytes(tar.extractfile("package/icons.json").read())
        archive.unlink()
    return json.loads(target.read_text())


def _render_set(icons: dict) -> np.ndarray:
    import io

    from resvg_py import svg_to_bytes

    rendered = []
    for icon in SUBJECTS:
        entry = icons["icons"].get(icon) or icons["icons"][icons["aliases"][icon]["parent"]]
        width, height = entry.get("width", icons.get("width", 16)), entry.get("height", icons.get("height", 16))
        body = entry["body"].replace("currentColor", "#000000")
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{RENDER_SIZE}" height="{RENDER_SIZE}">{body}</svg>'
        )
        png = bytes(svg_to_bytes(svg_string=svg, width=RENDER_SIZE, height=RENDER_SIZE))
        picture = Image.open(io.BytesIO(png)).convert("RGBA").resize((RENDER_SIZE, RENDER_SIZE), Image.LANCZOS)
        rendered.append(np.asarray(picture))
    return np.stack(rendered)


def place(drawing: np.ndarray, placement: Placement, size: int = SIZE) -> np.ndarray:
    """RGBA drawing -> (size, size, 3) uint8 on the placement's background."""
    side = max(8, round(SIZE * placement.scale))
    picture = Image.fromarray(drawing)
    if placement.mirrored:
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    picture = picture.resize((side, side), Image.LANCZOS, reducing_gap=2.0)
    canvas = Image.new("RGB", (size, size), placement.background)
    corner = (round((size - side) / 2 + placement.dx), round((size - side) / 2 + placement.dy))
    canvas.paste(picture, corner, picture)
    return np.asarray(canvas)


def random_placement(rng: np.random.Generator) -> Placement:
    """Any size, place in or partly out of a CROP, and colour: what the autoencoder must be able to show."""
    scale = float(rng.uniform(0.45, 1.0))
    room = abs(CROP - SIZE * scale) / 2 + 4
    background = (255, 255, 255)
    if rng.random() < 0.5:
        named = list(COLOURS.values())
        background = named[rng.integers(len(named))] if rng.random() < 0.6 else tuple(rng.integers(0, 256, 3).tolist())
    return Placement(
        scale, float(rng.uniform(-room, room)), float(rng.uniform(-room, room)), rng.random() < 0.3, background
    )


def captioned_placement(rng: np.random.Generator) -> tuple[Placement, str, str]:
    """A placement near the middle, its size word ("", "small" or "big") and its background's name."""
    size_word = str(rng.choice(["", "small", "big"], p=[0.8, 0.1, 0.1]))
    middle = {"": 0.88, "small": 0.55, "big": 1.0}[size_word]
    colour = "white" if rng.random() < 0.6 else str(rng.choice(list(COLOURS)[1:]))
    placement = Placement(
        scale=middle + float(rng.uniform(-0.01, 0.01)),
        dx=float(rng.uniform(-2, 2)),
        dy=float(rng.uniform(-2, 2)),
        background=COLOURS[colour],
    )
    return placement, size_word, colour


def caption(icon: str, size_word: str, colour: str, rng: np.random.Generator) -> str:
    """A varied caption; a white background is named only half of the time, any other always."""
    names = SUBJECTS[icon]
    name = names[0] if rng.random() < 0.7 else names[rng.integers(len(names))]
    subject = f"{size_word} {name}".strip()
    article = "an" if subject[0] in "aeiou" else "a"
    forms = (f"{subject}", f"{article} {subject}", f"{subject} emoji", f"{article} {subject} emoji")
    text = forms[rng.integers(len(forms))]
    if colour == "white" and rng.random() < 0.5:
        return text
    endings = (f", {colour} background", f" on a {colour} background")
    return text + endings[rng.integers(len(endings))]


def captioned_words() -> str:
    """Every word a caption can hold, separated by spaces."""
    names = " ".join(name for names in SUBJECTS.values() for name in names)
    return f"{names} {' '.join(COLOURS)} small big a an emoji , background on"
