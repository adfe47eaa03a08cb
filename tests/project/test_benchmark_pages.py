"""A full run's page shows what was measured, and when; every group has one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import GROUPS
from tests.benchmarks.page import PAGES, write_page
from tests.benchmarks.rows import Row


@pytest.mark.parametrize("group", sorted(PAGES))
def test_a_page_holds_every_row_with_the_command_and_the_day(group: str, tmp_path: Path) -> None:
    met = Row(group, "rate", 1234.5, "instances/s", "peer 1e+03", 1.2345, ">= 1x", True)
    write_page(group, [met, Row(group, "share", 0.1, "", "", None, "", None)], (0.51, 1.0, 2.0), tmp_path)

    page = (tmp_path / f"{group}.md").read_text(encoding="utf-8")
    assert f'`FULL=1 make bench ARGS="{group}"`, {datetime.now(UTC).date()}' in page
    assert "\nbefore the run: 0.5, 1.0, 2.0; after it: " in page
    assert "| rate | 1.23e+03 | instances/s | peer 1e+03 | 1.23 | >= 1x | yes |\n| share | 0.1 |  |  |  |  |  |" in page


def test_every_group_has_a_page_or_one_of_its_own() -> None:
    assert set(GROUPS) == {*PAGES, "registration"}
