"""Where this code comes from, and the data files that come with it.

The package keeps its data files beside this one. The same code as one file on the Hub (pipelines/bundle/build.py) is
copied by diffusers into a folder of its own, without them: then they lie in the Hub repository it came from.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub  # its names load when asked for


# In a bundle its head has these three, filled in; in the package they are empty.
BUNDLE_NAME = ""  # "webui-txt2img"
BUNDLE_DIGEST = ""  # of its content
BUNDLE_HOME = ""  # the Hub repository it was published in, "org/name"

# data file -> the source file that reads it
PACKAGE_FILES = {
    "configs/clip/merges.txt": "loaders/checkpoint/configs.py",
    "weights/mtcnn.safetensors": "loaders/faces/load.py",
    "weights/realesr-animevideov3.fp16.safetensors": "loaders/upscaler.py",
}


def package_file(name: str) -> Path:
    """The path of a data file in `PACKAGE_FILES`: beside this code, in the installed package, or from the Hub.

    On the Hub it is looked for in the repository and at the commit that this code was loaded from, else in the one it
    was published in. Raises FileNotFoundError, with what to install, when it is nowhere.
    """
    folders = [Path(__file__).parent]
    installed = find_spec("webui_diffusers") and find_spec("webui_diffusers.loaders")
    folders += map(Path, (installed and installed.submodule_search_locations) or [])
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    repo, commit = _code_repository(__file__)
    cause = None
    if repo:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=commit))
        except (OSError, ValueError) as error:
            cause = error
    raise FileNotFoundError(
        f"The data file `{name}` is not here: this code runs as a single file, apart from the package it comes from"
        + (f", and {repo} on the Hub did not give it ({type(cause).__name__}). " if repo else ". ")
        + "Install the package with `pip install webui-diffusers`, or connect to the network."
    ) from cause


def _code_repository(file: str) -> tuple[str, str | None]:
    """(repository, commit) that diffusers took this file from; ("", None) for one that was never on the Hub.

    >>> _code_repository("/cache/diffusers_modules/local/org--name/" + "0" * 40 + "/pipeline.py")[0]
    'org/name'
    """
    found = re.search(r"diffusers_modules[/\\]local[/\\]([\w.-]+?)--([\w.-]+)[/\\]([0-9a-f]{40})[/\\]", file)
    return (f"{found[1]}/{found[2]}", found[3]) if found else (BUNDLE_HOME, None)
