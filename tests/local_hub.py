"""A small Hugging Face Hub on this machine, for tests: real HTTP, everything in memory, standard library only.

It answers what huggingface_hub and diffusers ask of a Hub: who am I, create a repository, preupload, commit (regular
files inline, LFS files by batch, PUT and verify), tree, paths-info, refs, tags and branches, revisions, and downloads
with ETag, X-Repo-Commit and Range. Writing needs a token of a user who may write there, as on the real one.

    with LocalHub() as hub:
        hub.break_down("POST", "/commit/", 500, times=2)  # also 429, "drop", "answer lost", "other content"
        os.environ["HF_ENDPOINT"] = hub.url        # before huggingface_hub is imported
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ["HF_TOKEN"] = hub.token         # user "tester", who may write to "tester" and "your-org"

or `python tests/local_hub.py [port]` to try things by hand.
"""

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gz", ".zip", ".msgpack")


def git_sum(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LocalRepo:
    """Commits are tables path -> (content, is LFS); branches and tags are names of commits."""

    def __init__(self, private: bool = False):
        self.private = private
        self.commits: dict[str, dict[str, tuple[bytes, bool]]] = {}
        self.messages: list[str] = []
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commit({}, "initial commit", "main")

    def commit(self, files: dict[str, tuple[bytes, bool]], message: str, branch: str) -> str:
        listed = sorted((path, git_sum(content)) for path, (content, _) in files.items())
        name = hashlib.sha1(repr((listed, message, len(self.commits))).encode()).hexdigest()
        self.commits[name] = files
        self.messages.append(message)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        known = {**self.branches, **self.tags}
        return known.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """What the main branch holds."""
        return {path: content for path, (content, _) in self.commits[self.branches["main"]].items()}


class LocalHub:
    """users: token -> (name, organisations the user may write to)."""

    token = "hf_tester"

    def __init__(self, port: int = 0, users: dict[str, tuple[str, list[str]]] | None = None):
        self.users = users or {self.token: ("tester", ["your-org"]), "hf_guest": ("guest", [])}
        self.repos: dict[tuple[str, str], LocalRepo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.faults: list[list] = []
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def break_down(self, method: str, part: str, fault: int | str, times: int = 1) -> None:
        """Answer the next requests of a method whose path has `part` wrongly.

        fault: a status; "drop" cuts the connection in the middle of the request; "answer lost" does what was asked and
        cuts it then; "other content" takes what is sent as something else.
        """
        self.faults.append([method, part, fault, times])

    def fault(self, method: str, path: str) -> int | str | None:
        """What goes wrong with this request."""
        for entry in self.faults:
            if entry[0] == method and entry[1] in path and entry[3] > 0:
                entry[3] -= 1
                return entry[2]
        return None

    def repo(self, name: str) -> LocalRepo:
        """A model repository by "owner/name"."""
        return self.repos["models", name]

    def put(self, name: str, files: dict[str, bytes], message: str = "put", kind: str = "models") -> str:
        """Commit files to a repository of a kind, made if needed, past HTTP. The commit's name."""
        repo = self.repos.setdefault((kind, name), LocalRepo())
        table = {path: (content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        return repo.commit({**repo.commits[repo.branches["main"]], **table}, message, "main")


class HubHandler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    answer_is_lost = spoils = False
    hub: LocalHub

    # --- coming in and going out

    def log_message(self, *_: object) -> None: ...

    def answer(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        fault = self.hub.fault(self.command, address.path)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length // 2 if fault == "drop" else length)
        self.hub.log.append(f"{self.command} {self.path}")
        if fault == "drop":
            return self.cut()
        if isinstance(fault, int):
            extra = {"Retry-After": 1} if fault == 429 else {}
            return self.send({"error": f"fault {fault}; you are {self.headers.get('Authorization')}"}, fault, extra)
        self.spoils = fault == "other content"
        self.answer_is_lost = fault == "answer lost"
        for methods, pattern, function in ROUTES:
            found = re.fullmatch(pattern, unquote(address.path))
            if found and self.command in methods:
                return function(self, **found.groupdict())
        return self.fail(404, "", f"no route {self.command} {address.path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def cut(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def spoilt(self, content: bytes) -> bytes:
        """What is kept of something sent: itself, unless this request spoils it."""
        return content[:-1] + bytes([content[-1] ^ 1]) if self.spoils and content else content

    def send(self, data: object = b"", status: int = 200, headers: dict[str, object] | None = None) -> None:
        if self.answer_is_lost:
            self.answer_is_lost = False
            return self.cut()
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        known = {"Content-Type": "application/json", "Content-Length": len(content), **(headers or {})}
        self.send_response(status)
        for name, value in known.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str, message: str) -> None:
        self.send({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    # --- who asks for what

    def user(self) -> tuple[str, list[str]] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.users.get(token)

    def may_write(self, owner: str) -> bool:
        """Whether the asker may; if not, the refusal has been sent."""
        user = self.user()
        if user is None:
            self.fail(401, "", "Invalid username or password.")
        elif owner not in (user[0], *user[1]):
            self.fail(403, "", f"Forbidden: you don't have the rights to write under the namespace {owner}")
        else:
            return True
        return False

    def found(self, kind: str | None, repo: str, revision: str | None = None) -> tuple[LocalRepo, str] | None:
        """A repository and a commit of it; if there is none, the refusal has been sent."""
        known = self.hub.repos.get(((kind or "models").rstrip("/"), repo))
        user = self.user()
        if known is None or (known.private and (user is None or repo.split("/")[0] not in (user[0], *user[1]))):
            self.fail(401 if user is None else 404, "RepoNotFound", "Repository not found")
            return None
        commit = known.resolve(revision or "main")
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return known, commit

    # --- accounts and repositories

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            return self.fail(401, "", "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user[1]]
        access = {"accessToken": {"role": "write", "displayName": "test"}}
        return self.send({"type": "user", "id": user[0], "name": user[0], "orgs": orgs, "auth": access})

    def validate_card(self) -> None:
        self.send({"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        kind = (asked.get("type") or "model") + "s"
        user = self.user()
        owner = asked.get("organization") or (user[0] if user else "")
        if not self.may_write(owner):
            return None
        repo = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}"
        if (kind, repo) in self.hub.repos:
            return self.send({"error": "You already created this model repo", "url": url}, 409)
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        self.hub.repos[kind, repo] = LocalRepo(private)
        return self.send({"url": url, "name": repo, "id": repo})

    def delete(self) -> None:
        asked = json.loads(self.body)
        user = self.user()
        owner = asked.get("organization") or (user[0] if user else "")
        if self.may_write(owner):
            self.hub.repos.pop(((asked.get("type") or "model") + "s", f"{owner}/{asked['name']}"), None)
            self.send({})

    def info(self, kind: str, repo: str, revision: str | None = None) -> None:
        found = self.found(kind, repo, revision)
        if found is None:
            return
        files = found[0].commits[found[1]]
        siblings = [
            {"rfilename": path, **({"size": len(data), "blobId": git_sum(data)} if "blobs" in self.query else {})}
            for path, (data, _) in sorted(files.items())
        ]
        facts = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": found[1], "siblings": siblings}
        facts |= {"_id": "0", "private": found[0].private, "gated": False, "disabled": False, "usedStorage": 0}
        facts |= {"downloads": 0, "likes": 0, "tags": [], "createdAt": _LONG_AGO, "lastModified": _LONG_AGO}
        self.send(facts)

    # --- what lies in them

    def entry(self, path: str, content: bytes, is_lfs: bool) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_sum(content)}
        if is_lfs:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def tree(self, kind: str, repo: str, revision: str, folder: str | None = None) -> None:
        found = self.found(kind, repo, revision)
        if found is None:
            return
        prefix = folder.strip("/") + "/" if folder else ""
        recursive = self.query.get("recursive", ["False"])[0].lower() == "true"
        entries, folders = [], set()
        for path, (content, is_lfs) in sorted(found[0].commits[found[1]].items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            depths = range(1, len(parts)) if recursive else range(1, min(len(parts), 2))
            folders.update(prefix + "/".join(parts[:depth]) for depth in depths)
            if recursive or len(parts) == 1:
                entries.append(self.entry(path, content, is_lfs))
        self.send([{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in sorted(folders)] + entries)

    def paths(self, kind: str, repo: str, revision: str) -> None:
        found = self.found(kind, repo, revision)
        if found is None:
            return
        text = self.body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        files = found[0].commits[found[1]]
        self.send([self.entry(path, *files[path]) for path in wanted if path in files])

    def refs(self, kind: str, repo: str) -> None:
        found = self.found(kind, repo)
        if found is None:
            return
        branches = [_ref("heads", *item) for item in found[0].branches.items()]
        tags = [_ref("tags", *item) for item in found[0].tags.items()]
        self.send({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def make_ref(self, kind: str, repo: str, what: str, name: str) -> None:
        asked = json.loads(self.body or b"{}")
        start = asked.get("startingPoint") or (name if what == "tag" else None)
        found = self.found(kind, repo, start)
        if found is None or not self.may_write(repo.split("/")[0]):
            return None
        refs = found[0].tags if what == "tag" else found[0].branches
        name = asked.get("tag", name)
        if name in refs:
            return self.fail(409, "", f"Tag reference exists already: {name}")
        refs[name] = found[1]
        return self.send({}, 201)

    def delete_ref(self, kind: str, repo: str, what: str, name: str) -> None:
        found = self.found(kind, repo)
        if found is not None and self.may_write(repo.split("/")[0]):
            (found[0].tags if what == "tag" else found[0].branches).pop(name, None)
            self.send({})

    # --- uploads

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        found = self.found(kind, repo, revision)
        if found is None:
            return
        files = found[0].commits[found[1]]

        def known(path: str) -> str | None:
            if path not in files:
                return None
            content, is_lfs = files[path]
            return hashlib.sha256(content).hexdigest() if is_lfs else git_sum(content)

        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": known(file["path"]),
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send({"files": answers})

    def lfs_batch(self, kind: str | None, repo: str) -> None:
        if not self.may_write(repo.split("/")[0]):
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
            if asked["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/_lfs/{asked['oid']}", "header": {}}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/_lfs_verify", "header": {}}}
            objects.append(entry)
        media = {"Content-Type": "application/vnd.git-lfs+json"}
        self.send({"transfer": "basic", "objects": objects}, headers=media)

    def lfs_put(self, oid: str) -> None:
        self.body = self.spoilt(self.body)
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.send({"message": "the content has another sum"}, 422)
        self.hub.blobs[oid] = self.body
        return self.send()

    def lfs_verify(self) -> None:
        asked = json.loads(self.body)
        self.send({}, 200 if len(self.hub.blobs.get(asked["oid"], b"")) == asked["size"] else 404)

    def commit(self, kind: str, repo: str, revision: str) -> None:
        found = self.found(kind, repo, revision)
        if found is None or not self.may_write(repo.split("/")[0]):
            return None
        files, message = dict(found[0].commits[found[1]]), ""
        for item in (json.loads(line) for line in self.body.splitlines() if line):
            value = item["value"]
            if item["key"] == "header":
                message = value.get("summary", "")
                if value.get("parentCommit") not in (None, found[1]):
                    return self.fail(412, "", "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = (self.spoilt(base64.b64decode(value["content"])), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self.fail(400, "", "LFS pointer points to a file that does not exist")
                files[value["path"]] = (self.hub.blobs[value["oid"]], True)
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif item["key"] == "deletedFolder":
                files = {
                    path: file for path, file in files.items() if not path.startswith(value["path"].rstrip("/") + "/")
                }
        name = found[0].commit(files, message, revision)
        url = f"{self.hub.url}/{repo}/commit/{name}"
        return self.send({"success": True, "commitOid": name, "commitUrl": url, "hookOutput": ""})

    # --- downloads

    def resolve(self, kind: str | None, repo: str, revision: str, file: str) -> None:
        found = self.found(kind, repo, revision)
        if found is None:
            return None
        headers: dict[str, object] = {"X-Repo-Commit": found[1]}
        files = found[0].commits[found[1]]
        if file not in files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send({"error": "Entry not found"}, 404, headers)
        content, is_lfs = files[file]
        digest = hashlib.sha256(content).hexdigest() if is_lfs else git_sum(content)
        headers |= {"Accept-Ranges": "bytes", "ETag": f'"{digest}"', "Content-Type": "application/octet-stream"}
        if is_lfs:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": len(content)}
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None or self.command == "HEAD":
            return self.send(content, headers=headers)
        first, last = int(part[1]), int(part[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(content[first : last + 1], 206, headers)


def _ref(kind: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


_LONG_AGO = "2026-01-01T00:00:00.000Z"
_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
_FILES = r"/(?P<kind>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", HubHandler.whoami),
    ("POST", r"/api/validate-yaml", HubHandler.validate_card),
    ("POST", r"/api/repos/create", HubHandler.create),
    ("DELETE", r"/api/repos/delete", HubHandler.delete),
    ("GET", _API + r"(?:/revision/(?P<revision>[^/]+))?", HubHandler.info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", HubHandler.tree),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", HubHandler.paths),
    ("GET", _API + r"/refs", HubHandler.refs),
    ("POST", _API + r"/(?P<what>branch|tag)/(?P<name>[^/]+)", HubHandler.make_ref),
    ("DELETE", _API + r"/(?P<what>branch|tag)/(?P<name>[^/]+)", HubHandler.delete_ref),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", HubHandler.preupload),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", HubHandler.commit),
    ("POST", _FILES + r"\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", HubHandler.lfs_put),
    ("POST", r"/_lfs_verify", HubHandler.lfs_verify),
    ("GET HEAD", _FILES + r"/resolve/(?P<revision>[^/]+)/(?P<file>.+)", HubHandler.resolve),
]

if __name__ == "__main__":
    with LocalHub(int(sys.argv[1]) if len(sys.argv) > 1 else 8765) as running:
        print(f"HF_ENDPOINT={running.url} HF_HUB_DISABLE_XET=1 HF_TOKEN={running.token}", flush=True)
        threading.Event().wait()
