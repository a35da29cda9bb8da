"""From a folder to a repository on the Hub: access, commit, tag, and what to do where that fails."""

import os
from pathlib import Path

from huggingface_hub import HfApi
from webui_diffusers.pipelines.bundle.build import pack_version

from .sending import UploadError, plain_address, retried, send_folder, status_of


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
