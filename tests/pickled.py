"""A pickle that does something, for tests that nothing in a file is run."""

import os
from pathlib import Path


class Evil:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)
