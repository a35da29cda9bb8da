"""Fields about perturbed-attention guidance and FreeU, as arguments of a call and back.

PAG Active: True, PAG Scale: 3                      pag_scale=3.0
pag_enabled: True, pag_scale: 3                     the same, as Forge writes it
freeu_enabled: True, freeu_b1: 1.01, ...            freeu={"b1": 1.01, ...}
FreeU Stages: [{"backbone_factor": 1.1, ...}, ...]  the same
FreeU: b1=1.1 b2=1.15 s1=0.7 s2=0.6                 the same, as SD.Next writes it
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class UNetFields(NamedTuple):
    """What fields about the UNet mean."""

    arguments: dict[str, Any]
    lines: list[str]  # what it did, and what of that the arguments do not give
    labels: set[str]  # the fields that were read


_PAG_LABELS = re.compile(r"(?i)pag[ _].*|perturbed.attention.*")
_PAG_SWITCHES = re.compile(r"(?i)(pag|perturbed.attention.*)[ _](active|enabled)")
_FREEU_LABELS = re.compile(r"(?i)freeu.*")
_FREEU_SWITCHES = re.compile(r"(?i)freeu[ _]enabled|freeu")
_NO = ("false", "off", "none", "0", "0.0", "")
_STAGE = re.compile(r'"backbone_factor": ?([\d.]+), ?"skip_factor": ?([\d.]+)')
_WHOLE_SCHEDULE = "0.0, 1.0, 0.0"  # from the first step to the last, at once


def unet_fields(fields: Mapping[str, Any]) -> UNetFields:
    """Arguments of a call for the fields that say PAG or FreeU; nothing where they are switched off.

    >>> unet_fields({"PAG Active": "True", "PAG Scale": "3"}).arguments
    {'pag_scale': 3.0}
    """
    pag, freeu = _read_pag(fields), _read_freeu(fields)
    return UNetFields(pag.arguments | freeu.arguments, pag.lines + freeu.lines, pag.labels | freeu.labels)


def unet_extra(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for `format_infotext` from a call's arguments, as the webui's extensions name them."""
    extra: dict[str, Any] = {}
    if arguments.get("pag_scale"):
        layers = arguments.get("pag_applied_layers", "mid")
        layers = layers if isinstance(layers, str) else list(layers)
        layers = layers[0] if len(layers) == 1 else layers
        extra |= {"PAG Active": True, "PAG Scale": arguments["pag_scale"]}
        extra |= {"PAG Adaptive Scale": arguments["pag_adaptive_scale"]} if arguments.get("pag_adaptive_scale") else {}
        if layers != "mid":
            extra["PAG Applied Layers"] = layers if isinstance(layers, str) else json.dumps(layers)
    if factors := arguments.get("freeu"):
        stages = [{"backbone_factor": factors[f"b{n}"], "skip_factor": factors[f"s{n}"]} for n in (1, 2)]
        extra |= {"FreeU Stages": json.dumps(stages), "FreeU Schedule": _WHOLE_SCHEDULE, "FreeU Version": 1}
    return extra


def _read_pag(fields: Mapping[str, Any]) -> UNetFields:
    own = {label: str(value) for label, value in fields.items() if _PAG_LABELS.fullmatch(label)}
    if "PAG" in str(fields.get("Pipeline", "")):  # as SD.Next calls them
        own |= {label: str(fields[label]) for label in ("CFG true", "CFG adaptive") if label in fields}
    labels = set(own)
    if _is_off(own, _PAG_SWITCHES):
        return UNetFields({}, [], labels)
    plain = {re.sub(r"[ _]", "", label.lower()): value for label, value in own.items()}
    scale = _finite_number(plain.get("pagscale", plain.get("cfgtrue", "")))
    if scale is None:
        line = "perturbed-attention guidance (PAG) guided it, by no scale that can be read; give `pag_scale`"
        return UNetFields({}, [line] if own else [], labels)
    if scale <= 0:
        return UNetFields({}, [], labels)
    arguments: dict[str, Any] = {"pag_scale": scale}
    adaptive = _finite_number(plain.get("pagadaptivescale", plain.get("pagadaptive", plain.get("cfgadaptive", ""))))
    if adaptive is not None and adaptive > 0:
        arguments["pag_adaptive_scale"] = adaptive
    layers = plain.get("pagappliedlayers", "mid")
    if layers != "mid":
        arguments["pag_applied_layers"] = _layers(layers)
    return UNetFields(arguments, _pag_remarks(plain, scale, str(fields.get("Steps", ""))), labels)


