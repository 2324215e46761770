"""A server with the routes of the Hugging Face hub that our commands use, over folders: another's service, in small.

Repositories are folders below a root, one commit each. Weights go the way of large files (LFS), other files within the
commit. Requests need the token ``test``, as those to private repositories do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_test"  # noqa: S105 (of this server)


class Hub(ThreadingHTTPServer):
    """The server; ``root/owner/name`` has the files of a repository, ``asked`` the routes that were used."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.root, self.large, self.asked = root, dict[str, bytes](), list[str]()
        self.visibility: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str) -> dict[str, bytes]:
        folder = self.root / repo
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def commit_of(self, repo: str) -> str:
        return hashlib.sha1(json.dumps([*map(str, self.files(repo).items())]).encode()).hexdigest()  # noqa: S324


class Routes(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self, repo: str) -> bool:
        """Answers as the hub does if the token is missing or the repository does not exist."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}" and (self.server.root / repo).is_dir():
            return False
        self.answer({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        return True

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.server.asked.append(f"{self.command} {self.path}")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if self.refused(repo):
            return
        commit, files = self.server.commit_of(repo), self.server.files(repo)
        if parts[0] == "api":
            if parts[4:5] == ["revision"] and parts[5] not in ("main", "v1", commit):
                self.answer({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            elif parts[4:5] == ["tree"]:
                self.answer([self.described(name, data) for name, data in files.items()])
            else:
                self.answer({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
            return
        data = files.get("/".join(parts[4:]))
        if data is None:
            self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self.answer(data, headers={"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

    def described(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "no token"}, 401)
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            (self.server.root / repo).mkdir(parents=True, exist_ok=True)
            self.server.visibility.setdefault(repo, asked.get("visibility", "public"))
            self.answer({"url": f"{self.server.url}/{repo}", "id": repo})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif parts[-1] == "batch":
            where = f"{self.server.url}/large/"
            objects = json.loads(body)["objects"]
            listed = [{**each, "actions": {"upload": {"href": where + each["oid"]}}} for each in objects]
            self.answer({"transfer": "basic", "objects": listed})
        elif parts[4:5] == ["preupload"]:
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            self.answer({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        else:
            self.commit("/".join(parts[2:4]), body)

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def commit(self, repo: str, body: bytes) -> None:
        for line in body.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] in ("file", "lfsFile"):
                large = each["key"] == "lfsFile"
                data = self.server.large[value["oid"]] if large else base64.b64decode(value["content"])
                file = self.server.root / repo / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        commit = self.server.commit_of(repo)
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})


@contextmanager
def hub(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[Hub]:
    """Serves the repositories below a root, and lets huggingface_hub use the server and a cache of its own."""
    root.mkdir(parents=True, exist_ok=True)
    server = Hub(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    of_server = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in of_server.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cache / "no-token"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
