"""`lora`: what network files hold, and what of them would apply to a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .common import EXIT_FAILED, DrawCommand, json_option, print_result, report


@click.command("lora", cls=DrawCommand)
@click.argument("files", nargs=-1, required=True)
@click.option("--model", "-m", help="Model to match layers with.")
@click.option(
    "--semantics", type=click.Choice(["webui", "reference", "auto"]), default="auto", help="Whose rules count."
)
@json_option
def lora_command(files: Sequence[str], model: str | None, semantics: str, as_json: bool) -> None:
    """Show what network files hold; with --model, which layers would apply, be skipped, or fit nowhere.

    FILES are network files, PEFT folders or Hub ids. With --json, a line for each.
    """
    from ...loaders.lora.read import read_network

    layers = _model_layers(model)
    failed = False
    for file in files:
        try:
            network = read_network(file)
            print_result(_network_facts(network, layers, semantics), as_json, _print_network)
        except ValueError as error:
            report(f"Error: {error}", "red")
            failed = True
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def _model_layers(model: str | None) -> Any:
    if model is None:
        return None
    from ...loaders.lora.targets import PipeLayers
    from .models import ModelSetup, load_txt2img

    return PipeLayers(load_txt2img(ModelSetup(model=model, device="cpu", dtype="float32")))


def _network_facts(network: Any, layers: Any, semantics: str) -> dict[str, Any]:
    facts = {
        "name": network.name,
        "path": str(network.path),
        "base": network.base,
        "hash": network.short_hash if Path(str(network.path)).exists() else "",
        "layers": len(network.layers),
        "families": network.families,
        "ranks": network.ranks,
        "trigger_words": network.trigger_words,
        "unknown_keys": network.unknown_keys,
        "embeddings": network.embedding_names,
        "table": network.table(),
    }
    if layers is not None:
        from ...loaders.lora.plan import network_uses, plan_networks

        _, (applied,) = plan_networks(layers, network_uses([(network, 1.0, 1.0)]), semantics, strict=False)
        facts["applied"] = applied.applied
        facts["passed_over"] = applied.passed_over
        facts["unknown"] = applied.unknown
        facts["errors"] = applied.errors
        facts["report"] = str(applied)
    return facts


def _print_network(facts: Mapping[str, Any]) -> None:
    click.echo(facts["table"])
    if facts["embeddings"]:
        click.echo(f"  embeddings inside: {', '.join(facts['embeddings'])}")
    if facts["hash"]:
        click.echo(f"  hash: {facts['hash']}")
    if "report" in facts:
        click.echo(f"  on the model: {facts['report']}")
