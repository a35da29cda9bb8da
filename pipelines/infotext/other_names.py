"""Samplers and schedules as other programs and people name them.

written                              drawn with
euler_ancestral, k_euler_a           Euler a
dpmpp_2m_sde_gpu with karras         DPM++ 2M SDE, Karras
DPMSolverMultistepScheduler          DPM++ 2M
DPM++ 2m karras                      DPM++ 2M, Karras       in any case
Euler A AYS                          Euler a, Align Your Steps
dpmpp_2s, res_multistep              nothing                there is no such sampler here
"""

import re
from typing import NamedTuple

from ..sampling.labels import find_schedule, plain_name, resolve_names
from .sampler_names import INFOTEXT_SAMPLERS, infotext_sampler, is_infotext_sampler


class NamedSampler(NamedTuple):
    """What a pair of names means here; a side that has no like is None."""

    sampler: str | None
    schedule: str | None


USUAL_TEXT_SAMPLER = "DPM++ 2M"  # what the webui takes where a text names none
# Names (see `plain_name`) that the rows of samplers do not have.
_SAMPLER_NAMES = {
    "lmsd": "LMS",
    "kdpm2": "DPM2",
    "kdpm2a": "DPM2 a",
    "kdpm2ancestral": "DPM2 a",
    "dpmsde": "DPM++ SDE",
    "dpm2msde": "DPM++ 2M SDE",
    "dpm3msde": "DPM++ 3M SDE",
    "unipcsnr": "UniPC",
    "unipctu": "UniPC",
}
_SCHEDULE_NAMES = {"default": "Automatic", "auto": "Automatic", "none": "Automatic"}


def named_sampler(sampler: str | None, schedule: str | None) -> NamedSampler:
    """Sampler and schedule of a text of any program: by the webui's rule where it knows the name, else by likeness.

    >>> tuple(named_sampler("dpmpp_2m_sde_gpu", "karras")), tuple(named_sampler("res_multistep", "simple"))
    (('DPM++ 2M SDE', 'Karras'), (None, 'Simple'))
    """
    chosen = _schedule_label(schedule)
    if not sampler:
        return NamedSampler(USUAL_TEXT_SAMPLER, chosen)
    if is_infotext_sampler(sampler):
        name, combined = infotext_sampler(sampler, None)
        if sampler not in INFOTEXT_SAMPLERS:
            return NamedSampler(name, combined)
        return NamedSampler(name, "Automatic" if chosen and chosen == INFOTEXT_SAMPLERS[name] else chosen)
    for name, own in _readings(sampler):
        try:
            row, label = resolve_names(_SAMPLER_NAMES.get(plain_name(name), name), own or chosen)
        except ValueError:
            continue
        if chosen is None and own is None and label == "Automatic":
            return NamedSampler(row.label, None)
        return NamedSampler(row.label, "Automatic" if label == row.schedule else label)
    return NamedSampler(None, chosen)


def _readings(sampler: str) -> list[tuple[str, str | None]]:
    """A name whole, and without a schedule's at its end."""
    sampler = sampler.rpartition(" - ")[2]  # "Default - DPM++ 2M", as Krita AI Diffusion names its presets
    found: list[tuple[str, str | None]] = [(sampler, None)]
    for match in re.finditer(r"[\s_]+", sampler):
        ending = sampler[match.end() :]
        if label := "Karras" if ending.lower() == "k" else _schedule_label(ending):
            found.append((sampler[: match.start()], label))
    return found


def _schedule_label(schedule: str | None) -> str | None:
    if not schedule:
        return "Automatic"
    try:
        return _SCHEDULE_NAMES.get(plain_name(schedule)) or find_schedule(schedule)
    except ValueError:
        return None
