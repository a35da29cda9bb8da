"""`serve`: the webui's HTTP API on this machine."""

import ipaddress
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ...loaders.utils import require
from .common import EXIT_USAGE, DrawCommand, report
from .library import folder_options, read_library
from .models import model_options, read_setup


LAST_IMAGES = 600  # seconds that a server which goes down waits for the images in hand
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@click.command("serve", cls=DrawCommand)
@model_options
@folder_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535))
@click.option("--api-auth", multiple=True, metavar="USER:PASSWORD", help="Who may call; may be repeated.")
@click.option("--cors-allow-origins", multiple=True, metavar="ORIGIN", help="Pages that may call; may be repeated.")
@click.option("--max-queue", default=32, show_default=True, type=click.IntRange(1), help="Requests that may wait.")
@click.option("--no-page", is_flag=True, help="Only the API, no page at `/`.")
@click.option("--out", type=click.Path(path_type=Path), help="Where `save_images` writes; without it, nowhere.")
@click.option("--i-know", is_flag=True, help="Listen beyond this machine without --api-auth.")
def serve_command(
    host: str,
    port: int,
    api_auth: Sequence[str],
    cors_allow_origins: Sequence[str],
    max_queue: int,
    no_page: bool,
    out: Path | None,
    i_know: bool,
    **values: Any,
) -> None:
    """Answer the webui's API, /sdapi/v1, for the clients that speak it, and show a page to paste parameters into.

    One model, one picture at a time, for clients and page in the order of arrival.

    Files are found by name in the folders that are named here; no path, URL or Hub id of a request is opened.
    """
    refusal = open_door_refusal(host, api_auth, i_know)
    if refusal is not None:
        report(f"Error: {refusal}", "red")
        raise click.exceptions.Exit(EXIT_USAGE)
    uvicorn = require("uvicorn", extra="serve", feature="The server")
    require("fastapi", extra="serve", feature="The server")
    from ..infotext.styles import read_styles
    from ..serve.application import app

    source, styles = served(values)
    made = app(
        source,
        auth=api_auth,
        cors_allow_origins=cors_allow_origins,
        max_queue=max_queue,
        styles=read_styles(styles) if styles is not None else None,
        output_folder=None if out is None else str(out),
        hosts=() if api_auth or i_know else (*LOCAL_NAMES, host),
    )
    page = "no page" if no_page else with_page(made)
    report(f"Serving on http://{host}:{port}: {page}; the API, documented at /docs. Ctrl-C ends it.")
    config = uvicorn.Config(made, host=host, port=port, log_level="warning", timeout_graceful_shutdown=LAST_IMAGES)

    class Server(uvicorn.Server):
        """Told to go down, it draws the images in hand to their end; told again, it ends after the step in hand."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            threading.Thread(target=made.state.worker.stop).start()
            super().handle_exit(sig, frame)

    Server(config).run()


def with_page(made: Any) -> str:
    """Put the page at `/` of the application where Gradio is installed; what is there then, in words."""
    if find_spec("gradio") is None:
        return "no page (it needs Gradio: pip install 'webui-diffusers[ui]')"
    from ..serve.page import mount_page

    mount_page(made)
    return "a page to paste into"


def open_door_refusal(host: str, auth: Sequence[str], i_know: bool) -> str | None:
    """Why the server does not start like this; None where it may."""
    for pair in auth:
        if not all(pair.partition(":")[::2]):
            return "`--api-auth` takes USER:PASSWORD, both not empty."
    if auth or i_know or host == "localhost":
        return None
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if local:
        return None
    return (
        f"`--host {host}` lets other machines in, and anybody there could draw with this one. Give --api-auth "
        "USER:PASSWORD, or --i-know where something else guards the door."
    )


def served(values: Mapping[str, Any]) -> tuple[Any, Path | None]:
    """What is served, and the file of styles: a library of files, or the pipeline of --model."""
    library = read_library(values)
    if library is not None and not values.get("model"):
        return library, library.styles
    from .models import load_txt2img

    pipe = load_txt2img(read_setup(values), bars=False)
    if values["lora_folder"] is not None:
        pipe.lora_folder = values["lora_folder"]
    return pipe, None if library is None else library.styles
