"""The loss curves of all stages as one small PNG, drawn with Pillow alone."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw


PANEL = (300, 170)
MARGIN = (44, 22)
INK, GRID, LINE = (60, 60, 60), (225, 225, 225), (30, 110, 200)


def draw_losses(cache: Path, stages: tuple[str, ...], file: Path) -> None:
    """One panel a stage that has a log: the loss on a logarithmic scale over steps, smoothed over 5 rows."""
    logs = [(stage, cache / stage / "losses.jsonl") for stage in stages]
    panels = [_panel(stage, _read(path)) for stage, path in logs if path.exists()]
    if not panels:
        return
    sheet = Image.new("RGB", (PANEL[0] * len(panels), PANEL[1]), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number * PANEL[0], 0))
    sheet.quantize(32).save(file, optimize=True)


def _read(path: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    means = []
    for end in range(len(rows)):
        window = rows[max(0, end - 4) : end + 1]
        means.append((rows[end]["step"], sum(row["loss"] for row in window) / len(window)))
    return means


def _panel(stage: str, points: list[tuple[int, float]]) -> Image.Image:
    panel = Image.new("RGB", PANEL, "white")
    pen = ImageDraw.Draw(panel)
    left, top = MARGIN
    right, bottom = PANEL[0] - 12, PANEL[1] - 22
    last_step = points[-1][0]
    logs = [math.log10(loss) for _, loss in points]
    low, high = math.floor(min(logs) * 5) / 5, math.ceil(max(logs) * 5) / 5

    def across(step: float) -> float:
        return left + (right - left) * step / last_step

    def down(log: float) -> float:
        return bottom - (bottom - top) * (log - low) / max(high - low, 1e-9)

    for part in range(5):
        log = low + (high - low) * part / 4
        pen.line((left, down(log), right, down(log)), fill=GRID)
        pen.text((4, down(log) - 6), f"{10**log:.3g}", fill=INK)
    pen.text((left, 4), f"{stage}: loss, last {points[-1][1]:.3g}", fill=INK)
    pen.text((left, bottom + 6), "0", fill=INK)
    pen.text((right - 60, bottom + 6), f"{last_step} steps", fill=INK)
    pen.line([(across(step), down(log)) for (step, _), log in zip(points, logs)], fill=LINE, width=2)
    return panel
