"""The settings of what img2img can do besides one drawing: soft inpainting, SD upscale, loopback; and a prompt matrix.

Each is an argument of the call, True or a dict, read here into a dataclass whose `fields` are those of the text. A
leaf: torch-free, and any folder may import it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from ..loaders.utils import unknown_choice


SOFT_INPAINTING_LIMITS = {
    "schedule_bias": (0, 8),
    "preservation_strength": (0, 8),
    "transition_contrast_boost": (1, 32),
    "mask_influence": (0, 1),
    "difference_threshold": (0, 8),
    "difference_contrast": (0, 8),
}

# Of loopback's strength between its first value and its last: t in 0..1 -> 0..1.
LOOPBACK_CURVES: dict[str, Callable[[float], float]] = {
    "Linear": lambda t: t,
    "Aggressive": lambda t: math.sin(t * math.pi * 0.5),
    "Lazy": lambda t: 1 - math.cos(t * math.pi * 0.5),
}

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class SoftInpainting:
    """Soft inpainting: kept and drawn latents are mixed by degrees, and the overlay follows what really changed."""

    schedule_bias: float = 1  # above 0 the mask grows narrower as noise falls
    preservation_strength: float = 0.5  # how strongly what is half masked is kept
    transition_contrast_boost: float = 4  # how much contrast mixed latents get back
    mask_influence: float = 0  # how much the mask, and not the change, decides over the overlay
    difference_threshold: float = 0.5  # change of a latent at which the original is half covered
    difference_contrast: float = 2  # how sharp that edge is

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the text."""
        return {"Soft inpainting enabled": True, **_labelled("Soft inpainting", asdict(self))}


@dataclass(frozen=True)
class SDUpscale:
    """SD upscale: the picture enlarged, drawn tile by tile, joined again. The job's size is that of a tile."""

    overlap: int = 64  # pixels that neighbouring tiles share
    scale: float = 2.0
    upscaler: Any = "None"  # a label, a path or a model; "None" leaves the picture as it is, without the scale
    batch_size: int = 1  # tiles drawn at once

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the text."""
        label = self.upscaler if isinstance(self.upscaler, str) else type(self.upscaler).__name__
        return {"SD upscale overlap": self.overlap, "SD upscale upscaler": label}


@dataclass(frozen=True)
class Loopback:
    """Loopback: each result is drawn over again, by a strength that goes from the call's to `final_strength`."""

    loops: int = 2
    final_strength: float = 0.5
    curve: str = "Linear"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the text."""
        return {"Final denoising strength": self.final_strength, "Denoising curve": self.curve}

    def strength(self, start: float, loop: int) -> float:
        """The strength of loop 0, 1, …"""
        if loop == 0 or self.loops < 2:
            return start
        return start + (self.final_strength - start) * LOOPBACK_CURVES[self.curve](loop / (self.loops - 1))


@dataclass(frozen=True)
class SkippedDrawing:
    """img2img draws nothing itself: its detailing passes begin with the given pictures."""

    fields: Mapping[str, Any] = field(default_factory=dict)


def read_soft_inpainting(given: Any) -> SoftInpainting | None:
    """The argument `soft_inpainting`: True, or a dict of its settings; None and False are off."""
    if given is None or given is False:
        return None
    soft = _read_script("soft_inpainting", SoftInpainting, given)
    for name, (low, high) in SOFT_INPAINTING_LIMITS.items():
        _check_between(f"`soft_inpainting`: `{name}`", getattr(soft, name), low, high)
    return soft


def read_sd_upscale(given: Any) -> SDUpscale | None:
    """The argument `sd_upscale`: True, or a dict of its settings; None and False are off."""
    if given is None or given is False:
        return None
    asked = _read_script("sd_upscale", SDUpscale, given)
    _check_between("`sd_upscale`: `overlap`", asked.overlap, 0, 10**6)
    _check_between("`sd_upscale`: `scale`", asked.scale, 1, 100)
    _check_between("`sd_upscale`: `batch_size`", asked.batch_size, 1, 10**6)
    upscaler = "None" if asked.upscaler is None else asked.upscaler
    return SDUpscale(int(asked.overlap), asked.scale, upscaler, int(asked.batch_size))


def read_loopback(given: Any) -> Loopback | None:
    """The argument `loopback`: True, or a dict of its settings; None and False are off."""
    if given is None or given is False:
        return None
    asked = _read_script("loopback", Loopback, given)
    _check_between("`loopback`: `loops`", asked.loops, 1, 10**6)
    _check_between("`loopback`: `final_strength`", asked.final_strength, 0, 1)
    if asked.curve not in LOOPBACK_CURVES:
        raise ValueError(unknown_choice("`loopback`: `curve`", asked.curve, LOOPBACK_CURVES))
    return Loopback(int(asked.loops), asked.final_strength, asked.curve)


def _read_script(argument: str, kind: type[Settings], given: Any) -> Settings:
    if given is True:
        return kind()
    if isinstance(given, kind):
        return given
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise ValueError(f"`{argument}` is True or a dict of {', '.join(known)}; got {given!r:.60}.")
    for name in given:
        if name not in known:
            raise ValueError(unknown_choice(f"`{argument}`: setting", name, known))
    return kind(**given)


def _check_between(what: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:g}; got {value!r:.60}.")


def _labelled(head: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{head} {name.replace('_', ' ')}": value for name, value in settings.items()}


def soft_inpainting_of_fields(given: Mapping[str, str]) -> dict[str, float] | None:
    """The argument `soft_inpainting` from a text's fields, label -> text; None where the text has it off or not."""
    if given.get("Soft inpainting enabled", "False") == "False":
        return None
    labels = {f"Soft inpainting {name.replace('_', ' ')}": name for name in SOFT_INPAINTING_LIMITS}
    settings = {}
    for label, name in labels.items():
        try:
            settings[name] = float(given[label])
        except (KeyError, ValueError):
            continue
    return settings


def prompt_matrix(text: str, *, put_at_start: bool = False, delimiter: str = ", ") -> list[str]:
    """Every combination of the parts between `|` with the part before them, the first part toggling fastest.

    The base stays as it is; the others lose white space, then commas, at their ends. Brackets are not respected.
    put_at_start: the parts before the base. delimiter: ", " or " ".

    >>> prompt_matrix("a cat|red|big")
    ['a cat', 'a cat, red', 'a cat, big', 'a cat, red, big']
    """
    base, *options = text.split("|")
    parts = [option.strip().strip(",") for option in options]

    def joined(chosen: Iterable[str]) -> str:
        return delimiter.join([*chosen, base] if put_at_start else [base, *chosen])

    return [joined(p for bit, p in enumerate(parts) if number >> bit & 1) for number in range(2 ** len(parts))]
