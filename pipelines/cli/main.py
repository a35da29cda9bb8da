"""The command line `webui-diffusers`. Commands import what they need when they run, so that --help is quick.

Exit codes: 0 done; 1 something asked for could not be done, or not all of it; 2 wrong usage; 130 interrupted.
Results go to standard output (as JSON with --json), everything else to standard error.
"""

import typer

from .batch import batch_command
from .explain import explain_command
from .grid import grid_command
from .images import restore_command, upscale_command
from .info import info_command
from .lora import lora_command
from .txt2img import txt2img_command


_EPILOG = "Exit codes: 0 done, 1 something could not be done, 2 wrong usage, 130 interrupted."

app = typer.Typer(
    name="webui-diffusers",
    help="The webui's pictures, from one line of diffusers.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in {
    "txt2img": txt2img_command,
    "grid": grid_command,
    "batch": batch_command,
    "info": info_command,
    "explain": explain_command,
    "lora": lora_command,
    "restore": restore_command,
    "upscale": upscale_command,
}.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point of the command `webui-diffusers`."""
    app()
