"""Functions from outside of the package: a key of what one does, so that its results serve no other."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib
import operator
import platform
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import library_sha256

_PACKAGE = __name__.partition(".")[0]
_PLAIN = {type(None), bool, int, float, complex, str, bytes, type(...), range, slice}
# through these a function sees what nothing in its code says
_UNSEEN = {"open", "eval", "exec", "compile", "globals", "locals", "vars", "input", "__import__"}
_PARTS = {
    functools.partial: ("func", "args", "keywords"), types.MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",), classmethod: ("__func__",), property: ("fget", "fset", "fdel"),
}  # fmt: skip
# of a class; what dataclasses keep there shows in the methods that they write
_NOT_BEHAVIOUR = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__annotate__", "__annotate_func__",
    "__annotations_cache__",
}  # fmt: skip


_IMPORTED = library_sha256()  # once: a file edited later is not what runs in this process


def key_of(function: Callable[..., Any]) -> str | None:
    """A hash of all that decides what a function gives for its arguments; None where that cannot be told.

    It goes over the compiled code, which is the source as it was imported (so a comment changes nothing, and a file or
    cell edited since is not mixed up with it), defaults, the values of the closure, and what the global names in the
    code stand for: plain values, NumPy arrays and tensors by content; functions, classes and modules outside of
    installed packages by what they do in turn; those of installed packages by name and version, and of this package by
    the source of it all.

    Args:
        function: a function, a method, a `functools.partial`, or an object with `__call__`.

    Returns:
        64 hexadecimal digits; the same text over the same values gives the same ones in another process. None means
        that nothing that the function gave may be kept on disk.
    """
    try:
        return hashlib.sha256(repr(_Walk().value(function)).encode()).hexdigest()
    except (_Unknown, RecursionError, ValueError):  # the last: a variable of the closure has no value
        return None


class _Unknown(Exception):
    """Something whose value or behaviour cannot be told."""


class _Walk:
    """Describes values as nested tuples of texts; what refers to itself by the number under which it was met."""

    def __init__(self) -> None:
        self.met: dict[Any, int] = {}

    def value(self, value: Any) -> tuple:
        if type(value) in _PLAIN or isinstance(value, np.dtype) or _is_torchs(value, "dtype", "device"):
            return type(value).__name__, repr(value)
        if type(value) in (list, tuple, dict, set, frozenset):
            return self._container(value)
        if isinstance(value, np.ndarray | np.generic) or _is_torchs(value, "Tensor"):
            return _array(value)
        if isinstance(value, types.ModuleType):
            return self._module(value, frozenset())
        if name := _installed_name(value):
            return name
        if isinstance(value, types.FunctionType):
            return self._once(value, self._function)
        for kind, parts in _PARTS.items():
            if isinstance(value, kind):
                return kind.__name__, *(self.value(getattr(value, part)) for part in parts)
        if isinstance(value, type):
            return self._once(value, self._class)
        return self._instance(value)

    def _once(self, value: Any, describe: Callable[[Any], tuple]) -> tuple:
        if id(value) in self.met:
            return "met", str(self.met[id(value)])
        self.met[id(value)] = len(self.met)
        return describe(value)

    def _container(self, value: Any) -> tuple:
        is_dict = isinstance(value, dict)
        items = [(self.value(key), self.value(value[key])) if is_dict else self.value(key) for key in value]
        return type(value).__name__, *(sorted(items) if isinstance(value, set | frozenset) else items)

    def _function(self, function: types.FunctionType) -> tuple:
        code = function.__code__
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        bound = (
            [(name, self.value(cell.cell_contents)) for name, cell in cells],
            self.value(function.__defaults__),
            self.value(function.__kwdefaults__),
        )
        if _is_installed_file(code.co_filename):  # made by a function of a package, such as a decorator
            return "made by", str(function.__globals__.get("__name__")), code.co_qualname, *bound
        codes = _codes_in(code)
        names = frozenset(name for part in codes for name in part.co_names)
        used = {}
        for instruction in (instruction for part in codes for instruction in dis.get_instructions(part)):
            name = instruction.argval
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                used[name] = self._global(name, function.__globals__, names)
            elif instruction.opname == "IMPORT_NAME":
                try:
                    used[f"import {name}"] = self._module(importlib.import_module(name), names)
                except ImportError:  # a relative one among them
                    raise _Unknown(name) from None
        return "function", _code(code), *bound, sorted(used.items())

    def _global(self, name: str, scope: dict[str, Any], names: frozenset[str]) -> tuple:
        if name in scope:
            value = scope[name]
            return self._module(value, names) if isinstance(value, types.ModuleType) else self.value(value)
        if name in _UNSEEN:
            raise _Unknown(name)
        return "builtin" if hasattr(builtins, name) else "missing", name

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> tuple:
        """By name and version; of one outside of installed packages, what the names in the code may take from it."""
        if _is_installed(module):
            return "module", module.__name__, _version(module.__name__)
        if (id(module), names) in self.met:
            return "met", str(self.met[id(module), names])
        self.met[id(module), names] = len(self.met)
        taken = [name for name in sorted(names) if name in vars(module)]
        return "module", module.__name__, [(name, self._global(name, vars(module), names)) for name in taken]

    def _class(self, cls: type) -> tuple:
        own = [
            (name, ("slot",) if isinstance(item, types.MemberDescriptorType) else self.value(item))
            for name, item in sorted(vars(cls).items())
            if name not in _NOT_BEHAVIOUR
        ]
        return "class", self.value(type(cls)), self.value(cls.__bases__), own

    def _instance(self, value: Any) -> tuple:
        cls = type(value)
        if dataclasses.is_dataclass(cls):
            values = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(cls)}
        elif _installed_name(cls) is None and hasattr(value, "__dict__"):
            values = vars(value)
        else:
            raise _Unknown(repr(cls))
        return "instance", self.value(cls), self._once(value, lambda _: self.value(dict(values)))


def _is_torchs(value: Any, *types: str) -> bool:
    torch = sys.modules.get("torch")  # not imported for this: without it no value can be one of its own
    return torch is not None and isinstance(value, tuple(getattr(torch, name) for name in types))


def _array(value: Any) -> tuple:
    if _is_torchs(value, "Tensor"):
        import torch

        value = value.detach().cpu()
        if value.layout != torch.strided or value.is_quantized:
            raise _Unknown(repr(value.layout))
        name, content = str(value.dtype), value.contiguous().view(-1).view(torch.uint8).numpy()
    elif value.dtype.hasobject:
        raise _Unknown("an array of objects")
    else:
        name, content = str(value.dtype.descr), np.ascontiguousarray(value)
    return type(value).__name__, name, str(tuple(value.shape)), hashlib.sha256(content.tobytes()).hexdigest()


def _codes_in(code: types.CodeType) -> list[types.CodeType]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [code, *(part for const in inner for part in _codes_in(const))]


def _code(code: types.CodeType) -> tuple:
    """Without names of files and numbers of lines: the same text elsewhere is the same code."""
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_exceptiontable, shape, names, [_constant(const) for const in code.co_consts]


def _constant(const: Any) -> Any:
    if isinstance(const, types.CodeType):
        return _code(const)
    if isinstance(const, frozenset):
        return "frozenset", sorted(map(repr, const))
    return repr(const)


def _installed_name(value: Any) -> tuple | None:
    """Of what can be imported by name from an installed package, or this one; a wrapper that took its name cannot."""
    is_descriptor = isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType)
    module = getattr(value.__objclass__ if is_descriptor else value, "__module__", None)
    module = "numpy" if isinstance(value, np.ufunc) else module
    found = sys.modules.get(module) if isinstance(module, str) else None
    if found is None or not _is_installed(found):
        return None
    for name in (getattr(value, part, None) for part in ("__qualname__", "__name__")):  # torch.exp has the second alone
        with contextlib.suppress(AttributeError):
            if isinstance(name, str) and operator.attrgetter(name)(found) is value:
                return "installed", module, name, _version(module)
    return None


def _is_installed(module: types.ModuleType) -> bool:
    name = module.__name__
    if name.partition(".")[0] == _PACKAGE or name in sys.builtin_module_names:
        return True
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None) or (spec.origin if spec else None)
    if file is None and spec is not None:  # a namespace, such as a folder without __init__
        return any(map(_is_installed_file, spec.submodule_search_locations or ()))
    return file is not None and _is_installed_file(file)


@functools.cache
def _is_installed_file(file: str) -> bool:
    path = Path(file)
    standard = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return (
        file.startswith(("<frozen", "built-in"))
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or not standard.isdisjoint(path.parents)
        or Path(__file__).parent.parent in path.parents
    )


def _version(module: str) -> str:
    top = module.partition(".")[0]
    if top == _PACKAGE:
        return _IMPORTED
    return str(getattr(sys.modules.get(top), "__version__", platform.python_version()))
