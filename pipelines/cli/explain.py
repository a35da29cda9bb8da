"""`explain`: what a prompt becomes. Tokens by chunk with their weights, the steps at which the text changes, networks.

Nothing is loaded but a tokenizer, which comes with the package.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..prompt.attention import parse_attention
from ..prompt.chunks import chunk_tokens, tokenize_fragments
from ..prompt.clip_tokenizer import FragmentTokenizer
from ..prompt.comments import strip_comments
from ..prompt.composition import split_and
from ..prompt.network_tags import split_network_tags
from ..prompt.schedule import parse_schedule
from .common import tell, told


BASE_CHOICES = ("sd1", "sd2", "sdxl")


class PromptReading(NamedTuple):
    """How a prompt is read. Steps are the user's; a second-order sampler calls the model twice in each."""

    steps: int
    hires_steps: int | None
    calls_per_step: int
    emphasis: str
    backtrack: int
    legacy: bool


@told
def explain_command(
    prompt: Annotated[str, typer.Argument(help="The prompt, in quotes.")],
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    second_order: Annotated[
        bool, typer.Option("--second-order", help="Heun, DPM++ SDE ...: two calls a step.")
    ] = False,
    hires_steps: Annotated[int | None, typer.Option(min=1, help="Show the hires pass of so many steps.")] = None,
    model: Annotated[Path | None, typer.Option(help="A pipeline's folder, for its own tokenizer.")] = None,
    base: Annotated[str, typer.Option(help="sd1, sd2 or sdxl, without a model.")] = "sd1",
    emphasis: Annotated[str, typer.Option(help="Original, No norm, Ignore or None.")] = "Original",
    backtrack: Annotated[int, typer.Option(help="comma_padding_backtrack")] = 20,
    legacy: Annotated[bool, typer.Option("--old-scheduling", help="Edits as before version 1.6.")] = False,
    lora_folder: Annotated[Path | None, typer.Option(envvar="WEBUI_DIFFUSERS_LORAS")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Show what a prompt becomes: chunks of tokens with weights, changes by step, networks."""
    reading = PromptReading(steps, hires_steps, 2 if second_order else 1, emphasis, backtrack, legacy)
    tokenizer, words = _tokenizer(model, base)
    found = explain_prompt(prompt, reading, tokenizer, words)
    found["networks"] = _networks(prompt, lora_folder)
    tell(found, as_json, _show_prompt)


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
    from transformers import CLIPTokenizer

    from ...loaders.checkpoint.configs import model_config_folder

    if base not in BASE_CHOICES:
        raise ValueError(f"`--base` must be {', '.join(BASE_CHOICES)}; got {base!r}.")
    folder = model_config_folder(base) if model is None else model
    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"`{folder}` has no folder `tokenizer`. Give a pipeline's folder, or --base without --model.")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    open_clip = tokenizer.pad_token_id != tokenizer.eos_token_id
    return FragmentTokenizer(tokenizer, open_clip=open_clip), tokenizer.convert_ids_to_tokens


def _networks(prompt: str, folder: Path | None) -> list[dict[str, Any]]:
    from ...loaders.lora.library import NetworkLibrary, network_mentions

    library = NetworkLibrary()
    library.folder = folder
    found = []
    for mention in network_mentions(split_network_tags(strip_comments(prompt))[1]):
        entry = library.find(mention.name)
        found.append({**mention._asdict(), "file": None if entry is None else str(entry.path)})
    return found


def _show_prompt(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for number, piece in enumerate(found["pieces"]):
        if len(found["pieces"]) > 1 or piece["weight"] != 1:
            console.print(
                Text(f"{'AND: ' if number else ''}weight {piece['weight']:g}: {piece['text'].strip()}", "bold")
            )
        for variant in piece["variants"]:
            if len(piece["variants"]) > 1:
                console.print(Text(f"{_steps(variant)}: {variant['text']}", "bold magenta"))
            chunks = variant["chunks"]
            console.print(Text(f"{variant['tokens']} tokens in {len(chunks)} chunk{'s'[: len(chunks) != 1]}", "dim"))
            for index, chunk in enumerate(chunks):
                console.print(Text(f" {index + 1} ", "reverse"), _tokens_line(chunk))
    for network in found["networks"]:
        where = network["file"] or "not in the folder given with --lora-folder"
        line = f"network {network['name']}: text encoder {network['te']:g}, UNet {network['unet']:g} ({where})"
        console.print(Text(line, "green" if network["file"] else "yellow"))


def _steps(variant: Mapping[str, Any]) -> str:
    first, last = variant["first_step"], variant["last_step"]
    if first is None:
        return "never read"
    return f"step {first}" if first == last else f"steps {first}-{last}"


def _tokens_line(chunk: list[list[Any]]) -> Any:
    """Tokens side by side, the color by weight: warmer above 1, colder below; the number where it changes."""
    from rich.text import Text

    line = Text()
    before = 1.0
    for _, token, weight in chunk:
        if weight != before:
            line.append(f"{weight:g}:", "dim")
            before = weight
        line.append(token.replace("</w>", ""), _weight_style(weight))
        line.append(" " if token.endswith("</w>") else "·", "dim")
    if not chunk:
        line.append("(padding)", "dim")
    return line


def _weight_style(weight: float) -> str:
    steps = ((0.0, "red reverse"), (0.8, "blue"), (1.0, "cyan"), (1.0001, "default"), (1.25, "yellow"))
    return next((style for limit, style in steps if weight < limit), "bold red")
