"""Put the pipelines on the Hugging Face Hub, each in a repository of its own, loaded by one line of diffusers.

    python hub_upload.py --namespace your-org                          all pipelines
    python hub_upload.py --namespace your-org --only webui-txt2img     one (may be repeated)
    python hub_upload.py --namespace your-org --dry-run --out dist/hub nothing leaves this machine
    python hub_upload.py --namespace your-org --only webui-txt2img --with-weights MODEL
    python hub_upload.py --namespace your-org --only webui-blocks-xl   blocks for Modular Diffusers
    python hub_upload.py --space --out dist/space                      a Space of the page, to look at and send
    python hub_upload.py --namespace your-org --community --out dist/community
                                                                       files for diffusers' examples/community

The token comes from `--token`, HF_TOKEN or `hf auth login`; the Hub from HF_ENDPOINT. A repository gets `pipeline.py`,
the same code under a name of its own, the data files it reads, a model card, requirements.txt and LICENSE; with
weights also what model_index.json and its components name (and, with --endpoint, handler.py for Inference Endpoints);
what else is in the model's folder is left out, and listed.
One of blocks has `block.py` instead, with the two files by which diffusers finds it.
It is tried in a process of its own before anything is sent, goes up in one commit, and is tagged when the Hub holds
what was sent.
"""

import argparse
import json
import os
import re
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
    BLOCKS,
    PACK_ROOT,
    PIPELINES,
    bundle,
    bundle_module_name,
    bundle_sources,
    pack_version,
)
from webui_diffusers.pipelines.bundle.sources import BUNDLE_REQUIREMENTS

from hub.block_files import SD15, SDXL, block_lines, write_block_index
from hub.community import write_community
from hub.model_files import ModelFilesError, model_files, read_index, without_paths
from hub.sending import UploadError, hub_cause, plain_address, retried, send_folder, status_of, without_token
from hub.space import write_space
from hub.tiny_model import save_tiny_model


HUB_FOLDER = Path(__file__).parent / "hub"
_MODEL_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # the last: of the safety checker
_SHOWN_FILES = 20
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
ENDPOINTS = ("webui-txt2img", "webui-img2img")
"""The pipelines that `hub/endpoint/handler.py` can serve."""

ALWAYS_REQUIRED = ("accelerate", "diffusers", "torch", "transformers")
ENTRIES = {**PIPELINES, **BLOCKS}


def available_pipelines() -> list[str]:
    """The names of the pipelines and sets of blocks that can be put on the Hub."""
    known = [name for name, entry in ENTRIES.items() if (PACK_ROOT / entry.file).is_file()]
    return [name for name in known if (HUB_FOLDER / "cards" / f"{name}.md").is_file()]


# --- a repository's folder


