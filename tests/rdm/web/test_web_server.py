"""The server: what it serves to whom, and what it keeps out."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from toy import ROOT

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")

from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.web import gate  # noqa: E402
from rdm.web.gate import HEADERS  # noqa: E402
from rdm.web.hosts import check_host, is_local, login  # noqa: E402
from rdm.web.limits import Limits  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

FOREIGN = re.compile(r"""(?:src|href|url|import)\s*[=(]\s*["']?(?:https?:)?//""")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret.png"
    file.write_bytes(b"\x89PNG secret")
    return file


def test_the_page_names_nothing_that_a_browser_would_fetch_from_elsewhere(address: str) -> None:
    page = httpx.get(address)
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.text)
    assert len(loaded) > 5 and [tag for tag in loaded if FOREIGN.search(tag)] == []
    theme = httpx.get(f"{address}theme.css")
    assert theme.status_code == 200 and not FOREIGN.search(theme.text) and "@import" not in theme.text
    assert (
        "connect-src" in HEADERS["content-security-policy"]
        or "default-src 'self'" in HEADERS["content-security-policy"]
    )
    for answer in (page, theme, httpx.get(f"{address}nothing")):
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


def test_no_file_outside_the_folder_of_uploads_is_served(address: str, served: Studio, secret: Path) -> None:
    inside = served.folder / "inside.txt"
    inside.write_text("inside")
    (served.folder / "link.png").symlink_to(secret)
    up = "/".join([".."] * 30)
    names = [
        str(secret), f"{served.folder}/{up}{secret}", f"{up}{secret}", quote(str(secret), safe=""), "file:///etc/passwd",
        f"{served.folder}/..%2f..%2f..{secret}", f"{served.folder}/link.png", "/etc/passwd", "//etc/passwd", "\0",
        "etc/passwd", str(ROOT / "pyproject.toml"), "pyproject.toml", ".", "%2e%2e/%2e%2e/etc/passwd", "C:\\secret",
        "http://127.0.0.1:1/x", "/proc/self/environ",
    ]  # fmt: skip
    routes = ["gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "gradio_api/proxy=", "svelte/"]
    for route in routes:
        for name in names:
            with socket.create_connection((httpx.URL(address).host, httpx.URL(address).port)) as plain:
                target = f"/{route}{name}".replace("\0", "%00").replace("\\", "%5c")
                plain.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: plain.recv(65536), b""))  # noqa: B023 (called at once)
            status = int(answer.split(b" ", 2)[1])
            assert status in (400, 403, 404, 405), (target, answer[:200])
            assert b"secret" not in answer.split(b"\r\n\r\n", 1)[-1] and b"root:" not in answer, target
    assert httpx.get(f"{address}gradio_api/file={inside}").text == "inside"


def test_an_upload_stays_in_the_folder_and_has_a_limit(address: str, served: Studio) -> None:
    upload = f"{address}gradio_api/upload"
    for name in ("../../../outside.png", "/tmp/outside.png", "..\\outside.png", "a" * 300 + ".png", ""):  # noqa: S108
        answer = httpx.post(upload, files={"files": (name, b"x", "image/png")})
        if answer.status_code == 200:
            (path,) = answer.json()
            assert Path(path).resolve().is_relative_to(served.folder), name
    assert httpx.post(upload, files={"files": ("a.png", bytes(200_001))}).status_code == 413
    assert httpx.post(upload, files={"files": ("a.png", bytes(500_000))}).status_code == 413
    several = [("files", (f"{number}.png", bytes(100_000))) for number in range(9)]
    assert httpx.post(upload, files=several).status_code == 413
    assert httpx.post(upload, content=iter([bytes(100_000)] * 9)).status_code == 413  # without a stated length


