"""Which program wrote a text, told by its fields, and what of it draws otherwise than the webui.

App: SD.Next                        SD.Next
Version: ComfyUI                    ComfyUI (a node that saves pictures)     its noise comes from the CPU
Version: stable-diffusion.cpp       stable-diffusion.cpp
Civitai resources, no Version       Civitai's generator
Version: f2.0.1v1.10.1-previous-…   the webui: forks of it draw as it does
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Program(NamedTuple):
    """A program that is not the webui."""

    name: str
    labels: str  # regular expression of a label ...
    values: str  # ... and of the value that tells the program
    noise: str = ""  # its source of noise in the webui's words; "" where it is its own or unknown
    unused: tuple[str, ...] = ()  # fields that it writes and draws nothing by


PROGRAMS = (
    Program("SD.Next", "App", r"SD\.?Next|Vlad.*"),
    Program("SD.Next", "Backend", r"Diffusers|Original"),
    Program("ComfyUI", "Version|App|Software|Generator", r"(?i)comfy.*", "CPU"),
    Program("SwarmUI", "Version|App|swarm_version", r"(?i).*swarm.*|0\.\d+\.\d+\.\d+", "CPU"),
    Program("stable-diffusion.cpp", "Version", r"(?i)stable-diffusion\.cpp.*|sd\.cpp.*", unused=("Eta",)),
    Program("Fooocus", "Version", r"(?i).*fooocus.*|simplesdxl.*", "CPU"),
    Program("InvokeAI", "Version|App", r"(?i)invoke.*", "CPU"),
    Program("NovelAI", "Version|Software", r"(?i)novelai.*"),
    Program("Draw Things", "Version|Software|App", r"(?i)draw ?things.*"),
    Program("Easy Diffusion", "Version|App", r"(?i)easy ?diffusion.*"),
    Program("Easy Diffusion", "Stable Diffusion model|Use Stable Diffusion model", r".*"),
    Program("Mochi Diffusion", "Generator|Version", r"(?i)mochi.*"),
    Program("Draw Things", "Guidance Scale", r"[\d.]+"),
    Program("Civitai's generator", "Version|App|Software", r"(?i)civitai.*"),
)


def program_of(fields: Mapping[str, Any]) -> Program | None:
    """The program that wrote these fields; None for the webui and its forks, and where nothing tells.

    >>> program_of({"Version": "ComfyUI"}).name, program_of({"Version": "v1.10.1"})
    ('ComfyUI', None)
    """
    for program in PROGRAMS:
        for label in fields:
            if re.fullmatch(program.labels, label) and re.fullmatch(program.values, str(fields[label])):
                return program
    made_there = "Civitai resources" in fields and ("Version" not in fields or "Created Date" in fields)
    return Program("Civitai's generator", "", "") if made_there else None


def program_line(program: Program) -> str:
    """What differs, in one line."""
    return (
        f"{program.name} drew it: noise and prompt weights are its own, so the same arguments draw another picture "
        "here."
    )
