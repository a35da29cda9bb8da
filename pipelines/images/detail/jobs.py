"""The inpainting jobs of a pass: for each mask its prompt, seed, size and strength."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from ...detailer_settings import Detailer
from .boxes import Box, box_area
from .regions import DetailRegions


PROMPT_SEPARATOR, PROMPT_TOKEN, SKIP_TOKEN = "[SEP]", "[PROMPT]", "[SKIP]"

# Sizes that SDXL was trained on, as ADetailer lists them; of equally near ones the first is taken.
_SDXL_SIZES = (
    *((1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216)),
    *((1344, 768), (768, 1344), (1536, 640), (640, 1536)),
)


class DetailTexts(NamedTuple):
    """What one picture of the job was drawn with: its texts with network tags and styles, its seeds."""

    prompt: str
    negative: str
    seed: int
    subseed: int


@dataclass(frozen=True)
class DetailJob:
    """One inpainting job. The picture is that which the job before left."""

    mask: Image.Image
    prompt: str
    negative: str
    seed: int
    subseed: int
    width: int  # of what is drawn, in pixels
    height: int
    strength: float


def detail_jobs(
    regions: DetailRegions,
    one: Detailer,
    own: DetailTexts,
    size: tuple[int, int],
    options: Mapping[str, Any],
    *,
    is_sdxl: bool = False,
) -> list[DetailJob]:
    """The jobs of one pass over one picture, in order. size: (width, height) of the drawing job, before hires fix.

    A mask whose prompt is [SKIP] has no job, but counts in seeds and prompts.
    """
    prompts, negatives = prompt_parts(one["ad_prompt"]), prompt_parts(one["ad_negative_prompt"])
    jobs = []
    for j, mask in enumerate(regions.masks):
        positive = part_of(prompts, j)
        if positive.strip() == SKIP_TOKEN:
            continue
        box = regions.boxes[j] if j < len(regions.boxes) else None
        step = 0 if options["ad_same_seed_for_each_tab"] else j
        width, height = job_size(one, box, size, options["ad_match_inpaint_bbox_size"], is_sdxl=is_sdxl)
        jobs.append(
            DetailJob(
                mask=mask,
                prompt=filled_part(positive, own.prompt),
                negative=filled_part(part_of(negatives, j), own.negative),
                seed=own.seed + step,
                subseed=own.subseed + step,
                width=width,
                height=height,
                strength=dynamic_strength(
                    one["ad_denoising_strength"], box, mask.size, options["ad_dynamic_denoise_power"]
                ),
            )
        )
    return jobs


def prompt_parts(text: str) -> list[str]:
    """The parts between [SEP], without the white space around it; that at both ends of the text stays.

    >>> prompt_parts("smile [SEP] frown")
    ['smile', 'frown']
    """
    return re.split(r"\s*\[SEP\]\s*", text)


def part_of(parts: list[str], j: int) -> str:
    """The part for mask j: the last one holds for all that follow."""
    return parts[min(j, len(parts) - 1)]


def filled_part(part: str, own: str) -> str:
    """The prompt of a job: the picture's `own` where the part is empty, and where it says [PROMPT]."""
    return part.replace(PROMPT_TOKEN, own) if part else own


def dynamic_strength(strength: float, box: Box | None, size: tuple[int, int], power: float) -> float:
    """strength * (1 - share of the picture)^power: small boxes are drawn more anew. Power 0 leaves it."""
    if not power or box is None:
        return strength
    return strength * (1 - box_area(box) / (size[0] * size[1])) ** power


def job_size(
    one: Detailer, box: Box | None, size: tuple[int, int], match: str, *, is_sdxl: bool = False
) -> tuple[int, int]:
    """(width, height) that a mask is drawn at: the pass's own, else the job's, else one of the box's proportions.

    match: "Off", "Strict (SDXL only)" (a size that SDXL was trained on) or "Free". A matched size is taken only where
    a side differs by more than a tenth.
    """
    if one["ad_use_inpaint_width_height"]:
        return one["ad_inpaint_width"], one["ad_inpaint_height"]
    matched = None
    if box is not None and match == "Free":
        matched = _free_size(box, max(size))
    elif box is not None and match == "Strict (SDXL only)" and is_sdxl:
        matched = _trained_size(box, size)
    if matched is None or all(abs(new - old) <= 0.1 * old for new, old in zip(matched, size)):
        return size
    return matched


def _free_size(box: Box, side: int) -> tuple[int, int] | None:
    width, height = box[2] - box[0], box[3] - box[1]
    if width <= 0 or height <= 0:
        return None
    ratio = width / height
    wanted = (side, side / ratio) if ratio > 1 else (side * ratio, side)
    return int((wanted[0] + 7) // 8 * 8), int((wanted[1] + 7) // 8 * 8)


def _trained_size(box: Box, size: tuple[int, int]) -> tuple[int, int] | None:
    width, height = box[2] - box[0], box[3] - box[1]
    if width <= 0 or height <= 0:
        return None
    fitting = [
        trained
        for trained in _SDXL_SIZES
        if trained[0] >= width and trained[1] >= height and (trained[0] >= size[0] or trained[1] >= size[1])
    ]
    return min(fitting, key=lambda trained: abs(trained[0] / trained[1] - width / height), default=None)
