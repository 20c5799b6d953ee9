"""Command lines from frozen dataclasses: flags over YAML over recipe over defaults. Imports no torch, no lightning."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from jsonargparse import ArgumentParser

Config = TypeVar("Config", bound=Any)
CONFIG_FILE = "config.yaml"


def field_docs(config: type) -> dict[str, str]:
    """The string under each field of a dataclass and of those it inherits; nested dataclasses give dotted names.

    Args:
        config: A dataclass whose source is at hand.
    Returns:
        Field name -> its text on one line.
    Raises:
        TypeError: `config` is no dataclass.
    """
    docs: dict[str, str] = {}
    for part in reversed([base for base in config.__mro__ if dataclasses.is_dataclass(base)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for node, below in itertools.pairwise(body):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[node.target.id] = " ".join(str(below.value.value).split())
    for f in dataclasses.fields(config):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            docs |= {f"{f.name}.{key}": text for key, text in field_docs(f.type).items()}
    return docs


class _Parser(ArgumentParser):
    """jsonargparse that takes and shows dashes, prints field docstrings, and answers a typo with the near miss."""

    def format_help(self) -> str:
        text = re.sub(r"--[a-z][\w.]*", lambda m: m.group().replace("_", "-"), super().format_help())
        return re.sub(r"^<class '[\w.]*?(\w+)'>:", r"\1:", text, flags=re.M)

    def error(self, message: str, ex: Exception | None = None) -> None:
        unknown = re.match(r"[Uu]nrecognized arguments: (--\S+)", message)
        if unknown:
            flag = unknown.group(1).partition("=")[0].replace("_", "-")
            known = [o.replace("_", "-") for a in self._actions for o in a.option_strings]
            near = difflib.get_close_matches(flag, known, n=3)
            message = f"unknown option {flag}" + (f"; did you mean {' or '.join(near)}?" if near else "; see --help")
        message = " ".join(message.split())
        message = re.sub(r'Parser key "([\w.]+)":', lambda m: f"--{m.group(1).replace('_', '-')}:", message)
        choice = re.match(
            r"(--\S+) Does not validate against any .* Subtypes: \[(.*)\] Errors: .* value: (.*)$", message
        )
        if choice:
            wanted = re.sub(r"<class '(\w+)'>", r"\1", choice.group(2)).replace("NoneType", "null")
            message = f"{choice.group(1)} expected one of {wanted}. Got value: {choice.group(3)}"
        message = message.replace("Expected a typing.Literal", "expected one of ").replace("typing.Literal", "")
        message = re.sub(r"Expected an? <class '([\w.]+)'>", r"expected \1", message)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def make_parser(
    config: type, prog: str, usage: str = "", recipes: Sequence[str] = (), positional: str | None = None
) -> ArgumentParser:
    """A parser for one dataclass, with --config, --print-config and, where recipes are given, --recipe.

    Args:
        config: Frozen keyword-only dataclass; fields of plain types and further such dataclasses.
        prog: What the person typed, for messages.
        usage: First line of the help, without `prog`.
        recipes: Names for --recipe.
        positional: Field that takes the words without a flag, one or more.
    Raises:
        TypeError: `config` is no dataclass.
    """
    parser = _Parser(prog=prog, usage=f"{prog} {usage or '[options]'}", description=inspect.getdoc(config))
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    if recipes:
        parser.add_argument("--recipe", type=str, help=f"Start from a named configuration: {', '.join(recipes)}.")
    if positional:
        parser.add_argument(positional, nargs="+", type=str)
    parser.add_class_arguments(config, skip={positional} if positional else set())
    docs = field_docs(config)
    for action in parser._actions:
        if action.dest in docs:
            nested = any(dest.startswith(action.dest + ".") for dest in docs)
            action.help = docs[action.dest].replace("%", "%%") + ("" if nested else " (default: %(default)s)")
    return parser


def parse(
    config: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    usage: str = "",
    recipes: Mapping[str, Callable[[], Config]] | None = None,
    positional: str | None = None,
) -> Config:
    """Read a command line into a frozen config.

    `--resume RUN_DIR` puts RUN_DIR/config.yaml under the other flags; `--recipe NAME` changes the defaults.

    Args:
        config: The dataclass; a field `resume` switches the --resume rule on.
        argv: Arguments without the program name, None for those of the process; dashes inside option names are as good
            as underscores, the name of a yes-or-no option alone is a yes, and a list may come without its brackets.
        prog: What the person typed, for messages.
        usage: First line of the help, without `prog`.
        recipes: Functions that return a config, by name.
        positional: Field, a tuple of words, that takes the words without a flag.
    Returns:
        An instance of `config`.
    Raises:
        SystemExit: With status 2 and one sentence on stderr for a bad option, 0 after --help or --print-config.
    """
    recipes = dict(recipes or {})
    switches = {f"--{f.name}" for f in dataclasses.fields(config) if f.type is bool}
    words = _switched([_underscored(word) for word in (sys.argv[1:] if argv is None else argv)], switches)
    words = _bracketed(words, _list_options(config))
    parser = make_parser(config, prog, usage, tuple(recipes), positional)
    if name := _value_of("--recipe", words):
        if name not in recipes:
            near = difflib.get_close_matches(name, recipes, n=3) or list(recipes)
            parser.error(f"unknown recipe {name!r}; did you mean {' or '.join(near)}?")
        parser.set_defaults(_plain(dataclasses.asdict(recipes[name]())))
    if run_dir := _value_of("--resume", words):
        saved = Path(run_dir) / CONFIG_FILE
        if not saved.is_file():
            parser.error(f"--resume {run_dir}: there is no {CONFIG_FILE} in it; give a folder that an earlier run made")
        words = ["--config", str(saved), *words]
    parsed = parser.parse_args(words)
    try:  # a dataclass may refuse its values
        values = parser.instantiate(parsed)
        found = {f.name: values[f.name] for f in dataclasses.fields(config)}
        return config(**found | ({positional: tuple(found[positional])} if positional else {}))
    except ValueError as error:
        parser.error(str(error))


def dump(config: Any) -> str:
    """A config as YAML that `--config` reads back.

    Args:
        config: An instance of a config dataclass.
    Returns:
        YAML text.
    Raises:
        TypeError: `config` is no dataclass instance.
    """
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, eq, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + eq + value


def _switched(words: list[str], switches: set[str]) -> list[str]:
    """A yes-or-no option without a yes or no after it means yes."""
    following = [*words, "--"][1:]
    bare = (w in switches and after.lower() not in ("true", "false") for w, after in zip(words, following, strict=True))
    return [f"{word}=true" if alone else word for word, alone in zip(words, bare, strict=True)]


def _list_options(config: type, prefix: str = "--") -> set[str]:
    """Options that take a tuple, those of nested dataclasses too."""
    found = set()
    for f in dataclasses.fields(config):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            found |= _list_options(f.type, f"{prefix}{f.name}.")
        elif any(get_origin(kind) is tuple for kind in (f.type, *get_args(f.type))):
            found.add(prefix + f.name)
    return found


def _bracketed(words: list[str], lists: set[str]) -> list[str]:
    """`--levels 0.1,0.9` means `--levels [0.1,0.9]`."""

    def bracketed(value: str) -> str:
        return value if value.startswith("[") or value in ("null", "") else f"[{value}]"

    found = list(words)
    for i, word in enumerate(words):
        name, eq, value = word.partition("=")
        if name in lists and eq:
            found[i] = f"{name}={bracketed(value)}"
        elif name in lists and i + 1 < len(words) and not words[i + 1].startswith("--"):
            found[i + 1] = bracketed(words[i + 1])
    return found


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _plain(value: Any) -> Any:
    """Tuples to lists, all the way down: YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
