"""Every requirement of docs/requirements.md names a test that exists.

Flow: docs/requirements.md > [test_requirements] > tests
Never: a judgement whether the test is good; a reviewer makes that.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "requirements.md").read_text(encoding="utf-8")
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.splitlines() if line[:1] == "|"]
REQUIREMENTS = [row for row in ROWS if re.fullmatch(r"[A-Z]\d+", row[0])]


def test_each_requirement_has_a_number_of_its_own() -> None:
    numbers = [row[0] for row in REQUIREMENTS]
    assert len(numbers) > 20
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("number", "requirement", "test"), REQUIREMENTS, ids=[row[0] for row in REQUIREMENTS])
def test_the_test_of_a_requirement_exists(number: str, requirement: str, test: str) -> None:
    assert requirement.endswith("."), number
    path, name = test.strip("`").split("::")
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
