"""Classes of this project as their source describes them: parameters and docstrings, without importing torch."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
# What says where a description is, instead of giving it.
ELSEWHERE = re.compile(r"^(with the next \w+, )?see (there|:)")
ROLE = re.compile(r":\w+:`~?([^`]+)`")
OPEN = (griffe.ParameterKind.var_keyword, griffe.ParameterKind.var_positional)


@dataclass(frozen=True)
class Key:
    """A parameter of a constructor.

    Attributes:
        name: its name.
        type: its annotation as it is written.
        default: its default as it is written, with the values of constants; None if it is required.
        about: what the docstrings say about it, in Markdown.
    """

    name: str
    type: str
    default: str | None
    about: str


@functools.cache
def sources() -> griffe.ModulesCollection:
    """Returns the modules of the packages."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    for package in ("ldm", "rdm"):
        loader.load(package)
    loader.resolve_aliases(implicit=True, external=False)
    return loader.modules_collection


def class_of(target: str) -> griffe.Class:
    """Returns the class with a dotted name, also one that its package imports when it is first used.

    Raises:
        KeyError: there is no such class.
    """
    package, _, name = target.rpartition(".")
    module: Any = sources()[package]
    if name not in module.members and "_HOME" in module.members:
        package = f"{package}.{ast.literal_eval(str(module['_HOME'].value))[name]}"
    found: Any = sources()[f"{package}.{name}"]
    return found.final_target if found.is_alias else found


def summary_of(target: str) -> str:
    """Returns the first paragraph of a class's docstring, in Markdown."""
    docstring = class_of(target).docstring
    return in_markdown(docstring.value.split("\n\n")[0]) if docstring else ""


def keys_of(target: str) -> list[Key]:
    """Returns the parameters of a class. ``**options`` stand for the parameters of its base class."""
    found = class_of(target)
    about, named = descriptions(found), set[str]()
    keys: list[Key] = []
    for each in [found, *found.mro()]:
        if "__init__" not in each.members:
            continue
        for parameter in each.parameters:
            if parameter.name != "self" and parameter.kind not in OPEN and parameter.name not in named:
                words = in_markdown(about.get(parameter.name, ""))
                keys.append(Key(parameter.name, str(parameter.annotation or ""), _default(parameter), words))
                named.add(parameter.name)
        if not any(parameter.kind is griffe.ParameterKind.var_keyword for parameter in each.parameters):
            break
    return keys


def _default(parameter: griffe.Parameter) -> str | None:
    """Returns a default in which the value of a constant stands in place of its name."""
    default = parameter.default
    if isinstance(default, griffe.ExprName | griffe.ExprAttribute):
        constant: Any = sources()[default.canonical_path]
        return str(constant.value)
    return None if default is None else str(default)


def descriptions(found: griffe.Class) -> dict[str, str]:
    """Returns what the docstrings of a class say about its parameters and attributes, by name.

    The class itself comes before its base classes, and these come before the methods of all of them. A description that
    only names the place of another one counts last.
    """
    line = [found, *found.mro()]
    methods = [each for base in line for each in base.members.values() if each.is_function]
    about: dict[str, str] = {}
    for docstring in [each.docstring for each in [*line, *methods] if each.docstring]:
        for section in docstring.parse("google", warnings=False):
            for each in section.value if section.kind.value in ("parameters", "attributes") else []:
                before = about.get(each.name)
                if before is None or (ELSEWHERE.match(before) and not ELSEWHERE.match(each.description)):
                    about[each.name] = each.description
    return about


def in_markdown(docstring: str) -> str:
    """Returns the text of a docstring without the roles of Sphinx: ``:class:`X``` becomes code."""
    return ROLE.sub(r"`\1`", docstring).replace("``", "`")
