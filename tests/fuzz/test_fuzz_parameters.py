"""Parameters: whatever a configuration, a command line or a notebook says passes or is one line that names it."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from profiles import fuzz
from voc_target import one_line

from surgerylib.errors import ParameterError, SurgeryError
from surgerylib.workbook.check import check_values
from surgerylib.workbook.parameters import (
    PATH_PARAMETERS,
    apply_overrides,
    find_notebooks,
    known_parameters,
    load_config,
    parse_assignments,
    validate,
)

KNOWN = known_parameters(find_notebooks())
DEFAULTS = {name: parameter.default for name, parameter in KNOWN.items()}
SETTABLE = sorted(set(KNOWN) - {"out_dir"})
# words that some parameter takes, so that more than the first check of a list is reached
WORDS = [
    "", "all", "present", "cosine", "surgery", "standard", "vv_mixed", "otsu", "mean", "max", "train", "val", "heatmap",
    "localizer", "both", "ship", "airport", "Golf Course", "name", "ensemble", "best_iou", "embedded", "random", "cpu",
    "11point", "1e-3", "nan", "inf", "-inf", "0x10", "~nobody/x", "a\nb", "\x1b[2J", "\0", "../..",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.sampled_from([2**31, -(2**63), 10**30, 10**400]),
    st.floats(width=32), st.sampled_from([0.05, 0.5, 75.0, -0.0, 1e-320, 1e308, float("nan"), float("inf")]),
    st.sampled_from(WORDS), st.text(max_size=5), st.binary(max_size=3), st.dates(), st.datetimes(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.sets(st.text(max_size=2))
    ),
    max_leaves=6,
)


def outcome(config: dict) -> str | None:
    """The one line that a configuration gives, or None when it passes."""
    try:
        check_values({**DEFAULTS, **validate(config, KNOWN)})
    except SurgeryError as error:
        return one_line(error)
    return None


def names(message: str, parameter: str) -> bool:
    """Whether the message says which parameter is meant: its name, or the words that its checks have for it."""
    words = {
        "nms_iou": "NMS threshold", "kinds": "kind", "box_score": "box score", "model": "checkpoint",
        "min_side": "max_side", "similarities": "similarity", "adapter_learning_rate": "learning_rate",
    }  # fmt: skip
    return parameter in message or words.get(parameter, parameter) in message


@pytest.mark.parametrize("name", SETTABLE)
@fuzz(10)
@given(value=VALUES)
def test_any_value_of_any_parameter(name, value):
    message = outcome({name: value})
    assert message is None or names(message, name), message


@fuzz(40)
@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=2))
def test_names_that_no_notebook_knows(config):
    assume(config and not set(config) & set(KNOWN))
    with pytest.raises(ParameterError, match="no notebook has a parameter") as error:
        validate(config, KNOWN)
    one_line(error.value)


HOSTILE_YAML = [
    "2001-99-99", "2001-12-12 25:61:61", "9" * 5000, "0x" + "f" * 5000, "1:99", "!!python/name:os.system", "[" * 500,
    "{a: b", "&a [*a]", "*nowhere", "%TAG", "!!int x", "!!float x", "!!binary x", "!!timestamp x", "? [1]\n: 2",
    "<<: 3", "---\n1\n---\n2", "\ud800", "@", "`", "1_0", "0b2", "0o9", ".inf", "=", "!!set {a}", "!!omap [a: 1]",
]  # fmt: skip
YAML_TEXT = st.one_of(
    st.text(max_size=40), VALUES.map(lambda value: yaml.dump(value, allow_unicode=True)), st.sampled_from(HOSTILE_YAML)
)


@pytest.mark.parametrize(
    "name", sorted({*PATH_PARAMETERS, "seed", "learning_rate", "percentile", "train_split", "kinds"})
)
@fuzz(15)
@given(text=YAML_TEXT)
@example(text="~nobody/data")
@example(text="x" * 5000)
@example(text="a\0b")
@example(text="0x" + "f" * 5000)
@example(text="9" * 400)
def test_any_override_of_a_known_parameter(name, text):
    merged = apply_overrides({}, [f"{name}={text}"], KNOWN)
    message = outcome(merged)
    assert message is None or names(message, name), message


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("yaml") / "config.yaml"


@fuzz(120)
@given(text=st.one_of(YAML_TEXT, st.lists(st.tuples(st.sampled_from(SETTABLE), YAML_TEXT), max_size=3).map(
    lambda pairs: "\n".join(f"{name}: {text}" for name, text in pairs)
)))  # fmt: skip
@example(text="seed: 2001-99-99")
@example(text="seed: " + "9" * 5000)
@example(text="seed: 0x" + "f" * 5000)
@example(text="seed: " + "[" * 500)
@example(text="percentile: &a [*a]")
@example(text="kinds: &a [*a]")
def test_any_yaml_as_a_configuration(file, text):
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_config(file)
    except SurgeryError as error:
        message = one_line(error)
        assert file.name in message
    else:
        assert all(isinstance(name, str) for name in config)
        outcome(config)


PIECES = st.sampled_from(
    ["a", " = ", "1", "[", "]", "{", "}", "(", "'", '"""', "\\", "\n", "\t", "  ", "#", " # a = b", ":", "int", "-",
     "*", "1e999", "lambda: 0", "x, y", "None", "\0", "{[]: 1}", "0777", "9" * 5000, "f'{a}'", "b'\\xff'", "...",
     "é", "a" * 3]
)  # fmt: skip


@fuzz(160)
@given(st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=12).map("".join)))
@example("a = '")
@example("a = (")
@example("  a = 1")
@example("a = \0")
@example("a = {[]: 1}")
@example("a = " + "(" * 500 + ")" * 500)
@example("a = " + "9" * 5000)
@example("a = " + "-" * 5000 + "1")
def test_any_text_as_a_parameters_cell(source):
    try:
        parameters = parse_assignments(source)
    except SurgeryError as error:
        one_line(error)
    else:
        assert all(name.isidentifier() for name in parameters)
