"""Sampler and schedule names as parameters texts have them.

Sampler              Schedule type    drawn with
Euler a              (absent)         Euler a, Automatic
DPM++ 2M Karras      (absent)         DPM++ 2M, Automatic     Karras is what Automatic means for it
LMS Karras           Exponential      LMS, Karras             the old combined name wins
Euler sgm_uniform    (absent)         Euler, SGM Uniform
k_euler, nope        (absent)         DPM++ 2M, Automatic     as in the webui
"""

from collections.abc import Mapping
from typing import Any

from ..sampling.labels import AUTOMATIC_SCHEDULE, SAMPLER_ROWS, SCHEDULE_ROWS


SAME_SAMPLER = "Use same sampler"
SAME_SCHEDULE = "Use same scheduler"

# Sampler -> the schedule that Automatic means (None: evenly spaced timesteps). The first one stands for unknown names.
INFOTEXT_SAMPLERS = {row.label: row.schedule for row in SAMPLER_ROWS if row.recorded}
# Schedule -> other spellings, after the label and the name (the label in lower case with underscores).
INFOTEXT_SCHEDULES = {AUTOMATIC_SCHEDULE: (), **{row.label: row.aliases for row in SCHEDULE_ROWS if row.recorded}}


def infotext_sampler(sampler: str | None, schedule: str | None) -> tuple[str, str]:
    """Sampler and schedule that a pair of fields means. Names are case sensitive, and unknown ones have a stand-in.

    >>> infotext_sampler("DPM++ 2M SDE Karras", None)
    ('DPM++ 2M SDE', 'Karras')
    """
    name, combined = _split_combined_name(sampler or "")
    chosen = combined or find_infotext_schedule(schedule) or "Automatic"
    if name not in INFOTEXT_SAMPLERS:
        name = next(iter(INFOTEXT_SAMPLERS))
    return name, "Automatic" if chosen == INFOTEXT_SAMPLERS[name] else chosen


def is_infotext_sampler(sampler: str) -> bool:
    """Whether a "Sampler" field names a sampler that the webui (1.10.1) has, alone or with a schedule."""
    return _split_combined_name(sampler)[0] in INFOTEXT_SAMPLERS


def find_infotext_schedule(schedule: str | None) -> str | None:
    """The label of a schedule given by label or name, None for an unknown one."""
    return next((label for label in INFOTEXT_SCHEDULES if schedule in _schedule_spellings(label)[:2]), None)


def infotext_hires_sampler(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Sampler and schedule of the hires pass: those of its own fields, else of the first pass's."""
    sampler, schedule = fields.get("Hires sampler", SAME_SAMPLER), fields.get("Hires schedule type", SAME_SCHEDULE)
    return infotext_sampler(
        fields.get("Sampler") if sampler == SAME_SAMPLER else sampler,
        fields.get("Schedule type") if schedule == SAME_SCHEDULE else schedule,
    )


def infotext_hires_choice(fields: Mapping[str, Any]) -> tuple[str, str]:
    """What the webui's two hires menus show: "Use same …" where the name is literally the first pass's field."""
    sampler, schedule = infotext_hires_sampler(fields)
    return (
        SAME_SAMPLER if sampler == fields.get("Sampler") else sampler,
        SAME_SCHEDULE if schedule == fields.get("Schedule type") else schedule,
    )


def _split_combined_name(name: str) -> tuple[str, str | None]:
    """ "LMS Karras" is LMS and Karras. The schedules are tried in their order, each by label, name and alias."""
    for label in INFOTEXT_SCHEDULES:
        for ending in _schedule_spellings(label):
            if name.endswith(f" {ending}"):
                return name.removesuffix(f" {ending}"), label
    return name, None


def _schedule_spellings(label: str) -> tuple[str, ...]:
    return (label, label.lower().replace(" ", "_"), *INFOTEXT_SCHEDULES[label])
