"""Flags as fields of frozen dataclasses.

A configuration is a frozen dataclass of sections, each a frozen dataclass whose fields are made by `option`,
`switch` and `many`. From that one table come the command line, its help, the environment twins
(`APP_<FLAG>`), the TOML file and its printed form. The command line beats the environment, which beats the
file.
"""

import argparse
import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, NoReturn, Protocol, TypeVar

T = TypeVar("T")
S = TypeVar("S", bound=str)

ENV_PREFIX = "APP_"
_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})
MASK = "********"


class UsageError(Exception):
    """The command line, the environment or the configuration file asks for something that cannot be had."""


@dataclass(frozen=True, slots=True)
class Flag:
    """How one field is set. `parse` turns text into its value and raises ValueError with a reason.

    names: option strings, the field's own name first; off: option strings that switch it off.
    shown: what the help gives as the default where the default is no value by itself.
    """

    help: str
    parse: Callable[[str], object]
    names: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    metavar: str = ""
    is_switch: bool = False
    is_many: bool = False
    is_positional: bool = False
    is_secret: bool = False
    shown: str | None = None


class _Section(Protocol):
    """Any dataclass instance; the protocol is how typeshed spells that."""

    __dataclass_fields__: "ClassVar[dict[str, dataclasses.Field[object]]]"


C = TypeVar("C", bound=_Section)


def option(
    default: T,
    parse: Callable[[str], T],
    help: str,
    *names: str,
    metavar: str = "",
    shown: str | None = None,
    positional: bool = False,
) -> T:
    """A field with one value; `names` are further option strings."""
    flag = Flag(help, parse, names, metavar=metavar, shown=shown, is_positional=positional)
    return field(default=default, metadata={"flag": flag})


def switch(default: T, help: str, *names: str, off: Sequence[str] = (), shown: str | None = None) -> T:
    """A field that is on or off (or None: follows from the others)."""
    flag = Flag(help, boolean, names, tuple(off), is_switch=True, shown=shown)
    return field(default=default, metadata={"flag": flag})


def many(
    parse: Callable[[str], T], help: str, *names: str, metavar: str = "", secret: bool = False
) -> tuple[T, ...]:
    """A field with any number of values: several after one flag, a list in TOML, commas in the variable.

    A `secret` one is printed as `MASK` for each value.
    """
    flag = Flag(help, parse, names, metavar=metavar, is_many=True, is_secret=secret)
    empty: tuple[T, ...] = ()
    return field(default=empty, metadata={"flag": flag})


def text(value: str) -> str:
    if not value:
        raise ValueError("may not be empty")
    return value


def boolean(value: str) -> bool:
    if value.lower() in _ON | _OFF:
        return value.lower() in _ON
    raise ValueError(f"{value!r} is neither true nor false")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Parses a whole number in [low, high]."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a whole number") from None
        if number < low or (high is not None and number > high):
            raise ValueError(f"{number} is {_outside(low, high)}")
        return number

    return parse


def real(low: float, high: float | None = None) -> Callable[[str], float]:
    """Parses a finite number in [low, high]."""

    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
        if not math.isfinite(number) or number < low or (high is not None and number > high):
            raise ValueError(f"{value} is {_outside(low, high)}")
        return number

    return parse


def choice(*choices: S) -> Callable[[str], S]:
    """Parses one of a few words."""

    def parse(value: str) -> S:
        for word in choices:
            if word == value:
                return word
        raise ValueError(f"{value!r} is none of {', '.join(choices)}{_suggest(value, choices)}")

    return parse


def _outside(low: float, high: float | None) -> str:
    least, most = (f"{n:,}" if isinstance(n, int) else f"{n:g}" for n in (low, high or 0))
    return f"less than {least}" if high is None else f"not between {least} and {most}"


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table: where its value goes and what it is called."""

    section: str
    field: str
    flag: Flag
    default: object

    @property
    def key(self) -> tuple[str, str]:
        return (self.section, self.field)

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.field.upper()

    @property
    def fields(self) -> list[str]:
        """Its names in a file: the field's own, and those of its further long option strings."""
        others = [name[2:].replace("-", "_") for name in self.flag.names if name.startswith("--")]
        return [self.field, *others]

    @property
    def environment(self) -> list[str]:
        return [ENV_PREFIX + name.upper() for name in self.fields]

    @property
    def on_strings(self) -> list[str]:
        return ["--" + self.field.replace("_", "-"), *self.flag.names]

    @property
    def off_strings(self) -> list[str]:
        return ["--no-" + self.field.replace("_", "-"), *self.flag.off] if self.flag.is_switch else []


