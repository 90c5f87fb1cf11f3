"""The error tree."""

import pickle
import re

import pytest

from tasks import errors
from tasks.errors import PenstockError, Permanent, Transient, UsageError

CLASSES = sorted(
    (value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PenstockError)),
    key=lambda cls: cls.__name__,
)

#: A line of the tree: how deep it hangs, the class, and the exit code if the line has one.
TREE_LINE = re.compile(r"^ {4}(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: .*?)??(?:\s+exit (?P<exit>\d))?$")


def tree():
    """Read the tree in the module's docstring: class -> (parent, exit code or None)."""
    found, path = {}, []
    for line in errors.__doc__.split("::", 1)[1].splitlines():
        match = TREE_LINE.match(line)
        if match:
            depth = len(match["indent"]) // 4
            path[depth:] = [match["name"]]
            parent = path[depth - 1] if depth else None
            found[match["name"]] = parent, match["exit"] and int(match["exit"])
    return found


def test_the_tree_in_the_docstring_lists_every_class():
    """None is missing, none is left over, each hangs below its base class."""
    expected = {cls.__name__: cls.__base__.__name__ if cls is not PenstockError else None for cls in CLASSES}
    assert {name: parent for name, (parent, _) in tree().items()} == expected


def test_the_tree_in_the_docstring_names_the_exit_codes():
    """A line without a number has that of the line above it."""
    for name, (parent, code) in tree().items():
        expected = getattr(errors, name).exit_code
        assert expected == (code if code is not None else getattr(errors, parent).exit_code if parent else 1)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_pickling_with_its_data(cls):
    """Celery sends exceptions between processes."""
    error = pickle.loads(pickle.dumps(cls("what happened", key="k", limit_bytes=3)))  # noqa: S301 - our own
    assert type(error) is cls
    assert str(error) == "what happened"
    assert error.data == {"key": "k", "limit_bytes": 3}


@pytest.mark.parametrize("cls", CLASSES)
def test_the_docstring_is_the_default_message(cls):
    """An error that is raised bare still says something, in one line."""
    error = cls()
    assert str(error) == cls.__doc__
    assert "\n" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own


@pytest.mark.parametrize("cls", CLASSES)
def test_an_exit_code_is_one_that_the_cli_documents(cls):
    """1 rows or chunks failed, 2 usage, 3 broker or store unreachable, 4 bad input."""
    assert cls.exit_code in {1, 2, 3, 4}


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not PenstockError])
def test_an_error_is_worth_trying_again_or_it_is_not(cls):
    """Each class is on one side of the tree."""
    assert issubclass(cls, Transient) != issubclass(cls, Permanent)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, UsageError)])
def test_wrong_usage_exits_with_2(cls):
    """Scripts tell a typing error from a failed job."""
    assert cls.exit_code == 2