def test_uploads_cannot_fill_the_disk(loaded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "UPLOADS", 2)
    with Studio({"flags": loaded}, Limits(upload_bytes=100_000)) as studio, serving(studio) as url:
        answers = [
            httpx.post(f"{url}gradio_api/upload", files={"files": (f"{number}.png", bytes([number]) * 100_000)})
            for number in range(6)
        ]
        codes = [answer.status_code for answer in answers]
        assert codes[:3] == [200] * 3 and codes[-1] == 507 and "try later" in answers[-1].text
        for path in answers[0].json() + answers[1].json():
            Path(path).unlink()
        time.sleep(gate.PAUSE)
        assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 200


def test_small_uploads_cannot_fill_the_disk_with_files_and_are_seldom_counted(tmp_path: Path) -> None:
    opened: list[str] = []
    gated = gate.Gate(None, tmp_path, 100_000)
    for number in range(200):
        (tmp_path / f"{number}").write_bytes(b"x")
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "os.scandir" else None)
    for _ in range(100):
        gated.bytes += gate.SPARE
        assert not gated.is_full()
    assert opened == []
    gated.bytes = gate.UPLOADS * gated.most + 1
    assert gated.is_full() and set(opened) == {str(tmp_path)}
    assert gated.bytes == 200 * gate.SPARE


def test_no_request_makes_the_server_ask_elsewhere(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1.5)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/picture.png"
        httpx.get(f"{address}gradio_api/file={url}")
        httpx.get(f"{address}gradio_api/proxy={url}")
        file = {"path": url, "meta": {"_type": "gradio.FileData"}}
        for data in ([file], [{"deep": [file]}], [json.loads('{"path": "\\u0048TTP' + url[4:] + '"}')]):
            body = {"data": data, "session_hash": "elsewhere", "fn_index": 0}
            for route in ("queue/join", "run/predict", "call/variations"):
                answer = httpx.post(f"{address}gradio_api/{route}", json=body)
                assert answer.status_code == 400 and "uploaded" in answer.json()["detail"]
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_starting_and_drawing_ask_for_no_address_but_loopback(loaded: Pipeline) -> None:
    asked, watching = [], True

    def watch(event: str, given: tuple) -> None:
        if watching and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            host = given[0] if event == "socket.getaddrinfo" else given[1][0] if isinstance(given[1], tuple) else None
            if host not in (None, "127.0.0.1", "localhost", "::1", b"127.0.0.1"):
                asked.append((event, host))

    sys.addaudithook(watch)
    with Studio({"flags": loaded}) as studio, serving(studio) as url:
        call = f"{url}gradio_api/call/texts"
        given = [["a flag"], 1, None, None, 0, "neighbours", None, None, {"steps": 1}]
        event = httpx.post(call, json={"data": given}).json()["event_id"]
        assert '"png"' in httpx.get(f"{call}/{event}", timeout=60).text
    watching = False
    assert asked == []