def table(config: _Section) -> Iterator[Entry]:
    """Every flag of a configuration, with the defaults that it holds."""
    for part in dataclasses.fields(config):
        section = getattr(config, part.name)
        for item in dataclasses.fields(section):
            flag = item.metadata.get("flag")
            if isinstance(flag, Flag):
                yield Entry(part.name, item.name, flag, getattr(section, item.name))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


@dataclass(frozen=True, slots=True)
class Action:
    """A flag that is no setting; it stands on the command line only."""

    name: str
    help: str


class CommandLine(Generic[C]):
    """One program's flags. `base` holds its defaults, `actions` the flags that are no settings."""

    def __init__(
        self, prog: str, description: str, base: C, actions: Sequence[Action] = (), lead: str = ""
    ) -> None:
        """lead: the section that the help shows first."""
        self.prog = prog
        self.base = base
        self.entries = _distinct(table(base))
        self.actions = list(actions)
        self._parser = _Parser(
            prog=prog,
            usage="%(prog)s [MODEL] [settings]",
            description=description,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            epilog="Every setting has a twin in the environment (--batch-size is APP_BATCH_SIZE) and in the "
            "TOML file (batch_size). The command line beats the environment, which beats the file.",
        )
        for action in self.actions:
            names = ["-h", "--help"] if action.name == "help" else ["--" + action.name]
            self._parser.add_argument(
                *names, dest="action " + action.name, action="store_true", help=action.help
            )
        self._parser.add_argument("--config", metavar="FILE", help="TOML file to read settings from")
        sections = list(dict.fromkeys(entry.section for entry in self.entries))
        for section in sorted(sections, key=lambda section: section != lead):
            about = (getattr(base, section).__doc__ or "").partition("\n\n")[0]
            group = self._parser.add_argument_group(section, " ".join(about.split()))
            for entry in self.entries:
                if entry.section == section:
                    _add(group, entry)

    def help(self) -> str:
        return self._parser.format_help()

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[C, frozenset[str]]:
        """The configuration, and the names of the actions asked for. Raises UsageError."""
        known, unknown = self._parser.parse_known_args(list(argv))
        if unknown:
            raise UsageError(self._unknown(unknown[0]))
        given: dict[str, object] = vars(known)
        actions = frozenset(a.name for a in self.actions if "action " + a.name in given)
        path = given.get("config", environ.get(ENV_PREFIX + "CONFIG"))
        values: dict[tuple[str, str], object] = {}
        if isinstance(path, str) and path:
            values |= self._from_file(Path(path))
        values |= self._from_environment(environ)
        values |= self._from_command_line(given, argv)
        return self._build(values), actions

    def typed(self, argv: Sequence[str]) -> frozenset[str]:
        """The fields that the command line itself sets."""
        known = vars(self._parser.parse_known_args(list(argv))[0])
        return frozenset(
            entry.field
            for entry in self.entries
            if known.get(_dest(entry), known.get("positional " + entry.field)) is not None
        )

    def secrets(self, argv: Sequence[str]) -> list[str]:
        """The flags with secrets that stand on the command line."""
        typed = {word.split("=", 1)[0] for word in argv}
        return [
            name
            for entry in self.entries
            if entry.flag.is_secret
            for name in entry.on_strings
            if name in typed
        ]

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument {word!r}"
        name = word.split("=", 1)[0]
        strings = [string for entry in self.entries for string in entry.on_strings + entry.off_strings]
        strings += ["--config", *("--" + action.name for action in self.actions)]
        return f"unknown flag {name}{_suggest(name, strings)}"

    def _from_command_line(
        self, given: Mapping[str, object], argv: Sequence[str]
    ) -> dict[tuple[str, str], object]:
        values: dict[tuple[str, str], object] = {}
        typed = [word.split("=", 1)[0] for word in argv]
        for entry in self.entries:
            value = given.get(_dest(entry))
            if value is not None:
                name = next(
                    (word for word in reversed(typed) if word in entry.on_strings), entry.on_strings[0]
                )
                values[entry.key] = _convert(entry, name, value)
            value = given.get("positional " + entry.field)
            if value is not None:
                converted = _convert(entry, entry.field.upper(), value)
                if values.get(entry.key, converted) != converted:
                    raise UsageError(
                        f"{entry.on_strings[0]} and the argument {value!r} differ; give one of them"
                    )
                values[entry.key] = converted
        return values

    def _from_environment(self, environ: Mapping[str, str]) -> dict[tuple[str, str], object]:
        values: dict[tuple[str, str], object] = {}
        for entry in self.entries:
            for name in entry.environment:
                value = environ.get(name)
                if not value:
                    continue
                parts = [part.strip() for part in value.split(",")] if entry.flag.is_many else value
                _put(values, entry, _convert(entry, name, parts), name)
        return values

    def _from_file(self, path: Path) -> dict[tuple[str, str], object]:
        try:
            document: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config: {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--config: {path}: {error}") from None
        entries = {name: entry for entry in self.entries for name in entry.fields}
        entries |= {entry.field: entry for entry in self.entries}
        sections = {entry.section for entry in self.entries}
        flat: list[tuple[str, object]] = []
        for name, value in document.items():
            flat += list(value.items()) if name in sections and isinstance(value, dict) else [(name, value)]
        values: dict[tuple[str, str], object] = {}
        for name, value in flat:
            known = entries.get(name.replace("-", "_"))
            if known is None:
                raise UsageError(f"{path}: unknown setting {name}{_suggest(name, list(entries))}")
            _put(values, known, _convert(known, f"{path}: {name}", value), f"{path}: {name}")
        return values

    def _build(self, values: Mapping[tuple[str, str], object]) -> C:
        sections: dict[str, object] = {}
        for part in dataclasses.fields(self.base):
            changes = {name: value for (section, name), value in values.items() if section == part.name}
            sections[part.name] = dataclasses.replace(getattr(self.base, part.name), **changes)
        return dataclasses.replace(self.base, **sections)


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    """Without the names that a later field has, too: a program that builds on the table of another may give a
    name of it a meaning of its own.
    """
    kept: list[Entry] = []
    taken: set[str] = set()
    for entry in reversed(list(entries)):
        if entry.on_strings[0] in taken:
            continue
        names = tuple(name for name in entry.flag.names if name not in taken)
        kept.append(dataclasses.replace(entry, flag=dataclasses.replace(entry.flag, names=names)))
        taken |= {*entry.on_strings, *entry.off_strings}
    return kept[::-1]


def _dest(entry: Entry) -> str:
    return f"{entry.section} {entry.field}"


def _add(group: "argparse._ArgumentGroup", entry: Entry) -> None:
    flag = entry.flag
    if flag.is_switch:
        group.add_argument(
            *entry.on_strings, dest=_dest(entry), action="store_const", const="true", help=_help(entry)
        )
        group.add_argument(
            *entry.off_strings, dest=_dest(entry), action="store_const", const="false", help=argparse.SUPPRESS
        )
        return
    metavar = flag.metavar or entry.field.rsplit("_", 1)[-1].upper()
    if flag.is_positional:
        group.add_argument(
            "positional " + entry.field, nargs="?", metavar=metavar, help=f"the same as {entry.on_strings[0]}"
        )
    group.add_argument(
        *entry.on_strings,
        dest=_dest(entry),
        metavar=metavar,
        nargs="+" if flag.is_many else None,
        help=_help(entry),
    )


def _put(values: dict[tuple[str, str], object], entry: Entry, value: object, name: str) -> None:
    """Raises UsageError where a setting has been given under another of its names, with another value."""
    if values.setdefault(entry.key, value) != value:
        raise UsageError(f"{name} differs from what {entry.field} is set to; give one of them")


def _help(entry: Entry) -> str:
    off = f" ({entry.off_strings[-1]} turns it off)" if entry.flag.is_switch else ""
    default = entry.default
    if default in (None, ()):
        shown = entry.flag.shown or ""
    elif entry.flag.is_switch:
        shown = "on" if default else "off"
    else:
        shown = str(default)
    return (entry.flag.help + off + (f" [{shown}]" if shown else "")).replace("%", "%%")


def _convert(entry: Entry, name: str, value: object) -> object:
    """The value of a flag from text, or from what TOML made of it. Raises UsageError that names the flag."""
    flag = entry.flag
    try:
        if flag.is_many:
            items = value if isinstance(value, list) else [value]
            return tuple(flag.parse(_as_text(item, False)) for item in items)
        return flag.parse(_as_text(value, flag.is_switch))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _as_text(value: object, is_switch: bool) -> str:
    if isinstance(value, bool) and is_switch:
        return "true" if value else "false"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not of the right type")
    return str(value)


def to_toml(config: _Section, *, masked: bool = False, without: Collection[str] = ()) -> str:
    """The configuration as a file that `--config` reads back; what is unset stands there as a comment.

    masked: secrets are not told, and have to be filled in again. without: fields that are left out.
    """
    lines: list[str] = []
    section = ""
    for entry in table(config):
        if entry.field in without:
            continue
        if entry.section != section:
            section = entry.section
            lines += ["", f"[{section}]"]
        if entry.default is None:
            lines.append(f"# {entry.field} is not set")
        else:
            value = list(entry.default) if isinstance(entry.default, tuple) else entry.default
            if masked and entry.flag.is_secret and isinstance(value, list):
                value = [MASK] * len(value)
            lines.append(f"{entry.field} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines[1:]) + "\n"
