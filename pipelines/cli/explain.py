"""`explain`: what a prompt becomes. Tokens by chunk with their weights, the steps at which the text changes, networks.

Nothing is loaded but a tokenizer, which comes with the package.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..prompt.attention import parse_attention
from ..prompt.chunks import chunk_tokens, tokenize_fragments
from ..prompt.clip_tokenizer import FragmentTokenizer
from ..prompt.comments import strip_comments
from ..prompt.composition import split_and
from ..prompt.network_tags import split_network_tags
from ..prompt.schedule import parse_schedule
from .common import DrawCommand, json_option, print_result


BASE_CHOICES = ("sd1", "sd2", "sdxl")
FOLDER = click.Path(path_type=Path)
EMPHASIS_CHOICES = ("Original", "No norm", "Ignore", "None")


class PromptReading(NamedTuple):
    """How a prompt is read. Steps are the user's; a second-order sampler calls the model twice in each."""

    steps: int
    hires_steps: int | None
    calls_per_step: int
    emphasis: str
    backtrack: int
    legacy: bool


@click.command("explain", cls=DrawCommand)
@click.argument("prompt")
@click.option("--steps", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="Sampling steps.")
@click.option("--second-order", is_flag=True, help="Heun, DPM++ SDE ...: two calls a step.")
@click.option("--hires-steps", metavar="N", type=click.IntRange(1), help="Show the hires pass of so many steps.")
@click.option("--model", type=FOLDER, help="A pipeline's folder, for its own tokenizer.")
@click.option("--base", type=click.Choice(BASE_CHOICES), default="sd1", show_default=True, help="Without a model.")
@click.option(
    "--emphasis", type=click.Choice(EMPHASIS_CHOICES), default="Original", show_default=True, help="How weights count."
)
@click.option(
    "--backtrack", metavar="N", type=click.IntRange(0), default=20, show_default=True, help="comma_padding_backtrack."
)
@click.option("--old-scheduling", is_flag=True, help="Edits as before version 1.6.")
@click.option("--lora-folder", envvar="WEBUI_DIFFUSERS_LORAS", type=FOLDER, help="To find LoRAs in.")
@json_option
def explain_command(prompt: str, as_json: bool, **values: Any) -> None:
    """Show what a prompt becomes: chunks of tokens with weights, changes by step, networks.

    PROMPT is the prompt, in quotes. Nothing is loaded but a tokenizer, which comes with the package.
    """
    reading = PromptReading(
        steps=values["steps"],
        hires_steps=values["hires_steps"],
        calls_per_step=2 if values["second_order"] else 1,
        emphasis=values["emphasis"],
        backtrack=values["backtrack"],
        legacy=values["old_scheduling"],
    )
    tokenizer, words = _tokenizer(values["model"], values["base"])
    found = explain_prompt(prompt, reading, tokenizer, words)
    found["networks"] = _networks(prompt, values["lora_folder"])
    print_result(found, as_json, _print_prompt)


def explain_prompt(prompt: str, reading: PromptReading, tokenizer: FragmentTokenizer, words: Any) -> dict[str, Any]:
    """The prompt as plain values: pieces (of AND) with weight and variants, each with its steps and chunks of
    [token id, token, weight]. words: ids -> tokens as written in the vocabulary."""
    text, _ = split_network_tags(strip_comments(prompt))
    pieces = [
        {"text": piece, "weight": weight, "variants": _variants(piece, reading, tokenizer, words)}
        for piece, weight in split_and(text)
    ]
    return {"prompt": prompt, "steps": reading.hires_steps or reading.steps, "pieces": pieces}


def _variants(text: str, reading: PromptReading, tokenizer: FragmentTokenizer, words: Any) -> list[dict[str, Any]]:
    """The texts of a piece with the steps that read them.

    Model calls count from 0 and an entry is read up to the call of its number, so that the first text lasts one call
    longer than its number says, and the last may never be read: as in the webui.
    """
    per_step, variants, first_call = reading.calls_per_step, [], 0
    total = (reading.hires_steps or reading.steps) * per_step
    hires = None if reading.hires_steps is None else reading.hires_steps * per_step
    for end, variant in parse_schedule(text, reading.steps * per_step, hires, legacy=reading.legacy):
        last_call = min(end, total - 1)
        fragments = tokenize_fragments(variant, tokenizer, reading.emphasis)
        chunks, count = chunk_tokens(
            fragments, start=tokenizer.start, end=tokenizer.end, comma=tokenizer.comma, backtrack=reading.backtrack
        )
        read = first_call <= last_call
        variants.append(
            {
                "first_step": first_call // per_step + 1 if read else None,
                "last_step": last_call // per_step + 1 if read else None,
                "text": variant,
                "tokens": count,
                "weights": [] if reading.emphasis == "None" else parse_attention(variant),
                "chunks": [_readable_tokens(c.tokens, c.weights, tokenizer.end, words) for c in chunks],
            }
        )
        first_call = last_call + 1
    return variants


