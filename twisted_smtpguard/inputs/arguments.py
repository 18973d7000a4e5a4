"""The check of arguments against their annotations. A wrong argument is refused at once and by name, where Python would
take it and fail later, or never."""

from __future__ import annotations

import functools
import inspect
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

import attrs

P = ParamSpec("P")
R = TypeVar("R")

_DERIVED = "derived"
"""The key of a derived field's metadata."""

_ANYTHING = object()
"""Stands for a missing annotation, or one that only a type checker can resolve."""

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap `function` so that a TypeError names an argument that does not fit its annotation. The check takes about a
    microsecond for each argument, so this is for functions that are called seldom.

    A str is no collection of str here, and True is no number. An object fits an interface if it provides it; an
    interface of Twisted also if it has all its methods; a typing.Protocol if it has any of its attributes.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    hints = _Hints({name: each.annotation for name, each in parameters.items()}, function.__globals__)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = parameters[name].kind
            if kind is not inspect.Parameter.VAR_KEYWORD:
                for each in value if kind is inspect.Parameter.VAR_POSITIONAL else [value]:
                    hints.check(name, each)
        return function(*args, **kwargs)

    return call


def check_fields(value: Any) -> None:
    """The same check for the fields of `value`, an attrs object. A class whose objects are made for each command tests
    the usual case itself first."""
    kind: Any = type(value)
    hints = _hints_of(kind)
    for field in attrs.fields(kind):
        if field.init:
            hints.check(field.name, getattr(value, field.name))


def unfit(name: str, expected: str, value: object) -> TypeError:
    """The TypeError for the argument `name`, for functions that do their own check."""
    return TypeError(f"{name} must be {expected}, not {_SHOWN.repr(value)}")


class _Hints:
    """Annotations by name. Each is resolved when it is first needed, since a module may define the type further
    down."""

    def __init__(self, annotations: Mapping[str, Any], names: Mapping[str, Any]) -> None:
        self._annotations = annotations
        self._names = names
        self._resolved: dict[str, Any] = {}

    def check(self, name: str, value: object) -> None:
        if name not in self._resolved:
            self._resolved[name] = self._resolve(name)
        hint = self._resolved[name]
        if _fits(value, hint):
            return
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        # A collection with any number of items of one type.
        is_list = isinstance(origin, type) and issubclass(origin, Iterable)
        if is_list and not issubclass(origin, tuple | Mapping) and _is_collection(value, origin):
            name, hint = f"each of {name}", arguments[0]
            value = next(each for each in typing.cast(Iterable[Any], value) if not _fits(each, hint))
        interfaces = [each.__name__ for each in (hint, *typing.get_args(hint)) if _is_interface(each)]
        lacks = f", which does not provide {' or '.join(interfaces)}" if interfaces else ""
        raise TypeError(f"{unfit(name, _described(hint), value)}{lacks}")

    def _resolve(self, name: str) -> Any:
        hint = self._annotations[name]
        if hint in (None, inspect.Parameter.empty):
            return _ANYTHING
        if not isinstance(hint, str):
            return hint
        try:
            return eval(hint, dict(self._names))  # noqa: S307 - our own annotations
        except NameError:
            return _ANYTHING


@functools.cache
def _hints_of(kind: Any) -> _Hints:
    return _Hints(
        {field.name: field.type for field in attrs.fields(kind)}, vars(sys.modules[kind.__module__])
    )


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is Callable:
        return callable(value)
    if origin is tuple and arguments[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is not None and issubclass(origin, Iterable):
        # An iterator can be iterated only once, so its items are not checked.
        items = value if isinstance(value, Collection) else ()
        return _is_collection(value, origin) and all(_fits(each, arguments[0]) for each in items)
    if hint is None:
        return value is None
    if _is_interface(hint):
        if hint.providedBy(value):
            return True
        # An object that has all methods of an interface of Twisted's need not declare it.
        has_all = all(hasattr(value, name) for name in hint.names(all=True))
        return hint.__module__.startswith("twisted.") and not isinstance(value, type) and has_all
    return _is_a(value, origin or hint)


def _is_interface(hint: object) -> bool:
    """Whether `hint` is an interface of zope.interface. This file does not import that, since the values use this file
    too."""
    return not isinstance(hint, type) and hasattr(hint, "providedBy")


def _is_a(value: object, kind: Any) -> bool:
    if kind is float:
        kind = (int, float)
    if kind in (int, (int, float)) and isinstance(value, bool):
        return False
    if getattr(kind, "_is_protocol", False) and kind.__module__.startswith("twisted_smtpguard."):
        # One attribute is enough: a test's Clock has no threads, and does not need them.
        return any(hasattr(value, name) for name in vars(kind) if not name.startswith("_"))
    return isinstance(value, kind) if isinstance(kind, type | tuple) else True


def _is_collection(value: object, kind: type) -> bool:
    """Whether `value` is a collection of `kind`. For a Sequence any collection is accepted, in any order; a str never
    is."""
    if isinstance(value, str | bytes):
        return False
    if issubclass(kind, list | tuple | frozenset | Mapping):
        return isinstance(value, kind)
    return isinstance(value, Iterable if kind is Iterable else Collection)


_WORDS = {
    str: "a str",
    bytes: "bytes",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    None: "None",
    types.NoneType: "None",
}


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is Callable:
        return "a callable"
    if origin is tuple and arguments[-1] is not ...:
        return f"a tuple of {', '.join(map(_described, arguments))}"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None and issubclass(origin, Iterable):
        kind = "tuple" if origin is tuple else "frozenset" if origin is frozenset else "list"
        return f"a {kind} in which each is {_described(arguments[0])}"
    if _is_interface(hint):
        return f"an {hint.__name__}"
    # What the caller can know of a private class is what its name says.
    return f"a {getattr(origin or hint, '__name__', str(hint)).lstrip('_')}"


def derived(value: Callable[[Any], Any]) -> Any:
    """A field of an attrs class that is no argument: `value` makes it from the object, whose earlier fields are set."""
    return attrs.field(init=False, default=attrs.Factory(value, takes_self=True), metadata={_DERIVED: value})


def derive_again(value: Any) -> None:
    """Make every `derived` field of an attrs object again, because what it is made from has changed."""
    for field in attrs.fields(type(value)):
        if _DERIVED in field.metadata:
            setattr(value, field.name, field.metadata[_DERIVED](value))
