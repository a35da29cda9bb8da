"""A Space of the page: app, requirements, README and the pack's own sources, in one folder that runs alone."""

import shutil
import string
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from webui_diffusers.pipelines.bundle.build import PACK_ROOT, pack_version

from hub.sending import UploadError


TEMPLATES = Path(__file__).parent / "space"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def write_space(folder: Path) -> Path:
    """Write a Space into `folder`, where files of the same names are replaced; the folder. Nothing is sent.

    Raises UploadError where Gradio, whose version the Space's README names, is not installed.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise UploadError(
            "A Space's README names the version of Gradio, and here is none: pip install 'webui-diffusers[ui]'."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    readme = string.Template((TEMPLATES / "README.md").read_text(encoding="utf-8"))
    text = readme.substitute(gradio=gradio, version=pack_version())
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
    (folder / "requirements.txt").write_text(space_requirements(), encoding="utf-8", newline="\n")
    shutil.copyfile(TEMPLATES / "app.py", folder / "app.py")
    shutil.copyfile(TEMPLATES.parent.parent / "LICENSE", folder / "LICENSE")
    for part in ("pipelines", "loaders"):
        target = folder / "webui_diffusers" / part
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(PACK_ROOT / part, target, ignore=_LEFT_OUT)
    return folder


def space_requirements() -> str:
    """What the pack and its server need. Gradio is not among it: a Space installs the version of its README."""
    lines = []
    for line in requires("webui-diffusers") or []:
        package, _, condition = (part.strip() for part in line.partition(";"))
        if not condition or condition in ('extra == "serve"', "extra == 'serve'"):
            lines.append(package)
    return "".join(f"{line}\n" for line in sorted(lines))
