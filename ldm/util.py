"""Builds objects from configs, and checks a config's names with errors of one line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LOG = logging.getLogger(__name__)

# A config may come from a stranger, so that a ``target`` may name only classes of these packages.
TRUSTED_PACKAGES = (
    "ldm",
    "rdm",
    "main",
    "torch.nn",
    "torch.optim",
    "torchvision",
    "taming",
    "open_clip",
    "pytorch_lightning",
    "kornia",
)
# Targets in released configs whose classes lie in CompVis' main.py, need an older Lightning or download files when they
# are built, and the class of this project that is built in their place.
REPLACED = {
    "main.DataModuleFromConfig": "ldm.convert.training.DataModuleFromConfig",
    "main.ImageLogger": "ldm.convert.training.ImageLogger",
    "taming.data.custom.CustomTrain": "ldm.data.taming.CustomTrain",
    "taming.data.custom.CustomTest": "ldm.data.taming.CustomTest",
    "taming.data.faceshq.FFHQTrain": "ldm.data.taming.FFHQTrain",
    "taming.data.faceshq.FFHQValidation": "ldm.data.taming.FFHQValidation",
    "taming.data.imagenet.ImageNetTrain": "ldm.data.imagenet.ImageNetTrain",
    "taming.data.imagenet.ImageNetValidation": "ldm.data.imagenet.ImageNetValidation",
    "taming.models.vqgan.VQModel": "ldm.models.autoencoder.VQModel",
    "taming.modules.losses.lpips.LPIPS": "ldm.modules.losses.lpips.LPIPS",
    "taming.modules.losses.vqperceptual.DummyLoss": "ldm.modules.losses.contperceptual.DummyLoss",
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": (
        "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    ),
}

# What a config can name in place of a data set that this project does not have.
DATA_SETS = "ldm.data.ImageFolder (folders and lists of files), ldm.data.ParquetImages or ldm.data.WebDatasetImages"

# Types of parameters, as signatures write them, for which a config may not give a string.
NUMBERS = ("int", "float", "bool", "int | float", "float | int")

# Further packages that the user of this process trusts, see `trust`.
_trusted: set[str] = set()


def trust(*packages: str) -> None:
    """Accepts targets in further packages for the rest of the process.

    Raises:
        ValueError: a word is no dotted name of a package.
    """
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise ValueError(f"--trust: got '{package}', expected the name of a package, such as 'mypackage.models'")
        _trusted.add(package)


def trusted() -> tuple[str, ...]:
    """Returns the packages that were given to :func:`trust`, so that another process can trust them too."""
    return tuple(sorted(_trusted))


def to_install(extra: str) -> str:
    """Returns the command that installs the packages of an extra of this project, from whatever folder it is given."""
    return f"pip install 'retrieval-augmented-diffusion[{extra}]'"


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` with the most similar known word, or ``""`` if no known word is similar."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def get_obj_from_str(target: str) -> Any:
    """Returns the object that a dotted path names, e.g. ``"ldm.models.autoencoder.VQModel"``.

    The built-in trusted packages also contain functions that write or download files, and names from elsewhere: only
    classes that are defined in these packages are accepted. In packages that the user trusts, any object is accepted.

    Raises:
        ValueError: the path lies outside the trusted packages, does not exist, or is no class of theirs.
    """
    if not _lies_in(target, (*TRUSTED_PACKAGES, *_trusted)):
        raise ValueError(
            f"target '{target}' is not trusted; a config may name only {', '.join(TRUSTED_PACKAGES)}; "
            f"if you trust its code, give --trust {target.partition('.')[0] or 'PACKAGE'}"
        )
    module_name, _, attribute = REPLACED.get(target, target).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if not _is_of_a_module(error, module_name):
            raise ValueError(
                f"target '{target}': its module cannot be imported ({error}); install what is missing{_instead(target)}"
            ) from error
        known = _instead(target) or "; correct the name, which is that of a module and of a class in it"
        raise ValueError(f"target '{target}': there is no module '{module_name}'{known}") from error
    if not hasattr(module, attribute):
        hint = nearest(attribute, dir(module)) or _instead(target) or f"; name a class or function of {module_name}"
        raise ValueError(f"target '{target}': no such name in {module_name}{hint}")
    found = getattr(module, attribute)
    own = isinstance(found, type) and _lies_in(f"{found.__module__}.", TRUSTED_PACKAGES)
    if not own and not _lies_in(target, _trusted):
        what = f"a class of {found.__module__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ValueError(
            f"target '{target}' is {what}, expected a class of {target.partition('.')[0]}'s own; if you trust it, give "
            f"--trust {module_name}"
        )
    return found


def _is_of_a_module(error: ImportError, name: str) -> bool:
    """Whether an error says that a module, or a package that it lies in, is not there."""
    return isinstance(error, ModuleNotFoundError) and bool(error.name) and f"{name}.".startswith(f"{error.name}.")


def _instead(target: str) -> str:
    """Returns what to name in place of a data set of CompVis' code that is not here, or ``""``."""
    return f"; in its place, name {DATA_SETS}" if target.startswith(("ldm.data.", "taming.data.")) else ""


