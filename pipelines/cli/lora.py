"""`lora`: what network files hold, and what of them would apply to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import EXIT_FAILED, say, tell, told


@told
def lora_command(
    files: Annotated[list[str], typer.Argument(help="Network files, PEFT folders or Hub ids.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model to match layers with.")] = None,
    semantics: Annotated[str, typer.Option(help="Whose rules: webui, reference or auto.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a file.")] = False,
) -> None:
    """Show what network files hold; with --model, which layers would apply, be passed over, or fit nowhere."""
    from ...loaders.lora.read import read_network

    layers = _model_layers(model)
    failed = False
    for file in files:
        try:
            network = read_network(file)
            tell(_network_facts(network, layers, semantics), as_json, _show_network)
        except ValueError as error:
            say(f"Error: {error}", "red")
            failed = True
    if failed:
        raise typer.Exit(EXIT_FAILED)


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
        "embeddings": sorted(network.embeddings),
        "table": network.table(),
    }
    if layers is not None:
        from ...loaders.lora.plan import network_uses, plan_networks

        _, (report,) = plan_networks(layers, network_uses([(network, 1.0, 1.0)]), semantics, strict=False)
        facts["applied"] = report.applied
        facts["passed_over"] = report.passed_over
        facts["unknown"] = report.unknown
        facts["errors"] = report.errors
        facts["report"] = str(report)
    return facts


def _show_network(facts: Mapping[str, Any]) -> None:
    typer.echo(facts["table"])
    if facts["embeddings"]:
        typer.echo(f"  embeddings inside: {', '.join(facts['embeddings'])}")
    if facts["hash"]:
        typer.echo(f"  hash: {facts['hash']}")
    if "report" in facts:
        typer.echo(f"  on the model: {facts['report']}")
