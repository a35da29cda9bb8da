"""Write docs/words.md from the tables that texts are read by: the webui's words, and the arguments that mean the same.

python docs/make_words.py
"""

from pathlib import Path

from webui_diffusers.pipelines.infotext.fields import (
    CALL_FIELDS,
    HIRES_FIELDS,
    IMG2IMG_FIELDS,
    NEEDED_FIELDS,
    TextField,
)


PAGE = Path(__file__).parent / "words.md"
HEAD = """# The webui's words and ours

What a "parameters" text calls a thing, and the argument of a call that means the same. This page is made from the
tables that texts are read by. Samplers and schedules keep the webui's labels: [Samplers and schedules](samplers.md).

Where diffusers has a word of its own, it stays diffusers': steps are `num_inference_steps`, CFG scale is
`guidance_scale`. `clip_skip` with a named `sampler` is counted as the webui counts it.
"""
PARTS = {
    "Every pass": CALL_FIELDS,
    "The hires pass": HIRES_FIELDS,
    "img2img and inpainting": IMG2IMG_FIELDS,
}
UI = (
    ("Sampling method, Schedule type", "`sampler`, `schedule`"),
    ("Batch count, Batch size", "`num_images_per_prompt`, a list of prompts: image i has `seed + i`"),
    ("Hires. fix", "`hires_scale` or `hires_size`, with `hires_upscaler`, `hires_steps`, `hires_strength`"),
    ("Refiner", "the component `refiner` and `refiner_switch_at`"),
    ("Extra (beside Seed)", "`subseed`, `subseed_strength`, `seed_resize`"),
    ("Checkpoint, SD VAE", "the pipeline itself, `from_single_file`; `pipe.load_vae`"),
    ("Extra networks", "`<lora:name:0.8>` in the prompt, with `pipe.lora_folder` or `pipe.add_lora`; or `loras=`"),
    ("ControlNet", "`control_units` ([ControlNet](controlnet.md))"),
    ("ADetailer", "`detailers` ([Details](detailer.md))"),
    ("Script: SD upscale, Loopback", "`sd_upscale`, `loopback` of img2img"),
    ("Script: X/Y/Z plot, Prompt matrix", "`webui-diffusers grid`"),
    ("Extras", "`webui-diffusers upscale`, `restore`; `upscale_image`, `FaceRestorePipeline`"),
    ("PNG Info", "`webui-diffusers info`; `read_infotext`"),
    ("Settings", "`webui_options`, under the webui's own names"),
)


def page_text() -> str:
    """The whole page."""
    tables = [("The page of the webui", _table(("there", "here"), UI))]
    for title, fields in PARTS.items():
        rows = [(f"`{row.label}`", _argument(row)) for row in fields.values() if row.argument]
        tables.append((title, _table(("in a text", "argument"), rows)))
    told = [(f"`{row.label}`", row.note.format("…")) for row in NEEDED_FIELDS.values() if row.note]
    tables.append(("What no argument can say, and what is told instead", _table(("in a text", "what is told"), told)))
    return HEAD + "".join(f"\n## {title}\n\n{table}\n" for title, table in tables)


def _argument(row: TextField) -> str:
    name = row.argument.removeprefix("webui_options.")
    return f"`{name}`" if name == row.argument else f'`webui_options={{"{name}": …}}`'


def _table(head: tuple[str, str], rows: object) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, ("---", "---"), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8", newline="\n")
