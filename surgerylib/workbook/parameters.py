"""The parameters of the notebooks: which there are, and which values a run gives them.

papermill only warns of a parameter that no notebook knows, and takes text where a number belongs; both end in
a report about something else than was asked. Here both are errors, before anything is executed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import ParameterError, nearest
from ..files import EMBEDDED, PROJECT_ROOT

PATH_PARAMETERS = ("dataset", "checkpoint", "cache_dir", "localizer", "adapter")
OF_SEVERAL_TYPES = ("percentile",)  # a number, a list or a word: `check_values` alone judges them
NUMBERS_OR_NULL = ("floor", "adapter_floor", "nms_iou")  # null by default, which tells no type
_PLAIN = (str, int, float, bool, list, dict, type(None))  # other values of YAML stay the text that they were
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


class _Loader(yaml.SafeLoader):
    """Refuses whole numbers of more digits than Python shows: every message shows the values it is about."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        str(value)  # a ValueError
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


@dataclass(frozen=True)
class Parameter:
    """One assignment of a notebook's `parameters` cell; a `default` that is no literal is `...`: every value fits."""

    default: Any
    comment: str = ""


def find_notebooks(notebooks_dir: str | Path | None = None, only: str | None = None) -> list[Path]:
    """The numbered notebooks, by default beside the package, in their order; an error if there are none.

    `only` names some of them: numbers or names, separated by commas (`"01"`, `"01,03"`, `"01_heatmap_generation"`).
    """
    folder = Path(notebooks_dir) if notebooks_dir is not None else PROJECT_ROOT / "notebooks"
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise ParameterError(
            f"no numbered notebooks in {folder}: they are not part of the installed package, run from a clone"
        )
    if only is None:
        return notebooks
    there = f"there are: {', '.join(path.stem for path in notebooks)}"
    chosen = set()
    for token in filter(None, (part.strip().removesuffix(".ipynb") for part in str(only).split(","))):
        matches = [path for path in notebooks if token == path.stem or token.zfill(2) == path.stem[:2]]
        if not matches:
            raise ParameterError(f"no notebook {token!r}; {there}")
        chosen.update(matches)
    if not chosen:
        raise ParameterError(f"--only {only!r} names no notebook; {there}")
    return sorted(chosen)


def parse_assignments(source: str) -> dict[str, Parameter]:
    """The assignments of a parameters cell, with their trailing comments; a `ParameterError` if it is not Python.

    papermill's own reader goes line by line and loses a parameter whose comment holds an equals sign.
    """
    try:
        comments = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        body = ast.parse(source).body
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ParameterError(f"the parameters cell is not Python: {error}; mend the notebook") from None
    parameters = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or getattr(node, "value", None) is None:
            continue
        try:
            default = ast.literal_eval(node.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            default = ...
        parameters[targets[0].id] = Parameter(default, comments.get(node.end_lineno, ""))
    return parameters


def tagged_source(notebook: Mapping[str, Any], tag: str) -> str:
    """The source of the first cell with this tag; empty when there is none."""
    tagged = (cell["source"] for cell in notebook["cells"] if tag in cell["metadata"].get("tags", []))
    return "".join(next(tagged, ""))


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares in the cell tagged `parameters`."""
    return parse_assignments(tagged_source(_read_notebook(path), "parameters"))


def notebook_reads(path: Path) -> list[str]:
    """The files of the run's folder that a notebook says it reads, in its metadata: what earlier notebooks left."""
    return list(_read_notebook(path)["metadata"].get("reads", []))


def _read_notebook(path: Path) -> dict[str, Any]:
    # every kernel comes here: nbformat would take it longer to import than all the rest but torch
    return json.loads(path.read_text(encoding="utf-8"))


def known_parameters(notebooks: Iterable[Path]) -> dict[str, Parameter]:
    """The parameters of all notebooks; where two share one, the first notebook's default stands."""
    known: dict[str, Parameter] = {}
    for path in notebooks:
        known = notebook_parameters(path) | known
    return known


def with_defaults(given: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Every known parameter: as it is given, or else its default."""
    return {name: parameter.default for name, parameter in known.items()} | dict(given)


def load_config(config: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Parameters from a YAML file of a flat mapping (papermill's `-f`), from a mapping, or none at all."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    path = Path(config)
    try:
        values = _read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ParameterError(f"the configuration {path} is not text in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ParameterError(f"the configuration {path}{where} is not valid YAML") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or any(not isinstance(name, str) for name in values):
        raise ParameterError(f"the configuration {path} must be a flat mapping, one 'name: value' a line")
    return values


def _read_yaml(text: str) -> Any:
    """The value of a YAML text; whatever is wrong with it is a `yaml.YAMLError`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # 2001-99-99 is a ValueError, !!timestamp x an AttributeError, [[[... a RecursionError
        raise yaml.YAMLError(str(error)) from error


def apply_overrides(
    config: Mapping[str, Any], overrides: Sequence[str], known: Mapping[str, Parameter]
) -> dict[str, Any]:
    """A configuration with the command line's `name=value` items laid over it.

    A value for a text parameter is taken as it was typed, so that a dataset folder called `2024` stays text, and
    a file that exists from where the user stands is made absolute, since notebooks run in the project's root.
    """
    merged = dict(config)
    for item in overrides:
        name, equals, raw = item.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ParameterError(f"-p takes name=value, not {item!r}")
        try:
            value = _read_yaml(raw)
        except yaml.YAMLError:
            value = raw
        is_text = name in known and isinstance(known[name].default, str)
        is_null = value is None and (name == "train_split" or not is_text)
        if ((is_text or name in PATH_PARAMETERS) and not is_null) or not isinstance(value, _PLAIN):
            value = raw
        if name in PATH_PARAMETERS and isinstance(value, str) and value != EMBEDDED:
            # what is no path from where the user stands may be a tag, or relative to the project; it may be too long,
            # the home of nobody, or have a null in it
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                path = Path(value).expanduser()
                if path.exists() or name == "cache_dir":  # which need not be there yet
                    value = str(path.resolve())
        merged[name] = value
    return merged


def validate(config: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The configuration with every name known and every type that of the notebook's default.

    Raises:
        ParameterError: Names the nearest parameters, or the type expected and the value seen.
    """
    validated = {}
    for name, value in config.items():
        if name == "out_dir":
            raise ParameterError("out_dir is the run's folder; set it with --out")
        if name not in known:
            raise ParameterError(f"no notebook has a parameter {name!r}; nearest: {nearest(name, known)}")
        validated[name] = _fitted(name, value, known[name].default)
    return validated


def _fitted(name: str, value: Any, default: Any) -> Any:
    """The value as the type of the default, or an error."""
    expected = list if isinstance(default, (list, tuple)) else type(default)
    if (expected is float or name in NUMBERS_OR_NULL) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML takes 1e-3 for text
    if default is None or default is ... or (value is None and name in (*NUMBERS_OR_NULL, "train_split")):
        return value
    if expected is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            return float(value)
    if name in OF_SEVERAL_TYPES or (isinstance(value, expected) and not (expected is int and isinstance(value, bool))):
        return value
    seen = "nothing (null)" if value is None else f"{value!r}"
    raise ParameterError(
        f"parameter {name} must be {_TYPE_NAMES.get(expected, expected.__name__)} (default {default!r}), not {seen}"
    )
