"""The page with the network cut off: in a network of its own, which has nothing but loopback."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from browsing import CHROMIUM
from toy import ROOT

from rdm.sampling.pipeline import Pipeline

ALONE = """
import hashlib, socket, sys
from browsing import chromium, draw, image_of, opened, tab
from rdm.sampling.pipeline import Pipeline
from rdm.web.server import serving
from rdm.web.studio import Studio

try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print(error.strerror)
with Studio({"flags": Pipeline.load(sys.argv[1])}) as studio, serving(studio) as url, chromium() as browser:
    with opened(browser, url) as page:
        for name in ("Edit", "Between", "Database", "Inspect", "Create"):
            panel = tab(page, name)
        print(hashlib.sha256(image_of(draw(panel, "a flag", 2)).tobytes()).hexdigest())
"""


def test_the_page_needs_no_network(loaded: Pipeline) -> None:
    cut_off = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    tools = all(shutil.which(name) for name in ("unshare", "ip"))
    if not tools or subprocess.run([*cut_off, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system gives a process no network of its own")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install it with 'apt-get install chromium'")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [*cut_off, sys.executable, "-c", ALONE, str(loaded.path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said, made = done.stdout.split("\n")[-3:-1]
    assert said == "Network is unreachable"
    assert made == hashlib.sha256(np.asarray(loaded("a flag", steps=2)[0]).tobytes()).hexdigest()
