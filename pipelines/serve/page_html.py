"""What the page shows of a text, as HTML. Everything that comes from a text is escaped."""

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ..sampling.labels import AUTOMATIC_SCHEDULE, find_sampler_row
from .page_draw import final_size
from .page_text import PageReading
from .worker import Job


NOTHING_READ = '<p class="hint">What the text says will be shown here, before anything is drawn.</p>'
NOTHING_DRAWN = '<p class="hint">The picture will appear here.</p>'


def reading_html(reading: PageReading) -> str:
    """What a text says, what is missing, what will differ."""
    if reading.refusal:
        return _list("This cannot be drawn here", "refusal", [reading.refusal])
    if not reading.call:
        return NOTHING_READ
    call = reading.said
    parts = [f'<p class="prompt">{_words(call.get("prompt")) or "<i>no prompt</i>"}</p>']
    if call.get("negative_prompt"):
        parts.append(f'<p class="prompt negative"><span>Negative</span> {_words(call["negative_prompt"])}</p>')
    rows = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts(reading))
    parts.append(f'<dl class="facts">{rows}</dl>')
    parts.append(_list("Missing here", "missing", reading.missing))
    parts.append(_list("What will differ", "differs", reading.notes))
    if not reading.missing and not reading.notes:
        parts.append('<p class="fine">All that the text names is here.</p>')
    return "".join(parts)


def facts(reading: PageReading) -> list[tuple[str, str]]:
    """The settings of a reading, in words: label and value.

    >>> facts(PageReading("a cat", said={"sampler": "DPM++ 2M", "num_inference_steps": 20, "guidance_scale": 7.0}))[:2]
    [('Sampler', 'DPM++ 2M Karras'), ('Steps', '20')]
    """
    call = reading.said
    found = [("Sampler", _sampler(call)), ("Steps", f"{call.get('num_inference_steps')}")]
    found.append(("CFG scale", f"{call.get('guidance_scale'):g}"))
    found.append(("Seed", f"{call['seed']}" if call.get("seed", -1) >= 0 else "a new one each time"))
    if call.get("width") and call.get("height"):
        found.append(("Size", f"{call['width']} × {call['height']}"))
    if "hires_scale" in call or "hires_size" in call:
        found.append(("Hires fix", _hires(call)))
    found += [(label, f"{call[name] + more}") for name, label, more in _MORE_FACTS if call.get(name)]
    if call.get("detailers"):
        found.append(("Details", ", ".join(str(one.get("ad_model")) for one in call["detailers"])))
    if reading.refiner:
        found.append(("Refiner", reading.refiner))
    return [*found, ("Drawn by", reading.model), *([("Written by", reading.tool)] if reading.tool != "webui" else [])]


def progress_html(job: Job, ahead: int, preview: str | None) -> str:
    """A bar, what is being done, and what the picture looks like so far."""
    progress = job.progress
    share = progress.share
    if not job.result.running():
        others = "one picture is" if ahead == 1 else f"{ahead} pictures are"
        said = f"Waiting: {others} drawn before yours." if ahead else "Starting …"
    elif not progress.step:
        said = "Preparing the model …"
    elif progress.interrupted:
        said = "Stopping …"
    else:
        left = progress.seconds_left
        said = f"Step {min(progress.step, progress.steps)} of {progress.steps}"
        said += f", about {left:.0f} s left" if left >= 1.5 else ""
    shown = f'<img alt="What is being drawn, so far" src="data:image/jpeg;base64,{preview}">' if preview else ""
    bar = f'<progress max="1" value="{share:.3f}" aria-label="Progress">{share:.0%}</progress>'
    return f'<div class="drawing" role="status">{shown}<p>{said}</p>{bar}</div>'


def problem_html(problem: str) -> str:
    """What went wrong, in place of the progress."""
    return _list("It was not drawn", "refusal", [problem])


def _sampler(call: Mapping[str, Any]) -> str:
    """Sampler and schedule as the webui's one label had them."""
    row, schedule = find_sampler_row(call["sampler"]), call.get("schedule", AUTOMATIC_SCHEDULE)
    meant = row.schedule if schedule == AUTOMATIC_SCHEDULE else schedule
    return row.label if meant in (None, "Uniform") else f"{row.label} {meant}"


def _hires(call: Mapping[str, Any]) -> str:
    width, height = final_size(call)
    scale = f"{call['hires_scale']:g} times" if call.get("hires_scale") else ""
    size = f"to {width} × {height}" if width and height else ""
    upscaler = call.get("hires_upscaler", "Latent")
    return f"{' '.join(filter(None, (scale, size)))}, {upscaler}, denoising {call.get('hires_strength', 0.7):g}"


def _words(prompt: Any) -> str:
    """A prompt with its networks and weights set off, so that it reads well."""
    text = prompt if isinstance(prompt, str) else "\n".join(prompt or ())
    pieces = re.split(r"(<(?:lora|lyco|hypernet):[^<>]*>)", text.strip())
    return "".join(f"<code>{escape(piece)}</code>" if n % 2 else escape(piece) for n, piece in enumerate(pieces))


def _list(title: str, kind: str, lines: Iterable[str]) -> str:
    """A heading and its lines; names between backticks are set off. "" for no lines."""
    items = "".join(f"<li>{_marked(line)}</li>" for line in lines)
    return f'<section class="{kind}"><h3>{escape(title)}</h3><ul>{items}</ul></section>' if items else ""


def _marked(line: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line[:1].upper() + line[1:]))


# Argument, label, and what is added to get the webui's number.
_MORE_FACTS = (("clip_skip", "Clip skip", 1), ("subseed_strength", "Variation strength", 0))
