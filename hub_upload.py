"""Put the pipelines on the Hugging Face Hub, each in a repository of its own, loaded by one line of diffusers.

    python hub_upload.py --namespace your-org                          all pipelines
    python hub_upload.py --namespace your-org --only webui-txt2img     one (may be repeated)
    python hub_upload.py --namespace your-org --dry-run --out dist/hub nothing leaves this machine
    python hub_upload.py --namespace your-org --only webui-txt2img --with-weights MODEL

The token comes from `--token`, HF_TOKEN or `hf auth login`; the Hub from HF_ENDPOINT. A repository gets `pipeline.py`,
the same code under a name of its own, the data files it reads, a model card, requirements.txt and LICENSE; with
weights also the model's folders. It is tried in a process of its own before anything is sent.
"""

import argparse
import json
import os
import re
import runpy
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import tqdm
from webui_diffusers.loaders.data_files import PACKAGE_FILES, package_file
from webui_diffusers.pipelines.bundle.build import (
    PACK_ROOT,
    PIPELINES,
    bundle,
    bundle_module_name,
    bundle_sources,
    pack_version,
)
from webui_diffusers.pipelines.bundle.sources import BUNDLE_REQUIREMENTS


HUB_FOLDER = Path(__file__).parent / "hub"
HTTP_LIBRARIES = ("httpx", "httpx2", "requests")  # of huggingface_hub, by version; their errors are theirs
ALWAYS_REQUIRED = ("accelerate", "diffusers", "torch", "transformers")


class UploadError(RuntimeError):
    """What stopped the upload, and what to do."""


def available_pipelines() -> list[str]:
    """The names of the pipelines that can be put on the Hub."""
    known = [name for name, entry in PIPELINES.items() if (PACK_ROOT / entry.file).is_file()]
    return [name for name in known if (HUB_FOLDER / "cards" / f"{name}.md").is_file()]


# --- a repository's folder


def build_repository(name: str, folder: Path, repo: str, *, model: Path | None = None) -> Path:
    """Write a repository's files into `folder`, which is emptied first; the folder.

    name: of a pipeline; repo: its future name on the Hub, "org/name"; model: a folder with weights that go along.
    Raises UploadError for weights that the pipeline cannot take.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry, text = PIPELINES[name], bundle(name, home=repo)
    for file in ("pipeline.py", f"{bundle_module_name(name)}.py"):
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    sources = bundle_sources(entry.file)
    read_by = {source.name for source in sources}
    for file in (file for file, reader in PACKAGE_FILES.items() if reader in read_by):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package_file(file), folder / file)
    packages = {item.module.partition(".")[0] for source in sources for item in source.others}
    (folder / "requirements.txt").write_text(requirements_text(packages), encoding="utf-8")
    card = string.Template((HUB_FOLDER / "cards" / f"{name}.md").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(card.substitute(repo=repo, version=pack_version()), encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / "LICENSE", folder / "LICENSE")
    if model is not None:
        _add_weights(name, folder, model)
    elif name == "face-restore":
        _add_detector(name, folder)
    return folder


def requirements_text(packages: set[str]) -> str:
    """requirements.txt for what a bundle imports, with the versions that the pack's own metadata asks for.

    >>> requirements_text({"torch", "PIL", "re"}).splitlines()[-2:]
    ['torch>=2.4', 'transformers>=4.57']
    """
    lines = [line for line in requires("webui-diffusers") or [] if ";" not in line]  # without the extras'
    asked = {re.split(r"[^\w.-]", line)[0].lower(): line for line in lines}
    wanted = {BUNDLE_REQUIREMENTS[package] for package in packages if package in BUNDLE_REQUIREMENTS}
    return "".join(f"{asked.get(name, name)}\n" for name in sorted({*wanted, *ALWAYS_REQUIRED}))


def _add_weights(name: str, folder: Path, model: Path) -> None:
    """A model's files beside the code, and an index that names our class."""
    if not (model / "model_index.json").is_file():
        raise UploadError(
            f"`{model}` has no model_index.json, so it is no diffusers model folder. Convert a single file first: "
            "`WebUITxt2ImgPipeline.from_single_file(file).save_pretrained(folder)`."
        )
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    parts = {key: value for key, value in index.items() if not key.startswith("_") and (model / key).is_dir()}
    settings = {k: v for k, v in index.items() if not k.startswith("_") and not isinstance(v, list)}
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if part not in parts]
    is_xl = "text_encoder_2" in parts
    wrong_size = {"multi-lora": is_xl, "multi-lora-xl": not is_xl}.get(name, False)
    if missing or wrong_size or name == "face-restore":
        why = f"it lacks {', '.join(missing)}" if missing else "it is made for another kind of model"
        raise UploadError(
            f"The weights of `{model}` ({index.get('_class_name')}) cannot go with {name}: {why}. Choose the "
            f"pipelines that "
            "they fit with --only."
        )
    empty = {
        key: [None, None]
        for key, value in index.items()
        if isinstance(value, list) and key not in parts and key[0] != "_"
    }
    for part in parts:
        shutil.copytree(model / part, folder / part, copy_function=_linked_or_copied)
    _write_index(name, folder, {**empty, **parts, **settings})


