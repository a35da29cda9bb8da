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
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import tqdm
from webui_diffusers.pipelines.bundle.build import BLOCKS

from hub.block_files import SD15, SDXL, block_lines
from hub.community import write_community
from hub.publishing import check_access, explained, publish
from hub.repository import available_pipelines, build_repository, try_repository
from hub.sending import UploadError, hub_cause, retried, without_token
from hub.space import write_space
from hub.tiny_model import save_tiny_model


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
