"""The command line `webui-diffusers`. A command's module is imported when the command runs, so that --help is quick.

Exit codes: 0 done; 1 something asked for could not be done, or not all of it; 2 wrong usage; 130 interrupted.
Results go to standard output (as JSON with --json), everything else to standard error.
"""

from importlib import import_module
from typing import Any

import click

from ...loaders.utils import unknown_choice


# Command -> what it does, in a line. `name` is `name_command` in a module of the same name, but for those in _HOME.
_COMMANDS = {
    "txt2img": "Draw pictures as the webui's txt2img tab does.",
    "img2img": "Draw over a picture, or with a mask over a part of it.",
    "grid": "Draw a labelled sheet with arguments along its axes.",
    "batch": "Draw a file of jobs, alone or with other processes.",
    "info": "Show the parameters in pictures.",
    "explain": "Show what a prompt becomes: tokens, weights, steps, networks.",
    "lora": "Show what network files hold, and what of them fits a model.",
    "restore": "Restore the faces in pictures.",
    "upscale": "Enlarge pictures.",
    "serve": "Answer the webui's HTTP API, for the clients that speak it.",
}
_HOME = {"restore": "images", "upscale": "images"}


class LazyCommands(click.Group):
    """The commands of _COMMANDS, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which --help lists them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f".{_HOME.get(cmd_name, cmd_name)}", __package__)
        return getattr(module, f"{cmd_name}_command")

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does; an unknown name is refused with the near ones."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(unknown_choice("command", args[0], _COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    "webui-diffusers",
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`webui-diffusers COMMAND --help` says the rest. "
    "Exit codes: 0 done, 1 something could not be done, 2 wrong usage, 130 interrupted.",
)
@click.version_option(package_name="webui-diffusers", message="webui-diffusers %(version)s")
def app() -> None:
    """The pictures of AUTOMATIC1111's webui, from one line of diffusers."""


def main() -> None:
    """Entry point of the command `webui-diffusers`."""
    app(prog_name="webui-diffusers")
