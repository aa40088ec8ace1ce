"""Which views a serverless machine answers, and of which size it is."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

from django.core.signals import setting_changed
from django.urls import URLPattern, URLResolver, get_resolver

from machinequeue import conf
from machinequeue.errors import ConfigurationError

MARK = "machinequeue_serverless"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE")


@dataclass(frozen=True, slots=True)
class Asked:
    """What `@serverless_view` says. What is None is as the settings say."""

    methods: frozenset[str]
    memory_mb: int | None = None
    cpus: int | None = None
    cpu_kind: str | None = None
    regions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request for a serverless view needs."""

    methods: frozenset[str]
    size_key: str
    size: tuple[tuple[str, Any], ...]
    """Items of cpu_kind, cpus, memory_mb (MB) and regions."""


@overload
def serverless_view[View: Callable[..., Any]](view: View) -> View: ...


@overload
def serverless_view[View: Callable[..., Any]](
    *,
    methods: Iterable[str] = ("GET",),
    memory_mb: int | None = None,
    cpus: int | None = None,
    cpu_kind: str | None = None,
    regions: Iterable[str] | None = None,
) -> Callable[[View], View]: ...


def serverless_view[View: Callable[..., Any]](
    view: View | None = None,
    *,
    methods: Iterable[str] = ("GET",),
    memory_mb: int | None = None,
    cpus: int | None = None,
    cpu_kind: str | None = None,
    regions: Iterable[str] | None = None,
) -> Any:
    """Have requests for this view answered by a serverless machine of this size, where there is one.

    A decorator, with or without arguments, for a function or for what `as_view()` returns; on a class write
    `@method_decorator(serverless_view(...), name="dispatch")`. Views of the same size share a machine.
    Raises ConfigurationError for a method that HTTP does not have and a size that Fly does not sell.
    """
    asked = Asked(
        frozenset(method.upper() for method in methods),
        memory_mb,
        cpus,
        cpu_kind,
        tuple(regions) if regions is not None else None,
    )
    if problems := method_problems(asked.methods):
        raise ConfigurationError(f"@serverless_view: {' '.join(problems)}")
    if memory_mb is not None and (problem := conf.guest_problem(cpu_kind or "shared", cpus or 1, memory_mb)):
        raise ConfigurationError(f"@serverless_view: {problem}")

    def mark(marked: View) -> View:
        if isinstance(marked, type):
            raise ConfigurationError(
                f"@serverless_view cannot mark the class {marked.__name__}: "
                'use @method_decorator(serverless_view(...), name="dispatch").'
            )
        setattr(marked, MARK, asked)
        return marked

    return mark if view is None else mark(view)


def method_problems(methods: Iterable[str]) -> list[str]:
    """What is wrong with these names of methods."""
    return [
        f"{method!r} is no method of HTTP.{conf.suggest(method, METHODS)}"
        for method in methods
        if method not in METHODS
    ]


def wanted(view: Callable[..., Any], view_name: str) -> Wanted | None:
    """What a request for this view needs; None when any machine answers it."""
    asked = getattr(view, MARK, None)
    listed = _listed().get(view_name)
    if asked is None and listed is None:
        return None
    return _wanted(asked, listed)


@lru_cache(maxsize=1)
def _listed() -> dict[str, frozenset[str]]:
    return {name: frozenset(method.upper() for method in methods) for name, methods in conf.settings().serverless_views}


@lru_cache(maxsize=256)
def _wanted(asked: Asked | None, listed: frozenset[str] | None) -> Wanted:
    settings = conf.settings()
    own = asked or Asked(frozenset())
    size = {
        "cpu_kind": own.cpu_kind or settings.serverless_cpu_kind,
        "cpus": own.cpus or settings.serverless_cpus,
        "memory_mb": own.memory_mb or settings.serverless_memory_mb,
        "regions": list(settings.serverless_regions if own.regions is None else own.regions),
    }
    text = json.dumps(size, separators=(",", ":"))
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    # What the settings list is the operator's word, and goes before the developer's.
    return Wanted(listed if listed is not None else own.methods, key, tuple(size.items()))


def problems() -> Iterator[str]:
    """What is wrong with SERVERLESS_VIEWS, and with the sizes that views ask for. Loads the URLconf."""
    views = dict(_named(get_resolver()))
    for name, methods in conf.settings().serverless_views:
        place = f"MACHINEQUEUE['SERVERLESS_VIEWS'], {name!r}"
        if name not in views:
            yield f"{place}: no view has this name.{conf.suggest(name, views)}"
        if not methods:
            yield f"{place}: names no method, as ['GET'] does."
        for problem in method_problems(method.upper() for method in methods):
            yield f"{place}: {problem}"
    for name, view in views.items():
        if getattr(view, MARK, None) is None:
            continue
        size = dict(_wanted(getattr(view, MARK), None).size)
        if guest := conf.guest_problem(size["cpu_kind"], size["cpus"], size["memory_mb"]):
            yield f"@serverless_view of {name!r}: {guest}"


def any_marked() -> bool:
    """Whether any view is to be answered by a serverless machine. Loads the URLconf."""
    return bool(conf.settings().serverless_views) or any(hasattr(view, MARK) for _, view in _named(get_resolver()))


def _named(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            own = f"{prefix}{pattern.namespace}:" if pattern.namespace else prefix
            yield from _named(pattern, own)
        elif isinstance(pattern, URLPattern):
            # A view without a name goes by its path, as in `resolver_match.view_name`.
            yield f"{prefix}{pattern.name or pattern.lookup_str}", pattern.callback


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "MACHINEQUEUE":
        _listed.cache_clear()
        _wanted.cache_clear()


setting_changed.connect(_forget)
