"""Options made from config dataclasses, and `--config FILE`, which holds what flags hold.

A dataclass says names, types and defaults; its docstring says what each means. So a setting is written down once, and is the same on the
command line, in a TOML file and in Python.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import tomllib
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from ..errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
_MISSING = dataclasses.MISSING


def config_options(
    config: type,
    argument: str,
    *,
    prefix: str = "",
    defaults: Collection[str] | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    **names: str,
) -> Callable[[F], F]:
    """Options for the fields of a dataclass. The command receives them as one argument: a mapping of the fields that differ from None.

    Args:
        argument: what the command's argument is called.
        prefix: of all flags.
        defaults: fields whose defaults the help shows; all if None.
        only, without: names of fields.
        names: flag by field, where it is another than the field's own.
    """
    fields = [f for f in dataclasses.fields(config) if (only is None or f.name in only) and f.name not in without]
    flags = {f.name: f"{prefix}{names.get(f.name, f.name)}" for f in fields}

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            values = {name: given.pop(flag) for name, flag in flags.items()}
            return function(**given, **{argument: {name: value for name, value in values.items() if value is not None}})

        hints, helps = get_type_hints(config), described_fields(config)
        made: Any = command
        for field in reversed(fields):
            made = _option(
                flags[field.name],
                field.name,
                hints[field.name],
                field.default if defaults is None or field.name in defaults else None,
                helps[field.name],
            )(made)
        return made  # type: ignore[no-any-return]

    return decorate


class ConfigOption(click.Option):
    """The option of a field, whose name messages of the library give."""

    def __init__(self, *declarations: Any, field: str, **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.field = field


def described_fields(config: type) -> dict[str, str]:
    """What the docstring's Args say of each field."""
    text = inspect.cleandoc(config.__doc__ or "").partition("Args:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            break
        if start := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        elif found and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: help[0].upper() + help[1:] for name, help in found.items()}


def _option(flag: str, field: str, hint: Any, default: Any, help: str) -> Callable[[F], F]:
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    settings: dict[str, Any] = {"help": help, "default": None}
    if any(_origin(kind) is Mapping for kind in kinds):
        settings |= {"multiple": True, "metavar": "GLOB=FORMAT", "callback": _pairs}
    elif kinds[0] is bool:
        settings |= {"is_flag": True}
    elif any(_origin(kind) is tuple for kind in kinds) and str not in kinds:
        numbers = any(get_args(kind)[:1] == (float,) for kind in kinds)
        settings |= {"multiple": True, "metavar": "NUMBER" if numbers else "TEXT", "callback": _numbers if numbers else texts}
        settings["help"] += " May be repeated."
    else:
        settings |= {"type": next((kind for kind in (float, int) if kind in kinds and str not in kinds), str)}
    if not (default in (None, _MISSING) or default is False or settings.get("multiple")):
        settings["help"] = f"{help} [default: {default}]"
    return click.option(f"--{flag.replace('_', '-')}", flag, cls=ConfigOption, field=field, **settings)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _origin(kind: Any) -> Any:
    return get_origin(kind) or kind


def texts(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...] | None:
    """A click callback: as many as were given, a comma-separated list among them or not."""
    return tuple(word.strip() for text in given for word in text.split(",")) or None


def _numbers(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[float, ...] | None:
    words = texts(context, parameter, tuple(map(str, given))) or ()
    try:
        return tuple(float(word) for word in words) or None
    except ValueError as error:
        raise InputError(f"`{parameter.name}`: {', '.join(words)} is no list of numbers; give numbers, such as 2,3,4") from error


def _pairs(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str] | None:
    pairs = {}
    for text in texts:
        glob, equals, format = text.rpartition("=")
        if not equals or not glob:
            raise InputError(f"`{parameter.name}` {text!r}: use GLOB=FORMAT, such as '*.to_q=2x8g8'")
        pairs[glob] = format
    return pairs or None


# -- files -------------------------------------------------------------------------------------------------------------------------------


Parameters = Mapping[str, Mapping[str, str]]  # of every verb: what its parameters are called on the command line → in Python


def parameters_of(command: click.Command) -> dict[str, str]:
    """Those of a verb and its subcommands: what each is called on the command line, with underscores → its name in Python."""
    found: dict[str, str] = {}
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        found |= parameters_of(child)
    for parameter in command.params:
        found[max(parameter.opts, key=len).lstrip("-").replace("-", "_")] = str(parameter.name)
    return found


def add_config_file(command: click.Command, verb: str, known: Callable[[], Parameters]) -> None:
    """Give a verb, or each of its subcommands, the option --config FILE.

    Args:
        known: a key of the file's top level is a parameter of some verb, a key of a table [VERB] one of that verb.
    """
    if isinstance(command, click.Group):
        for child in command.commands.values():
            add_config_file(child, verb, known)
        return
    if any(parameter.name == "config" for parameter in command.params):
        return

    def read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is not None:
            options = {parameter.name: parameter for parameter in command.params}
            values = {name: _for_option(path, options.get(name), value) for name, value in _values(path, verb, known()).items()}
            context.default_map = {**(context.default_map or {}), **values}

    command.params.append(
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=read,
            metavar="FILE",
            help="TOML file that holds what flags hold; the command line wins.",
        )
    )


def _values(path: Path, verb: str, known: Parameters) -> dict[str, Any]:
    """What a file says for one verb. Raises InputError for a file that is no TOML, and a key that no verb has, by name."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`config` {path}: cannot be read; check the path") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError, too
        said = str(error).partition("\n")[0]
        raise InputError(f"`config` {path}: not valid TOML ({said}); mend it") from error
    values: dict[str, Any] = {}
    tables = {key: table for key, table in content.items() if key in known and isinstance(table, dict)}
    for key, value in content.items():
        if key in tables:
            continue
        name = key.replace("-", "_")
        if not any(name in names for names in known.values()):
            raise InputError(f"`config` {path}: no verb has a flag for the key {key!r}; see `sedaq VERB --help`")
        values[name] = value
    for table, content in tables.items():
        for key, value in content.items():
            name = key.replace("-", "_")
            if name not in known[table]:
                raise InputError(f"`config` {path}: {table} has no flag for the key {key!r}; see `sedaq {table} --help`")
            if table == verb:
                values[name] = value
    return {known[verb][name]: _as_texts(value) for name, value in values.items() if name in known[verb]}


def _for_option(path: Path, parameter: click.Parameter | None, value: Any) -> Any:
    """A value of a file as the command line would have it, so that click checks it alike. Raises InputError for a list where one value is taken."""
    takes_many = isinstance(parameter, click.Option) and parameter.multiple
    if isinstance(value, list) and not takes_many:
        raise InputError(f"`config` {path}: {parameter.name if parameter else 'a flag'} takes one value, not a list")
    values = [part if isinstance(part, bool) else str(part) for part in (value if isinstance(value, list) else [value])]
    return values if takes_many else values[0]


def _as_texts(value: Any) -> Any:
    """A table GLOB = FORMAT as options hold it."""
    return [f"{glob}={format}" for glob, format in value.items()] if isinstance(value, dict) else value