def _readable_tokens(ids: Iterable[int], weights: Iterable[float], end: int, words: Any) -> list[list[Any]]:
    """What a chunk holds between its start and its end; the padding behind is left out."""
    inside = list(zip(ids, weights))[1:-1]
    while inside and inside[-1][0] == end:
        inside.pop()
    return [[token, str(words(token)), round(weight, 6)] for token, weight in inside]


def _tokenizer(model: Path | None, base: str) -> tuple[FragmentTokenizer, Any]:
    from ...loaders.checkpoint.configs import model_config_folder
    from .vocabulary import ClipVocabulary

    folder = model_config_folder(base) if model is None else model.expanduser()
    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"`{folder}` has no folder `tokenizer`. Give a pipeline's folder, or --base without --model.")
    vocabulary = ClipVocabulary(folder / "tokenizer")
    open_clip = vocabulary.pad_token_id != vocabulary.eos_token_id
    return FragmentTokenizer(vocabulary, open_clip=open_clip), vocabulary.convert_ids_to_tokens


def _networks(prompt: str, folder: Path | None) -> list[dict[str, Any]]:
    """The networks that the prompt asks for, each with its file in `folder`."""
    tags = split_network_tags(strip_comments(prompt))[1]
    if not tags:
        return []
    from ...loaders.lora.library import NetworkLibrary, network_mentions

    library = NetworkLibrary()
    library.folder = folder
    found = []
    for mention in network_mentions(tags):
        entry = library.find(mention.name)
        found.append({**mention._asdict(), "file": None if entry is None else str(entry.path)})
    return found


def _print_prompt(found: Mapping[str, Any]) -> None:
    for number, piece in enumerate(found["pieces"]):
        if len(found["pieces"]) > 1 or piece["weight"] != 1:
            click.secho(f"{'AND: ' if number else ''}weight {piece['weight']:g}: {piece['text'].strip()}", bold=True)
        for variant in piece["variants"]:
            if len(piece["variants"]) > 1:
                click.secho(f"{_steps(variant)}: {variant['text']}", fg="magenta", bold=True)
            chunks = variant["chunks"]
            click.secho(f"{variant['tokens']} tokens in {len(chunks)} chunk{'s'[: len(chunks) != 1]}", dim=True)
            for index, chunk in enumerate(chunks):
                click.echo(f"{click.style(f' {index + 1} ', reverse=True)} {_tokens_line(chunk)}")
    for network in found["networks"]:
        where = network["file"] or "not in the folder given with --lora-folder"
        line = f"network {network['name']}: text encoder {network['te']:g}, UNet {network['unet']:g} ({where})"
        click.secho(line, fg="green" if network["file"] else "yellow")


def _steps(variant: Mapping[str, Any]) -> str:
    first, last = variant["first_step"], variant["last_step"]
    if first is None:
        return "never read"
    return f"step {first}" if first == last else f"steps {first}-{last}"


def _tokens_line(chunk: list[list[Any]]) -> str:
    """Tokens side by side, the color by weight: warmer above 1, colder below; the number where it changes."""
    line, before = "", 1.0
    for _, token, weight in chunk:
        if weight != before:
            line += click.style(f"{weight:g}:", dim=True)
            before = weight
        line += click.style(token.replace("</w>", ""), **_weight_style(weight))
        line += " " if token.endswith("</w>") else click.style("·", dim=True)
    return line or click.style("(padding)", dim=True)


def _weight_style(weight: float) -> dict[str, Any]:
    styles: tuple[tuple[float, dict[str, Any]], ...] = (
        (0.0, {"fg": "red", "reverse": True}),
        (0.8, {"fg": "blue"}),
        (1.0, {"fg": "cyan"}),
        (1.0001, {}),
        (1.25, {"fg": "yellow"}),
    )
    return next((style for limit, style in styles if weight < limit), {"fg": "red", "bold": True})
