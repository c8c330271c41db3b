"""A Hugging Face hub of a few files on this machine: what `huggingface_hub` and `datasets` ask of the
real one, so that their own code runs to the end without network.

with FakeHub({"datasets/org/name": {"README.md": b"…", "data/test.parquet": b"…"}}) as hub:
    subprocess.run(…, env={**os.environ, **hub.environment(tmp_path)})

Models can be made and written to as well (`repos` has them then): large files by LFS, the others in
the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlparse

Repos = dict[str, dict[str, bytes]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of every repository


class FakeHub:
    """Serves `repos` (kind/owner/name, or owner/name for a model → path → content) at COMMIT, which
    is also `main`; `asked` are the requests."""

    def __init__(self, repos: Repos) -> None:
        self.repos, self.asked = repos, list[str]()
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # by SHA-256, uploaded and not committed yet
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that takes this for the hub; its caches lie in `home`."""
        host, port = self._server.server_address[:2]
        return {
            "HF_ENDPOINT": f"http://{host}:{port}",
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.large[hashlib.sha256(body).hexdigest()] = body
        self._json({})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the console."""

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} /{path}")
        if self.command == "POST" and self._take(path, body):
            return None
        for repo, files in self.hub.repos.items():
            plain = repo if repo.startswith("datasets/") else f"models/{repo}"
            for start, answer in (
                (f"api/{plain}/revision/", self._info),
                (f"api/{plain}/tree/", self._tree),
                (f"api/{plain}/paths-info/", self._paths),
                (f"{repo}/resolve/", self._file),
            ):
                if path.startswith(start):
                    revision, _, rest = path.removeprefix(start).partition("/")
                    if revision not in ("main", COMMIT):
                        return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
                    return answer(repo.removeprefix("datasets/"), files, rest, body)
            if path == f"api/{plain}":
                return self._info(repo.removeprefix("datasets/"), files, "", body)
        return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")

    def _take(self, path: str, body: bytes) -> bool:
        """Answers what makes a model or writes to one; False for any other request."""
        if path == "api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.hub.repos.setdefault(name, {})
            hidden = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.private |= {name} if hidden else set()
            self._json({"url": f"{self._root}/{name}", "id": name, "name": name})
        elif path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self._root}/lfs/{one['oid']}"}} for one in asked]
            objects = [{**one, "actions": do} for one, do in zip(asked, actions, strict=True)]
            self._json({"transfer": "basic", "objects": objects})
        elif "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if one["size"] > 1000 else "regular",
                }
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in path:
            name = path.removeprefix("api/models/").partition("/commit/")[0]
            self._commit(self.hub.repos[name], body)
            url = f"{self._root}/{name}/commit/{COMMIT}"
            self._json({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            return False
        return True

    @property
    def _root(self) -> str:
        return f"http://{self.headers['Host']}"

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in body.decode().splitlines():
            found = json.loads(line)
            value = found["value"]
            if found["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif found["key"] == "lfsFile":
                files[value["path"]] = self.hub.large.pop(value["oid"])

    def _info(self, name: str, files: dict[str, bytes], rest: str, body: bytes) -> None:
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": name, "_id": "0", "sha": COMMIT, "siblings": siblings, "tags": []})

    def _tree(self, name: str, files: dict[str, bytes], rest: str, body: bytes) -> None:
        inside = {path for path in files if path.startswith(f"{rest}/" if rest else "")}
        folders = {str(parent) for path in inside for parent in Path(path).parents} - {".", rest}
        found = [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders]
        self._json([*found, *(_entry(path, files[path]) for path in sorted(inside))])

    def _paths(self, name: str, files: dict[str, bytes], rest: str, body: bytes) -> None:
        try:
            wanted = json.loads(body)["paths"]
        except ValueError:
            wanted = [unquote(part.partition("=")[2]) for part in body.decode().split("&")]
        self._json([_entry(path, files[path]) for path in wanted if path in files])

    def _file(self, name: str, files: dict[str, bytes], rest: str, body: bytes) -> None:
        if rest not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"")
        content, status = files[rest], 200
        headers = {
            "ETag": f'"{_digest(content)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if self.headers.get("Range"):
            begin, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            last = min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
            content, status = content[int(begin) : last + 1], 206
        return self._send(status, headers, content)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
