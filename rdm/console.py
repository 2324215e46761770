"""The console commands of the package: each runs a script of the project.

The scripts lie in the checkout and, in a wheel, beside the configs and the models, so that a command and its script are
the same file.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ldm.command_line import CALLED
from ldm.files import project

SCRIPTS = {
    "rdm-train": "main.py",
    "rdm-txt2img": "scripts/txt2img.py",
    "rdm-class2img": "scripts/class2img.py",
    "rdm-sample": "scripts/sample.py",
    "rdm-edit": "scripts/edit.py",
    "rdm-web": "scripts/web.py",
    "rdm-database": "scripts/build_database.py",
    "rdm-neighbors": "scripts/search_neighbors.py",
    "rdm-evaluate": "scripts/evaluate.py",
    "rdm-export": "scripts/export_checkpoint.py",
    "rdm-check": "scripts/check_checkpoint.py",
    "rdm-verify": "scripts/verify.py",
    "rdm-demo": "scripts/demo.py",
    "rdm-own": "scripts/own.py",
}


def main() -> None:
    """Runs the script of the command that this process was called by; errors then name commands instead of scripts."""
    command = Path(sys.argv[0]).stem
    CALLED.update({script: name for name, script in SCRIPTS.items()})
    spec: Any = spec_from_file_location(command, project() / SCRIPTS[command])
    sys.modules[command] = script = module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main()
