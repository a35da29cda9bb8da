"""What all commands share: options under headings, messages, exit codes, JSON, progress."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import click


EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, without importing torch to name it


class HeadedOption(click.Option):
    """An option that stands under a heading of its own in --help."""

    def __init__(self, *args: Any, heading: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class DrawCommand(click.Command):
    """A command whose options are listed by heading, and whose errors are one message and an exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": _HELP_SETTINGS, **kwargs})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by heading, the command's own first."""
        by_heading: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                by_heading.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for heading, records in by_heading.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see `handle_errors`."""
        with handle_errors():
            return super().invoke(ctx)


def add_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that gives a command these options, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON, one line.")


@contextlib.contextmanager
def handle_errors() -> Iterator[None]:
    """Print ValueError, OSError, ImportError and a full GPU as one message and exit 1; let anything else raise.

    An interrupt exits with 130. With WEBUI_DIFFUSERS_DEBUG set, errors raise as they are.
    """
    try:
        yield
    except KeyboardInterrupt:
        report("Interrupted. Finished pictures are kept; no half-written file is left.")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except (BrokenPipeError, click.ClickException):
        raise
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        ours = not isinstance(error, RuntimeError) or type(error).__name__ == _OUT_OF_MEMORY
        if not ours or os.environ.get("WEBUI_DIFFUSERS_DEBUG"):
            raise
        report(f"Error: {error_message(error)}", "red")
        raise click.exceptions.Exit(EXIT_FAILED) from None


def error_message(error: BaseException) -> str:
    """An error in words for people; the system's errors without their numbers."""
    if type(error).__name__ == _OUT_OF_MEMORY:
        return (
            "the GPU has too little memory for this. Draw fewer pictures at once or smaller ones, or use "
            "--dtype float16 or --device cpu."
        )
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"`{error.filename}`: {error.strerror.lower()}."
    return str(error) or type(error).__name__


def report(text: str, color: str | None = None) -> None:
    """A line for people, on standard error."""
    click.secho(text, fg=color, err=True)


def print_result(result: Any, as_json: bool, lines: Callable[[Any], None]) -> None:
    """The result on standard output: as one line of JSON, or as `lines` prints it."""
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False, default=str).encode("utf-8", "replace"))
    else:
        lines(result)


def is_main_process() -> bool:
    """Whether this is the one of several processes (`accelerate launch`) that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def progress_total(description: str, total: int) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, where that is a terminal; call what it gives with the number done."""
    from tqdm import tqdm

    hidden = None if is_main_process() else True  # None: hidden without a terminal
    shape = "{l_bar}{bar}| {n:.4g}/{total} {remaining}"
    with tqdm(total=total, desc=description, disable=hidden, bar_format=shape) as bar:

        def update(done: float) -> None:
            bar.n = done
            bar.refresh()

        yield update


def choose_device(device: str | None) -> str:
    """The device to draw on: as asked, else this process's GPU, else Apple's, else the CPU."""
    if device:
        return device
    import torch

    if torch.cuda.is_available() and not _asks_for_cpu():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() and not _asks_for_cpu() else "cpu"


def _asks_for_cpu() -> bool:
    """`accelerate launch --cpu` says so in the environment."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def choose_dtype(dtype: str, device: str) -> Any:
    """torch's dtype by name; "auto" is float16 on a GPU, as in the webui, and float32 elsewhere."""
    import torch

    name = dtype if dtype != "auto" else "float16" if device.startswith("cuda") else "float32"
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
