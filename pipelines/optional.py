"""Optional packages, imported where they are used."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import an optional package, or say how to get it.

    module: dotted name; extra: the extra of `webui-diffusers` that installs it; feature: what needs it, as the
    sentence's subject. Raises ImportError naming all three.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # `module` is there; something that it needs is not
        raise ImportError(f"{feature} needs `{module}`: pip install 'webui-diffusers[{extra}]'") from error