def _pag_remarks(plain: Mapping[str, str], scale: float, steps: str) -> list[str]:
    remarks = []
    start, end, last = (
        _finite_number(text) for text in (plain.get("pagstartstep", ""), plain.get("pagendstep", ""), steps)
    )
    if (start or 0) > 0 or (end is not None and last is not None and end < last):
        window = f"from step {plain.get('pagstartstep', '0')} to {plain.get('pagendstep', 'the last')}"
        remarks.append(f"in all steps and not {window}")
    if plain.get("pagsanf", "").lower() == "true":
        remarks.append("without mixing by saliency (SANF)")
    line = f"perturbed-attention guidance (PAG) at {scale:g}; `pag_scale` does here, as in diffusers"
    return [", ".join((line, *remarks))]


def _read_freeu(fields: Mapping[str, Any]) -> UNetFields:
    own = {label: str(value) for label, value in fields.items() if _FREEU_LABELS.fullmatch(label)}
    labels = set(own)
    if not own or _is_off(own, _FREEU_SWITCHES):
        return UNetFields({}, [], labels)
    factors = _freeu_factors(own)
    if factors is None:
        line = "FreeU changed the U-Net's features; its factors are not in the text. Give `freeu`"
        return UNetFields({}, [line], labels)
    remarks = []
    if str(own.get("FreeU Version", "1")) == "2":
        remarks.append("not by its version 2, which looks at how strong the features are")
    if own.get("FreeU Schedule", _WHOLE_SCHEDULE) != _WHOLE_SCHEDULE:
        remarks.append(f"in all steps and not by the schedule {own['FreeU Schedule']}")
    line = "FreeU changed the U-Net's features; `freeu` does here, as in diffusers"
    return UNetFields({"freeu": factors}, [", ".join((line, *remarks))], labels)


def _freeu_factors(own: Mapping[str, str]) -> dict[str, float] | None:
    """b1, b2, s1 and s2, in any of the ways in which they are written."""
    text = " ".join(f"{label}: {value}" for label, value in own.items()).replace("\\", "")
    named = {name: re.search(rf'(?i)"?{name}"?[ _a-z]*[:=] ?([\d.]+)', text) for name in ("b1", "b2", "s1", "s2")}
    if all(named.values()):
        found = {name: _finite_number(match[1].rstrip(".")) for name, match in named.items() if match}
    elif len(stages := _STAGE.findall(text)) > 1:
        found = {f"{kind}{n + 1}": _finite_number(stages[n][side]) for side, kind in enumerate("bs") for n in (0, 1)}
    else:
        four = re.findall(r"\d+\.?\d*", next(iter(own.values())))
        found = dict(zip(("b1", "b2", "s1", "s2"), map(_finite_number, four))) if len(four) == 4 else {}
    factors = {name: value for name, value in found.items() if value is not None and value > 0}
    return factors if len(factors) == 4 else None


def _layers(written: str) -> str | list[str]:
    try:
        layers = json.loads(written)
    except ValueError:
        return written
    whole = isinstance(layers, list) and layers and all(isinstance(layer, str) for layer in layers)
    return layers if whole else written


def _is_off(own: Mapping[str, str], switches: re.Pattern[str]) -> bool:
    return any(switches.fullmatch(label) and value.lower() in _NO for label, value in own.items())


def _finite_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
