"""Frozen dataclasses to plain JSON values and back: what configs, weight files and manifests hold.

Every record is written with a `kind` entry, its class name, so that a field whose type is a union
of dataclasses can be read back without a guess. Unknown fields are refused by name, so that a
misspelt one never becomes a silent default. Nothing is unpickled or imported by name from a file.
"""

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
KIND = "kind"


def to_dict(record: Any, *, where: str = "") -> Any:
    """Returns `record` as JSON values: dict, list, str, int, float, bool, None.

    Every dataclass becomes a dict that carries its class name under "kind"; fields that the
    constructor does not take (`init=False`) are derived, so they are left out.

    Args:
      record: a dataclass, or any nest of mappings, lists, tuples and JSON scalars.
      where: path of this value in the whole, for error messages.

    Raises:
      TypeError: naming the path of a value JSON has no word for (an array, infinity, NaN, a key
        that is not a string), or of a record that has a field named "kind" itself.
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        names = [field.name for field in dataclasses.fields(record) if field.init]
        if KIND in names:
            raise TypeError(f"{_join(where, KIND)}: {type(record).__name__} must not use this name")
        values = {name: to_dict(getattr(record, name), where=_join(where, name)) for name in names}
        return {KIND: type(record).__name__} | values
    if isinstance(record, Mapping):
        for name in record:
            if not isinstance(name, str):
                raise TypeError(f"{where}: key {name!r} has no JSON form, it is not a string")
        return {name: to_dict(value, where=_join(where, name)) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [to_dict(value, where=f"{where}[{i}]") for i, value in enumerate(record)]
    finite = not isinstance(record, float) or math.isfinite(record)
    if finite and (record is None or isinstance(record, bool | int | float | str)):
        return record
    raise TypeError(f"{where or 'value'}: {type(record).__name__} {record!r} has no JSON form")


def from_dict(cls: type[T], values: Any, *, where: str = "") -> T:
    """Builds a `cls` from what `to_dict` wrote, or from a hand-written dict without "kind".

    Values are checked against the annotations of `cls`: nested records, `X | None`, unions,
    `tuple[...]`, `list[X]`, `dict[str, X]`, `Literal`, `Any`, str, bool, int and float. A list is
    taken for a tuple and an int for a float; no other conversion is made.

    Args:
      cls: the dataclass to build.
      values: a mapping of its fields; nested mappings become nested records.
      where: path of this record in the whole, for error messages.

    Raises:
      ValueError: naming the path and the unknown, missing or ill-typed field, or what the
        constructor of `cls` refused.
      TypeError: `cls` has a field whose annotation is none of the above.
    """
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where or cls.__name__}: expected fields of {cls.__name__}, got {values!r}"
        )
    kind = values.get(KIND, cls.__name__)
    if kind != cls.__name__:
        raise ValueError(f"{_join(where, KIND)}: {kind!r} is not {cls.__name__}")
    given = {name: value for name, value in values.items() if name != KIND}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in given:
        if name not in fields:
            known = ", ".join(fields)
            raise ValueError(
                f"{_join(where, name)}: unknown field of {cls.__name__}; it has {known}"
            )
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING
        if name not in given and no_default and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_join(where, name)}: missing, {cls.__name__} needs it")
    hints = typing.get_type_hints(cls)
    built = {name: _coerce(hints[name], value, _join(where, name)) for name, value in given.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Makes `value` fit the annotation `hint`, or says why it does not."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, where)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where=where)
    if origin is tuple:
        return _coerce_tuple(args, value, where)
    if origin is list:
        return list(_coerce_tuple((args[0], Ellipsis), value, where))
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return {name: _coerce(args[1], v, _join(where, str(name))) for name, v in value.items()}
    if origin is typing.Literal:
        # By type too: in Python True == 1.
        if not any(type(value) is type(option) and value == option for option in args):
            options = ", ".join(map(repr, args))
            raise ValueError(f"{where}: {value!r} is not one of {options}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint not in (str, bool, int, float, type(None)):
        raise TypeError(f"{where}: a record cannot have a field of type {hint}")
    # A bool is an int to isinstance; here it is not.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not finite")  # JSON has no form for it
    return value


def _coerce_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        if type(None) in options:
            return None
        raise ValueError(f"{where}: may not be None")
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _coerce(options[0], value, where)
    records = {option.__name__: option for option in options if dataclasses.is_dataclass(option)}
    if records and isinstance(value, Mapping):
        if KIND not in value:
            raise ValueError(f"{_join(where, KIND)}: missing, it is one of {', '.join(records)}")
        if value[KIND] not in records:
            known = ", ".join(records)
            raise ValueError(f"{_join(where, KIND)}: {value[KIND]!r} is not one of {known}")
        return from_dict(records[value[KIND]], value, where=where)
    if any(type(value) is option for option in options):
        return value  # Exact first, so that int | float keeps 3 an int and float | int too.
    problems = []
    for option in options:
        try:
            return _coerce(option, value, where)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; or ".join(problems))


def _coerce_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: expected a list, got {value!r}")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ValueError(f"{where}: expected {len(items)} values, got {len(value)}")
    pairs = zip(items, value, strict=True)
    return tuple(_coerce(hint, v, f"{where}[{i}]") for i, (hint, v) in enumerate(pairs))
