"""The tree of errors: what its docstring shows is what the classes are.

Flow: errors > [test_errors]
Never: an error outside the tree.
"""

from __future__ import annotations

import re

from dicomnode import errors
from dicomnode.errors import DicomnodeError, PermanentError, TransientError


def read_tree(docstring: str) -> list[tuple[str, str, int | None]]:
    """Return (class, parent, status) for each row of the drawn tree."""
    parents: list[str] = []
    rows = []
    for found in re.finditer(r"^ {4}([ |]*)(?:\+- )?(\w+Error)\b(.*)$", docstring, re.MULTILINE):
        depth = len(found[1]) // 3 + (1 if "+-" in found[0] else 0)
        status = re.search(r"\b([0-9A-F]{4})$", found[3])
        rows.append((found[2], parents[depth - 1] if depth else "Exception", int(status[1], 16) if status else None))
        parents[depth:] = [found[2]]
    return rows


def list_classes(root: type[DicomnodeError]) -> list[type[DicomnodeError]]:
    """Return the classes of the module, each before those that derive from it, in the order of the source."""
    return [root, *(found for child in root.__subclasses__() for found in list_classes(child))]


def test_the_docstring_shows_every_class_below_its_parent() -> None:
    shown = [(name, parent) for name, parent, _ in read_tree(errors.__doc__ or "")]
    assert shown == [(found.__name__, found.__bases__[0].__name__) for found in list_classes(DicomnodeError)]


def test_the_docstring_shows_the_status_a_sender_is_told() -> None:
    shown = {name: status for name, _, status in read_tree(errors.__doc__ or "") if status is not None}
    told = {found.__name__: int(found.store_status) for found in list_classes(DicomnodeError)}
    for name, status in shown.items():
        assert told[name] == status
    processing_failure = 0x0110
    assert {name for name, status in told.items() if status != processing_failure} <= set(shown)


def test_every_error_is_either_transient_or_permanent() -> None:
    for found in list_classes(DicomnodeError)[1:]:
        assert issubclass(found, TransientError) != issubclass(found, PermanentError)


def test_errors_defined_elsewhere_stand_in_no_branch_of_their_own() -> None:
    assert {found.__module__ for found in list_classes(DicomnodeError)} == {"dicomnode.errors"}
