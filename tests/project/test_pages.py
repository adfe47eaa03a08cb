"""The examples of the pages give what the pages say.

Flow: *.md > [test_pages]
Never: a page named here alone: whatever page holds a `pycon` block is run.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = {
    str(page.relative_to(REPOSITORY)): text
    for page in sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
    if "```pycon\n" in (text := page.read_text(encoding="utf-8"))
}


def test_pages_with_examples_are_found() -> None:
    assert {"docs/geometry.md", "docs/notebook.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_examples_give_what_the_page_says(page: str) -> None:
    result = doctest.testfile(str(REPOSITORY / page), module_relative=False, encoding="utf-8")
    assert result.attempted == len(re.findall(r"^>>> ", PAGES[page], re.MULTILINE))
    assert result.failed == 0
