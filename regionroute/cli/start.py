"""What makes a short command quick: fewer collections, imports put off, a short end.

A command that loads the networks' libraries spends most of its time on importing them, and then on
taking them apart again. Nothing here changes what a command does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# Half a million objects of imports are looked through again and again otherwise: 1.3 s.
RARE = 100_000
_USUAL = gc.get_threshold()
_LOCK = threading.Lock()


def collect_rarely() -> None:
    """Looks for garbage seldom: while libraries are imported there is none."""
    gc.set_threshold(RARE)


def collect_as_usual() -> None:
    """What `collect_rarely` changed is as it was; for when the imports are done."""
    gc.set_threshold(*_USUAL)


@contextlib.contextmanager
def put_off(*names: str) -> Iterator[None]:
    """Runs no code of these modules before something in them is used; for optional integrations.

    diffusers imports all that it could work with and is installed, such as bitsandbytes, and with
    it the compiler, though only models in 4 bits need either. Within the context such an import
    gives the real module, found as ever, whose code runs when an attribute of it, or a submodule
    that is not put off itself, is first asked for: later, or at once if a library asks while it is
    imported itself. So a new release of a library can at worst undo what this saves.

    What a library takes from a module while it is imported is one thing asked for. If that is a
    function, ``module:function`` gives it one that runs the module when it is called. A decorator
    that only tells the compiler something is ``module:@decorator``: until the module has run it
    gives back what it decorates, so put none off in a process that compiles.

    Args:
        names: full names, functions after a colon with commas between them. Those that are
            imported already, or not installed, are left alone.
    """
    parts = [name.partition(":") for name in names]
    finder = _Finder({module: functions.split(",") for module, _, functions in parts})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in finder.functions:
            if isinstance(found := sys.modules.get(module), _PutOff):
                # Asked for by whoever imports a submodule, which needs the package's code first.
                vars(found).pop("__path__", None)


class _Finder(MetaPathFinder):
    """Finds some modules where the usual finder does; the functions of each that may be taken."""

    def __init__(self, functions: Mapping[str, Sequence[str]]) -> None:
        self.functions = functions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.functions:
            _run_package(fullname)
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.functions[fullname])
        return spec


class _Loader(Loader):
    """Makes a module ready, but leaves its code to its first use.

    The standard library's LazyLoader runs the code too soon: when a module is imported a second
    time, and when `inspect` looks for the ``__file__`` of all modules, as torch does.
    """

    def __init__(self, real: Loader, functions: Sequence[str]) -> None:
        self.real, self.functions = real, functions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.real
        for name in filter(None, self.functions):
            decorator = name.startswith("@")
            stand_in = _Decorator() if decorator else _Deferred(module, name)
            vars(module)[name.removeprefix("@")] = stand_in
        module.__class__ = _PutOff


class _PutOff(ModuleType):
    """A module whose code has not run; ``__name__``, ``__file__`` and ``__spec__`` are there."""

    def __getattr__(self, name: str) -> object:
        package = self.__spec__ is None or self.__spec__.submodule_search_locations is not None
        if name == "__path__" and not package:  # every import of something from it looks
            raise AttributeError(name)
        _run_once(self)
        return getattr(self, name)


class _Deferred:
    """A function of a module whose code has not run."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _run_once(self.module)
        return getattr(self.module, self.name)(*args, **kwargs)


class _Decorator:
    """A decorator, with or without arguments, of a module whose code has not run."""

    def __call__(self, decorated: Any = None, *args: Any, **kwargs: Any) -> Any:
        return (lambda function: function) if decorated is None else decorated


def _run_package(name: str) -> None:
    """Runs what a module of this name is a part of, if that has not run."""
    package = sys.modules.get(name.rpartition(".")[0])
    if package is not None:
        _run_once(package)


def _is_put_off(module: ModuleType) -> bool:
    return type(module) is _PutOff


def _run_once(module: ModuleType) -> None:
    if not _is_put_off(module):
        return
    _run_package(module.__name__)
    with _LOCK:
        mine = _is_put_off(module)
        if mine:
            module.__class__ = ModuleType
    if not mine:
        return
    for name, value in list(vars(module).items()):
        if isinstance(value, (_Deferred, _Decorator)):
            delattr(module, name)
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    if spec.submodule_search_locations is not None:
        module.__path__ = spec.submodule_search_locations
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)  # as after any failed import: the next one tries again
        raise


def end_quickly() -> Callable[[int], None]:
    """Lets the process end without taking apart half a million objects, 1.5 s with torch loaded.

    Call it before anything else is imported: handlers at exit run in reverse order, so this one
    comes after those of all libraries, and after the threads have been waited for. Only then the
    process leaves, its streams flushed; the system takes the memory back at once.
    (``gc.freeze()`` would save half of it, but triton's binding then reports leaks on stderr.)

    Returns:
        Call it with the exit code when the command is done. Without that call, as after an error
        of ours, the process ends as ever; so it does under a debugger, a tracer or a profiler,
        which may have something to write down still, and when a stream cannot be flushed.
    """
    codes: list[int] = []

    def leave() -> None:
        if not codes or sys.gettrace() or sys.getprofile():
            return
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except (OSError, ValueError):
            return  # Python tells of it
        os._exit(codes[-1])

    atexit.register(leave)
    return codes.append