def build_repository(name: str, folder: Path, repo: str, *, model: Path | None = None, endpoint: bool = False) -> Path:
    """Write a repository's files into `folder`, which is emptied first; the folder.

    name: of a pipeline; repo: its future name on the Hub, "org/name"; model: a folder with weights that go along;
    endpoint: with handler.py, by which Inference Endpoints draw. Raises UploadError for weights that the pipeline
    cannot take, and for a pipeline that has no handler.
    """
    if endpoint and (name not in ENDPOINTS or model is None):
        raise UploadError(
            f"An endpoint needs {' or '.join(ENDPOINTS)} with weights, not {name}{'' if model else ' without'}: "
            "choose with --only, and name a model with --with-weights."
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry, text = ENTRIES[name], bundle(name, home=repo)
    for file in ("block.py" if name in BLOCKS else "pipeline.py", f"{bundle_module_name(name)}.py"):
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
    if endpoint:
        shutil.copyfile(HUB_FOLDER / "endpoint" / "handler.py", folder / "handler.py")
    if name in BLOCKS:
        write_block_index(entry, folder)
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
    """What a model is made of beside the code, and an index that names our class. Prints what is left out."""
    try:
        index, (parts, files, left_out) = read_index(model), model_files(model)
    except ModelFilesError as error:
        raise UploadError(str(error)) from error
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if part not in parts]
    is_xl = "text_encoder_2" in parts
    wrong_size = {"multi-lora": is_xl, "multi-lora-xl": not is_xl}.get(name, False)
    if missing or wrong_size or name == "face-restore" or name in BLOCKS:
        why = f"it lacks {', '.join(missing)}" if missing else "it is made for another kind of model"
        why = "blocks are published as code alone" if name in BLOCKS else why
        raise UploadError(
            f"The weights of `{model}` ({index.get('_class_name')}) cannot go with {name}: {why}. Choose the "
            "pipelines that they fit with --only."
        )
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        if file.endswith("config.json"):
            config = without_paths(json.loads((model / file).read_text(encoding="utf-8")))
            (folder / file).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            _linked_or_copied(str(model / file), str(folder / file))
    entries = {part: _index_entry(name, folder, part, entry) for part, entry in parts.items()}
    settings = {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
    empty = {key: [None, None] for key, value in index.items() if isinstance(value, list) and key[0] != "_"}
    _write_index(name, folder, {**empty, **entries, **settings})
    if left_out:
        shown = ", ".join(left_out[:_SHOWN_FILES]) + (" ..." if len(left_out) > _SHOWN_FILES else "")
        print(f"{name}: left out of `{model}`, because the model does not need it: {shown} ({len(left_out)})")


def _index_entry(name: str, folder: Path, part: str, entry: Sequence[str]) -> list[str]:
    """A component's library and class. A class of ours comes from this bundle, which then lies in its folder too."""
    library, class_name = entry
    if library in _MODEL_LIBRARIES:
        return list(entry)
    module = bundle_module_name(name)
    text = (folder / f"{module}.py").read_text(encoding="utf-8")
    if not library.startswith("webui_") or f"\nclass {class_name}(" not in text:
        raise UploadError(
            f"The component `{part}` is a {class_name} of `{library}`, code that does not come from this pack, so it "
            "is not published. Take the component out of the model's folder and index."
        )
    shutil.copyfile(folder / f"{module}.py", folder / part / f"{module}.py")
    return [module, class_name]


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
    class_name = ENTRIES[name].class_name
    command = [sys.executable, str(HUB_FOLDER / "try_folder.py"), str(folder), class_name]
    with tempfile.TemporaryDirectory() as modules:
        known = {key: value for key, value in os.environ.items() if key not in _TOKEN_VARIABLES}
        done = subprocess.run(
            [*command, *([] if model is None else [str(model)])],
            env={**known, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules},
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
    if not retried(f"{repo}: looking", lambda: api.repo_exists(repo)):
        retried(f"{repo}: creating", lambda: api.create_repo(repo, private=private, exist_ok=True))
    else:
        _refuse_foreign(api, repo, module)
    commit = send_folder(api, repo, folder, f"{folder.name} {pack_version()}")
    _tag(api, repo, commit, revision)
    return commit


def _refuse_foreign(api: HfApi, repo: str, module: str) -> None:
    """Refuse a repository that holds something else."""
    files = retried(f"{repo}: looking", lambda: api.list_repo_files(repo))
    if f"{module}.py" not in files and set(files) - {".gitattributes", "README.md"}:
        raise UploadError(
            f"The name is taken: {repo} exists and holds other files ({', '.join(sorted(files)[:3])}, ...), and no "
            f"{module}.py. Choose another --namespace, or move that repository."
        )


def _tag(api: HfApi, repo: str, commit: str, revision: str | None) -> None:
    refs = retried(f"{repo}: looking", lambda: api.list_repo_refs(repo))
    known = {tag.name: tag.target_commit for tag in refs.tags}
    name = revision or f"v{pack_version()}"
    if name not in known:
        retried(f"{repo}: tagging", lambda: api.create_tag(repo, tag=name, revision=commit, exist_ok=True))
    elif revision and known[name] != commit:
        raise UploadError(
            f"{repo}: the tag {name} exists and names another commit ({known[name][:12]}). Tags do not move: whoever "
            "loads it trusts its content. The new content is committed; give it another --revision."
        )
    elif known[name] != commit:
        print(f"{repo}: the tag {name} stays at {known[name][:12]}; name a new one with --revision.")


def check_access(namespace: str, token: str | None) -> None:
    """Raises UploadError where there is no token, the Hub does not accept it, or it may not write to the namespace."""
    if token is None:
        raise UploadError(
            "There is no token, and uploading needs one. Make one that may write at "
            "https://huggingface.co/settings/tokens and run `hf auth login`, set HF_TOKEN, or pass --token. "
            "--dry-run needs none."
        )
    user = retried("your account", lambda: HfApi(token=token).whoami(), unreached=False)
    owned = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    if namespace not in owned:
        raise UploadError(
            f"The token is {user['name']}'s, who may not write to `{namespace}`. It may write to {', '.join(owned)}: "
            "name one of these with --namespace, or use a token of a member."
        )


def explained(error: BaseException) -> str:
    """An error of the Hub, the network or the disk in words that say what to do."""
    status = status_of(error)
    where = plain_address(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if isinstance(error, OSError) and error.filename:
        return f"`{error.filename}`: {str(error.strerror).lower()}. Nothing was sent."
    if status == 401:
        return f"{where} does not accept the token. It may have expired: make a new one and pass it with --token."
    if status == 403:
        return f"{where} accepts the token but does not allow this: {error}. Use a token with the right to write."
    if status is None:
        return (
            f"{where} cannot be reached ({type(error).__name__}: {error}). Check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE; --dry-run works without. The same command goes on from here."
        )
    return f"{where} answered with an error: {error}. What was not committed is not there; try again later."


# --- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, try, send. 0, or 1 after an error that was printed."""
    asked = _parsed(arguments)
    names = asked.only or available_pipelines()
    try:
        if asked.space:
            print(space_lines(write_space(Path(asked.out))))
            return 0
        if asked.community:
            print(*write_community(Path(asked.out), asked.namespace), sep="\n")
            return 0
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
    except KeyboardInterrupt:
        print(
            "hub_upload: interrupted. What was not committed is not there; the same command goes on.", file=sys.stderr
        )
        return 130
    except Exception as error:
        cause = error if isinstance(error, UploadError) else hub_cause(error)
        if cause is None:
            raise
        said = str(error) if isinstance(error, UploadError) else explained(cause)
        print(f"hub_upload: {without_token(said, (asked.token, get_token()))}", file=sys.stderr)
        return 1
    return 0


def _built(names: Sequence[str], asked: argparse.Namespace, out: Path, scratch: Path) -> dict[str, Path]:
    """name -> its folder, each built and tried."""
    weights = None if asked.with_weights is None else _model_folder(asked.with_weights, asked.token)
    tiny: dict[bool, Path] = {}
    folders = {}
    for name in (progress := tqdm(names, desc="Build and try", unit="pipeline")):
        progress.set_postfix_str(name)
        folders[name] = build_repository(
            name, out / name, f"{asked.namespace}/{name}", model=weights, endpoint=asked.endpoint
        )
        xl = name.endswith("-xl")
        if weights is None and xl not in tiny and name != "face-restore":
            tiny[xl] = save_tiny_model(scratch / f"tiny-{'xl' if xl else 'sd'}", xl=xl)
        progress.write(try_repository(name, folders[name], None if weights else tiny.get(xl)))
    return folders


def _model_folder(model: str, token: str | None) -> Path:
    """A local model folder, or one of the Hub, downloaded."""
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    from diffusers import DiffusionPipeline

    return Path(retried(model, lambda: DiffusionPipeline.download(model, token=token)))


def lines_to_paste(name: str, place: str, with_weights: bool) -> str:
    """The lines that load the pipeline."""
    if name in BLOCKS:
        return block_lines(name, place)
    model = place if with_weights else SD15
    if name.endswith("-xl") and not with_weights:
        model = SDXL
    options = ["trust_remote_code=True"] if with_weights else [f'custom_pipeline="{place}"', "trust_remote_code=True"]
    if name == "face-restore":
        model, options = place, ['face_restorer="GFPGAN"', "trust_remote_code=True"]
    call = f'pipe = DiffusionPipeline.from_pretrained("{model}", {", ".join(options)})'
    return f"\n# {name}\nfrom diffusers import DiffusionPipeline\n{call}"


def space_lines(folder: Path) -> str:
    """How to try the Space that was written, and how to send it."""
    return (
        f"{folder}: a Space. To try it:\n  WEBUI_DIFFUSERS_MODEL=path/to/model python {folder / 'app.py'}\n"
        f"To send it:\n  hf upload your-name/draw-it-again {folder} --repo-type space"
    )


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hub_upload.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--namespace", help="your name on the Hub, or your organisation's")
    parser.add_argument(
        "--only", action="append", choices=available_pipelines(), help="this pipeline; may be repeated"
    )
    parser.add_argument("--private", action="store_true", help="create repositories that only you can see")
    parser.add_argument("--revision", help="tag for the commit; default: v and the version")
    parser.add_argument("--dry-run", action="store_true", help="build and try, but send nothing")
    parser.add_argument("--out", help="where to build; default: a folder that is removed afterwards")
    parser.add_argument("--with-weights", metavar="MODEL", help="folder or Hub id of a model whose weights go along")
    parser.add_argument("--space", action="store_true", help="write a Space of the page to --out, and send nothing")
    parser.add_argument(
        "--endpoint", action="store_true", help="add handler.py for Inference Endpoints to the weights"
    )
    parser.add_argument(
        "--community", action="store_true", help="write files for diffusers' examples/community to --out"
    )
    parser.add_argument("--token", help="default: HF_TOKEN, or that of `hf auth login`")
    asked = parser.parse_args(arguments)
    if asked.dry_run and not asked.out:
        asked.out = "dist/hub"
    if asked.space:
        asked.out = asked.out or "dist/space"
    elif asked.community:
        asked.out = asked.out or "dist/community"
    if not asked.space and not asked.namespace:
        parser.error("the following arguments are required: --namespace")
    return asked


if __name__ == "__main__":
    sys.exit(main())