def _lies_in(name: str, packages: Iterable[str]) -> bool:
    return any(name.startswith(package + ".") for package in packages)


def names_when_used(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a ``__getattr__`` for a package, which imports each name at its first use.

    Args:
        package: name of the package.
        homes: for each name, the module of the package that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package} has no attribute {name}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get


def instantiate_from_config(config: Mapping[str, Any], **extra: Any) -> Any:
    """Returns a new object of the class and with the arguments that ``{"target": ..., "params": {...}}`` names.

    Args:
        config: the mapping; ``params`` may be absent.
        extra: further keyword arguments, which win over ``params``.

    Raises:
        ValueError: no target, an untrusted or unknown target, or a parameter the target does not take.
    """
    check_target(config)
    unknown = set(config) - {"target", "params", "base_learning_rate"}
    if unknown:
        key, keys = sorted(map(str, unknown))[0], ["target", "params"]
        raise ValueError(
            f"{config['target']}: unknown key '{key}'{nearest(key, keys) or ', expected ' + ' or '.join(keys)}"
        )
    build = get_obj_from_str(config["target"])
    check_mapping(config.get("params"), f"{config['target']}: params")
    params = {**(config.get("params") or {}), **extra}
    check_params(config["target"], build, params)
    try:
        return build(**params)
    except (TypeError, LookupError) as error:
        raise ValueError(f"{config['target']}: {type(error).__name__} ({error}); correct its params") from error


def in_one_line(error: Exception) -> str:
    """Returns what an error of a library says, in one line of printable characters."""
    return "".join(filter(str.isprintable, " ".join(str(error).split())))


def check_target(config: Any, where: str = "") -> None:
    """Checks that a part of a config is a mapping with a target.

    Args:
        config: the part.
        where: name of the part in the config, which the error tells.

    Raises:
        ValueError: it is none.
    """
    part = f"{where}: " if where else ""
    if not isinstance(config, Mapping) or "target" not in config:
        remedy = "give {target: NAME, params: {...}}"
        raise ValueError(f"{part}expected a mapping with a 'target' key, got {config!r}; {remedy}")
    if not isinstance(config["target"], str):
        got = config["target"]
        raise ValueError(f"{part}got the target {got!r}, expected a dotted name such as ldm.data.ImageFolder")


def check_mapping(value: Any, where: str) -> None:
    """Checks that a part of a config is a mapping or ``None``.

    Raises:
        ValueError: it is something else.
    """
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where}: got {value!r}, expected a mapping of names to values")


def check_params(target: str, build: Callable[..., Any], params: Mapping[str, Any]) -> None:
    """Checks parameters against a callable's signature: no unknown or missing name, and numbers for numbers.

    Raises:
        ValueError: the error names the first wrong or missing parameter, and the most similar known one.
    """
    check_mapping(params, target)
    try:
        signature = _parameters(build)
    except ValueError:  # classes written in C carry no signature
        return
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in signature):
        return
    known = [p.name for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature)
    for name in params:
        if name not in known and not takes_any:
            raise ValueError(
                f"{target} has no parameter '{name}'{nearest(name, known) or ', it takes ' + ', '.join(known)}"
            )
    for parameter in signature:
        value, wanted = params.get(parameter.name), str(parameter.annotation)
        kind = wanted.removesuffix(" | None")
        if isinstance(value, Mapping | list) and kind == "str":
            raise ValueError(f"{target}: got {parameter.name}={value!r}, expected a text")
        if isinstance(value, str) and kind in NUMBERS:
            raise ValueError(f"{target}: got {parameter.name}='{value}', expected {wanted}")
        if isinstance(value, float) and kind == "int" and not value.is_integer():
            raise ValueError(f"{target}: got {parameter.name}={value}, expected a whole number")
    missing = [p.name for p in signature if p.name in known and p.default is p.empty and p.name not in params]
    if missing:
        raise ValueError(f"{target} needs the parameter '{missing[0]}', got {', '.join(params) or 'none'}")


def _parameters(build: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns a callable's parameters; ``**options`` of a class of this project stand for those of its base class."""
    found = list(inspect.signature(build).parameters.values())
    for base in getattr(build, "__mro__", ())[1:]:
        if "__init__" not in vars(base) or not any(p.kind is p.VAR_KEYWORD for p in found):
            continue
        if not base.__module__.startswith(("ldm.", "rdm.")):
            break
        found = [p for p in found if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in found}
        found += [p for p in inspect.signature(base).parameters.values() if p.name not in names]
    return found


def evenly(total: int, n: int) -> list[int]:
    """Returns n ascending numbers, evenly spread from 0 to ``total - 1``; some repeat if n is larger than the total."""
    return [place * (total - 1) // max(n - 1, 1) for place in range(n)]


def bytes_of(text: str) -> int:
    """Returns the number of bytes of a size such as ``1.5GB``, ``512M`` or ``2GiB``.

    Raises:
        ValueError: the text is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG])(I?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"memory: got '{text}', expected a size such as 512MB or 2GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "KMG".index(found[2])))
