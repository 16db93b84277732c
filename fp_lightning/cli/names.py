"""Names of files and folders in options and recipes, which no parser may read as YAML or as an interpolation.

A folder may be called `Trip: Rome`, `[x]`, `#x`, `1e3`, `null` or `a${b}`, or have a name that is not UTF-8. Such a
name passes through the parsers as characters that mean nothing to them, one for each byte.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

MODE = "omegaconf+"  # of jsonargparse: YAML in which ${a.b} stands for another value
NAMES = frozenset({"pairs", "inputs", "default_root_dir", "model", "clip_model", "dift_model", "save_dir", "path"})
OPTIONAL = frozenset({"latents", "holdout", "ckpt_path", "out", "dirpath"})  # `null` leaves them out
PLACES = NAMES | OPTIONAL  # the last words of options whose values are files or folders
_FIRST = 0x10F000  # of 256 characters for private use
_PROTECTED = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + 255)}]+")
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null|y|n)$)(?:[^\W\d]|/|\.\.?/)(?: ?[\w./-])*", re.IGNORECASE)


def protect(name: str) -> str:
    """Return a name as characters that no parser interprets; plain and protected names stay as they are."""
    if _PLAIN.fullmatch(name) or _PROTECTED.fullmatch(name) or not name:
        return name
    return "".join(chr(_FIRST + byte) for byte in os.fsencode(name))


def restore(value: Any) -> Any:
    """Return a text, or a configuration with all its texts, as it was before `protect`."""
    return _mapped(value, lambda key, text: _PROTECTED.sub(_name_of, text))


def protect_values(config: Any) -> Any:
    """Return a copy of a configuration with the values of all keys in `PLACES` protected."""
    return _mapped(config, lambda key, text: protect(text) if key in PLACES else text)


def _mapped(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """Return a copy of `value` in which every text is `change(its key, text)`."""
    if isinstance(value, str):
        return change(key, value)
    if isinstance(value, Namespace):
        return Namespace(_mapped(vars(value), change))
    if isinstance(value, dict):
        return {name: _mapped(item, change, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value


def _name_of(found: re.Match[str]) -> str:
    return os.fsdecode(bytes(ord(character) - _FIRST for character in found[0]))


def protect_options(words: Sequence[str]) -> list[str]:
    """Return command-line words with the values of the options in `PLACES` protected."""
    protected: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if protected and _is_place(protected[-1]) and not word.startswith("--"):
            protected.append(_protect_option(protected[-1], word))
        elif equals and _is_place(option):
            protected.append(f"{option}={_protect_option(option, value)}")
        else:
            protected.append(word)
    return protected


def _is_place(word: str) -> bool:
    """Whether a word is an option whose value is a file or folder. `--model` itself takes a class."""
    return word.startswith("--") and word != "--model" and word.rpartition(".")[2].lstrip("-") in PLACES


def _protect_option(option: str, value: str) -> str:
    left_out = value == "null" and option.rpartition(".")[2].lstrip("-") in OPTIONAL and not Path(value).exists()
    return value if left_out else protect(value)


@cache
def protect_recipes() -> None:
    """Make jsonargparse protect the names in every recipe that it reads, except those with an interpolation."""
    ArgumentParser(parser_mode=MODE).parse_string("{}")  # registers the loader of this mode
    load = get_loader(MODE)

    def load_protected(text: str) -> Any:
        return _mapped(load(text), _protect_literal)

    set_loader(MODE, load_protected, (yaml.YAMLError,))


def _protect_literal(key: str, text: str) -> str:
    return protect(text) if key in PLACES and "${" not in text else text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    readable = restore(text)
    if "${" not in readable and readable.encode(errors="replace").decode() == readable:
        text = readable
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _PLAIN.fullmatch(text) else "'")


_Dumper.add_representer(str, _write_text)


def saved(text: str) -> str:
    """Return a dumped configuration as a recipe that reads back equal.

    Names that YAML would read otherwise are quoted; those with `${` or bytes that are not UTF-8 stay protected.
    """
    return yaml.dump(yaml.safe_load(text), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
