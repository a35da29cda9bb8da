"""The fast suite on every Python that is promised and found here, with the newest versions of what the pack stands on,
and with the oldest that pyproject.toml admits.

make matrix                              all of it
.venv/bin/nox -s newest-3.13               one of it
.venv/bin/nox -s oldest -- -x -k merge     with arguments for pytest
"""

from pathlib import Path

import nox


nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False  # it is listed as skipped

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
TESTED_EXTRAS = ("serve", "ui", "dynamic", "detect")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "huggingface_hub", "numpy", "safetensors")


def oldest_versions() -> list[str]:
    """`name==version` for the lower bound of everything that pyproject.toml asks for."""
    project = PROJECT["project"]
    asked = [*project["dependencies"]]
    for extra in TESTED_EXTRAS:
        asked += project["optional-dependencies"][extra]
    return [requirement.replace(">=", "==") for requirement in asked if ">=" in requirement]


def run_suite(session: nox.Session, *constraints: str, warnings: str | None = None) -> None:
    session.install("--editable", ".[dev]", *constraints)
    session.install("setuptools", "wheel", *constraints)
    session.install("--no-deps", "--no-build-isolation", "--requirement", "tests/no-deps.txt")
    versions = f"from importlib.metadata import version; print(*(f'{{p}} {{version(p)}}' for p in {PACKAGES}))"
    session.run("python", "-c", versions)
    options = [] if warnings is None else ["-W", warnings]
    session.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        *options,
        *session.posargs,
    )


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest versions of everything."""
    run_suite(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The lower bounds of pyproject.toml, on the oldest Python: its wheels exist for no newer one."""
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("\n".join(oldest_versions()), encoding="utf-8")
    run_suite(session, "--constraint", str(constraints), warnings="default")  # of versions long gone
