"""What all commands share: messages, exit codes, JSON, progress."""

import contextlib
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import typer


EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose errors become one message and an exit code. Other exceptions are bugs, and show themselves."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            say("Interrupted. What is finished is there whole; nothing else was left behind.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("WEBUI_DIFFUSERS_DEBUG"):
                raise
            say(f"Error: {error}", "red")
            raise typer.Exit(EXIT_FAILED) from None

    run.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return run


def say(text: str, color: str | None = None) -> None:
    """A line for people, on standard error."""
    typer.echo(typer.style(text, fg=color) if color else text, err=True)


def tell(result: Any, as_json: bool, lines: Callable[[Any], None]) -> None:
    """The result on standard output: as one line of JSON, or as `lines` shows it."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, default=str))
    else:
        lines(result)


def is_main_process() -> bool:
    """Whether this is the one of several processes (`accelerate launch`) that speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def progress_total(description: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """A bar on standard error; call what it gives with the number done. Without a terminal, a line at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not is_main_process()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


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

    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    if dtype not in names:
        raise ValueError(f"`--dtype` must be auto, {', '.join(names)}; got {dtype!r}.")
    return names[dtype]