def _add_detector(name: str, folder: Path) -> None:
    """The one part of face restoration that ships, so that the folder loads alone; the restorer is the caller's."""
    from webui_diffusers.loaders.faces.load import load_face_detector

    detector, module = load_face_detector(), bundle_module_name(name)
    detector.save_pretrained(folder / "face_detector")
    shutil.copyfile(folder / f"{module}.py", folder / "face_detector" / f"{module}.py")
    empty = {part: [None, None] for part in ("face_restorer", "face_parser", "upscaler")}
    _write_index(name, folder, {**empty, "face_detector": [module, type(detector).__name__]})


def _write_index(name: str, folder: Path, parts: Mapping[str, object]) -> None:
    from diffusers import __version__ as diffusers_version

    head = {
        "_class_name": [bundle_module_name(name), PIPELINES[name].class_name],
        "_diffusers_version": diffusers_version,
    }
    text = json.dumps({**head, **parts}, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")


def _linked_or_copied(source: str, target: str) -> str:
    """Weights are large: another name for the same file where the disk allows it."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def try_repository(name: str, folder: Path, model: Path | None) -> str:
    """Load the pipeline from its folder in a process that does not know the package, and draw one picture; a summary.

    model: with whose weights; None where the folder has its own. Raises UploadError with what that process said.
    """
    class_name = PIPELINES[name].class_name
    command = [sys.executable, str(HUB_FOLDER / "try_folder.py"), str(folder), class_name]
    with tempfile.TemporaryDirectory() as modules:
        offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        done = subprocess.run(
            [*command, *([] if model is None else [str(model)])],
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise UploadError(f"{name} does not work from its own folder `{folder}`, so nothing was sent:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


# --- the Hub


def publish(folder: Path, repo: str, *, token: str | None, private: bool, revision: str | None) -> str:
    """Create the repository if needed, commit the folder, tag the commit; the commit's name.

    The same content again makes no new commit. revision: the tag; None is "v" and the pack's version, left where
    it is if it exists. Raises UploadError for what the Hub does not allow, saying what to do.
    """
    api = HfApi(token=token)
    module = next(path.stem for path in folder.glob("webui_*.py"))
    if not api.repo_exists(repo):
        api.create_repo(repo, private=private)
    else:
        _refuse_foreign(api, repo, module)
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        commit_message=f"{folder.name} {pack_version()}",
        ignore_patterns=["__pycache__/*", "**/__pycache__/*"],
    ).oid
    _tag(api, repo, commit, revision)
    return commit


def _refuse_foreign(api: HfApi, repo: str, module: str) -> None:
    """Refuse a repository that holds something else."""
    files = api.list_repo_files(repo)
    if f"{module}.py" not in files and set(files) - {".gitattributes", "README.md"}:
        raise UploadError(
            f"The name is taken: {repo} exists and holds other files ({', '.join(sorted(files)[:3])}, ...), and no "
            f"{module}.py. Choose another --namespace, or move that repository."
        )


def _tag(api: HfApi, repo: str, commit: str, revision: str | None) -> None:
    known = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    name = revision or f"v{pack_version()}"
    if name not in known:
        api.create_tag(repo, tag=name, revision=commit)
    elif revision and known[name] != commit:
        raise UploadError(
            f"{repo}: the tag {name} exists and names another commit ({known[name][:12]}). Tags do not move: whoever "
            f"loads "
            "it trusts its content. The new content is committed; give it another --revision."
        )
    elif known[name] != commit:
        print(f"{repo}: the tag {name} stays at {known[name][:12]}; name a new one with --revision.")


def check_access(namespace: str, token: str | None) -> None:
    """Raises UploadError where there is no token, the Hub does not accept it, or it may not write to the namespace."""
    if token is None:
        raise UploadError(
            "There is no token, and uploading needs one. Make one that may write at "
            "https://huggingface.co/settings/tokens "
            "and run `hf auth login`, set HF_TOKEN, or pass --token. --dry-run needs none."
        )
    user = HfApi(token=token).whoami()
    owned = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    if namespace not in owned:
        raise UploadError(
            f"The token is {user['name']}'s, who may not write to `{namespace}`. It may write to {', '.join(owned)}: "
            f"name one "
            "of these with --namespace, or use a token of a member."
        )


def explained(error: Exception) -> str:
    """An error of the Hub or the network in words that say what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if status == 401:
        return f"{where} does not accept the token. It may have expired: make a new one and pass it with --token."
    if status == 403:
        return f"{where} accepts the token but does not allow this: {error}. Use a token with the right to write."
    if status is None:
        return (
            f"{where} cannot be reached ({type(error).__name__}: {error}). Check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE; --dry-run works without."
        )
    return f"{where} answered with an error: {error}. Nothing else was sent; try again later."


# --- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, try, send. 0, or 1 after an error that was printed."""
    asked = _parsed(arguments)
    names = asked.only or available_pipelines()
    try:
        if not asked.dry_run:
            check_access(asked.namespace, asked.token or get_token())
        with tempfile.TemporaryDirectory(prefix="webui-diffusers-") as scratch:
            folders = _built(names, asked, Path(asked.out or scratch), Path(scratch))
            for name, folder in folders.items():
                repo = f"{asked.namespace}/{name}"
                if not asked.dry_run:
                    options = {"private": asked.private, "revision": asked.revision}
                    commit = publish(folder, repo, token=asked.token or get_token(), **options)
                    print(f"{repo}: commit {commit[:12]}")
            for name, folder in folders.items():
                place = str(folder) if asked.dry_run else f"{asked.namespace}/{name}"
                print(lines_to_paste(name, place, asked.with_weights is not None))
    except UploadError as error:
        print(f"hub_upload: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in HTTP_LIBRARIES:
            raise
        print(f"hub_upload: {explained(error)}", file=sys.stderr)
        return 1
    return 0


def _built(names: Sequence[str], asked: argparse.Namespace, out: Path, scratch: Path) -> dict[str, Path]:
    """name -> its folder, each built and tried."""
    weights = None if asked.with_weights is None else _model_folder(asked.with_weights, asked.token)
    tiny: dict[bool, Path] = {}
    folders = {}
    for name in (progress := tqdm(names, desc="Build and try", unit="pipeline")):
        progress.set_postfix_str(name)
        folders[name] = build_repository(name, out / name, f"{asked.namespace}/{name}", model=weights)
        xl = name.endswith("-xl")
        if weights is None and xl not in tiny and name != "face-restore":
            script = runpy.run_path(str(HUB_FOLDER / "tiny_model.py"))
            tiny[xl] = script["save_tiny_model"](scratch / f"tiny-{'xl' if xl else 'sd'}", xl=xl)
        progress.write(try_repository(name, folders[name], None if weights else tiny.get(xl)))
    return folders


def _model_folder(model: str, token: str | None) -> Path:
    """A local model folder, or one of the Hub, downloaded."""
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(model, token=token))


def lines_to_paste(name: str, place: str, with_weights: bool) -> str:
    """The lines that load the pipeline."""
    model = place if with_weights else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    if name.endswith("-xl") and not with_weights:
        model = "stabilityai/stable-diffusion-xl-base-1.0"
    options = ["trust_remote_code=True"] if with_weights else [f'custom_pipeline="{place}"', "trust_remote_code=True"]
    if name == "face-restore":
        model, options = place, ['face_restorer="GFPGAN"', "trust_remote_code=True"]
    call = f'pipe = DiffusionPipeline.from_pretrained("{model}", {", ".join(options)})'
    return f"\n# {name}\nfrom diffusers import DiffusionPipeline\n{call}"


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hub_upload.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--namespace", required=True, help="your name on the Hub, or your organisation's")
    parser.add_argument(
        "--only", action="append", choices=available_pipelines(), help="this pipeline; may be repeated"
    )
    parser.add_argument("--private", action="store_true", help="create repositories that only you can see")
    parser.add_argument("--revision", help="tag for the commit; default: v and the version")
    parser.add_argument("--dry-run", action="store_true", help="build and try, but send nothing")
    parser.add_argument("--out", help="where to build; default: a folder that is removed afterwards")
    parser.add_argument("--with-weights", metavar="MODEL", help="folder or Hub id of a model whose weights go along")
    parser.add_argument("--token", help="default: HF_TOKEN, or that of `hf auth login`")
    asked = parser.parse_args(arguments)
    if asked.dry_run and not asked.out:
        asked.out = "dist/hub"
    return asked


if __name__ == "__main__":
    sys.exit(main())