def test_requests_that_are_no_requests_are_answered(address: str) -> None:
    join = f"{address}gradio_api/queue/join"
    for body in (b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"data": 5}', b"\xff\xfe", bytes(300_000)):
        answer = httpx.post(join, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 600 and "Traceback" not in answer.text
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert httpx.request(method, address).status_code in (400, 404, 405)
    for route in ("component_server", "process_recording", "vibe-edit", "runs", "deep_link", "dev/reload"):
        assert httpx.post(f"{address}gradio_api/{route}", json={}).status_code == 404, route
        assert httpx.get(f"{address}gradio_api/{route}").status_code == 404, route
    assert httpx.get(f"{address}config").status_code == 200


def test_a_request_that_no_endpoint_takes_is_refused_and_its_connection_serves_the_next(address: str) -> None:
    call = f"{address}gradio_api/call"
    with httpx.Client(limits=httpx.Limits(max_connections=1)) as browser:
        for _ in range(3):
            for name, given in (("nothing", {}), ("settings", {"nothing": 1}), ("texts", {})):
                answer = browser.post(f"{call}/v2/{name}", json=given)
                assert answer.status_code == 400 and "gradio_api/info" in answer.json()["detail"]
                assert browser.get(f"{address}gradio_api/app_id").status_code == 200
            answer = browser.get(f"{call}/settings/nothing")
            assert answer.text.startswith("event: error\n") and answer.headers["content-type"].startswith("text/event")
            assert browser.get(f"{address}gradio_api/app_id").status_code == 200


def test_a_password_is_asked_for(loaded: Pipeline) -> None:
    with Studio({"flags": loaded}) as studio, serving(studio, auth=("me", "secret")) as url:
        for path in ("config", "gradio_api/info", f"gradio_api/file={studio.folder}/x"):
            assert httpx.get(f"{url}{path}").status_code == 401
        assert httpx.post(f"{url}gradio_api/queue/join", json={"data": [], "session_hash": "a"}).status_code == 401
        assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 401
        with httpx.Client() as browser:
            assert browser.post(f"{url}login", data={"username": "me", "password": "wrong"}).status_code == 400
            assert browser.post(f"{url}login", data={"username": "me", "password": "secret"}).status_code == 200
            assert browser.get(f"{url}config").status_code == 200


def test_a_full_queue_says_so(loaded: Pipeline) -> None:
    client = pytest.importorskip("gradio_client")
    with Studio({"flags": loaded}, Limits(queue=1)) as studio, serving(studio) as url, studio.lock:
        own = client.Client(url, verbose=False)
        waiting = [own.submit(["a flag"], settings={"steps": 1}, api_name="/texts")]
        deadline = time.monotonic() + 20
        while not any(job.done() for job in waiting) and time.monotonic() < deadline:
            waiting.append(client.Client(url, verbose=False).submit(["a flag"], api_name="/texts"))
            time.sleep(0.5)
        (full,) = [job for job in waiting if job.done()][:1]
        assert "busy" in str(full.exception()).lower() or "queue" in str(full.exception()).lower()
        studio.lock.release()
        assert len(waiting[0].result(timeout=60)["images"]) == 1
        studio.lock.acquire()


def test_a_host_on_the_network_needs_a_password_or_consent() -> None:
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.2", "a.org")] == [  # noqa: S104
        True, True, True, False, False, False,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--auth user:password, or --open"):
        check_host("0.0.0.0", None, False)  # noqa: S104
    check_host("0.0.0.0", ("a", "b"), False)  # noqa: S104
    check_host("0.0.0.0", None, True)  # noqa: S104
    check_host("127.0.0.1", None, False)
    assert login("me:a:b") == ("me", "a:b")
    for text in ("me", "me:", ":b", ""):
        with pytest.raises(ValueError, match="user:password"):
            login(text)


def test_the_script_refuses_a_host_on_the_network_at_once() -> None:
    command = [sys.executable, "scripts/web.py", "--host", "0.0.0.0"]  # noqa: S104
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: got --host 0.0.0.0 without --auth")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_at_once_while_it_samples(loaded: Pipeline, number: int, tmp_path: Path) -> None:
    client = pytest.importorskip("gradio_client")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "scripts/web.py", "--ckpt", str(loaded.path), "--most_steps", "1000"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        url = server.stdout.readline().split()[4].rstrip(";")
        own = client.Client(url, verbose=False)
        own.submit(["a flag"], n=16, settings={"steps": 1000}, api_name="/texts")
        time.sleep(3)
        assert list(tmp_path.glob("rdm-web-*"))
        begin = time.monotonic()
        server.send_signal(number)
        said = server.stderr.read()
        code = server.wait(timeout=60)
        took = time.monotonic() - begin
    assert code == 128 + number and "Traceback" not in said
    assert took < 30  # the images would take minutes, and other tests run at the same time
    assert list(tmp_path.glob("rdm-web-*")) == []


def test_threads_end_with_the_server(loaded: Pipeline) -> None:
    with Studio({"flags": loaded}) as studio, serving(studio) as url:
        assert httpx.get(url).status_code == 200
    assert not [thread for thread in threading.enumerate() if thread.name == "sampling"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
