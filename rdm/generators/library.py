"""The packages of the extra ``generators``: imported at their first use, quietly, or an error that names the extra."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ldm.util import to_install


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries from warning of what this module checks itself."""
    logs = diffusers_library().utils.logging
    before = logs.get_verbosity()
    logs.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logs.set_verbosity(before)


def transformers_library() -> Any:
    """Returns transformers.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise not_installed(error) from error
    return transformers


def takes_image_prompts(name: str) -> bool:
    """Returns whether a class of pipelines of diffusers takes image prompts by an IP-Adapter.

    Raises:
        ValueError: diffusers is not installed.
    """
    found = getattr(diffusers_library(), name, None)
    from diffusers.loaders import IPAdapterMixin

    return found is not None and issubclass(found, IPAdapterMixin)


def diffusers_library() -> Any:
    """Returns diffusers.

    Raises:
        ValueError: it or transformers is not installed.
    """
    try:
        import diffusers
        import transformers  # noqa: F401 (the classes of the pipelines exist with it only)
    except ImportError as error:
        raise not_installed(error) from error
    return diffusers


def check_accelerate() -> None:
    """Checks that weights can be offloaded.

    Raises:
        ValueError: accelerate is not installed.
    """
    try:
        import accelerate  # noqa: F401 (diffusers offloads by it)
    except ImportError as error:
        raise not_installed(error) from error


def not_installed(error: ImportError) -> ValueError:
    """Returns the error that says how to install the packages of the extra ``generators``."""
    return ValueError(
        f"a pipeline of diffusers as the generator needs the package {error.name}, which is not installed: "
        f"{to_install('generators')}"
    )
