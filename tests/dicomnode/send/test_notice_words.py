"""What notices say, and that the page for whoever gets them says the same."""

from __future__ import annotations

import re
from pathlib import Path

from dicomnode.send.notice_words import KINDS, Message

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_page_has_every_kind_and_what_to_type() -> None:
    table = PAGE.split("| `kind` | when | what to type |\n|---|---|---|\n")[1].split("\n\n")[0]
    typed = {}
    for line in table.splitlines():
        _, kind, _, commands, _ = line.split("|")
        typed[kind.strip(" `")] = "; ".join(re.findall("`([^`]+)`", commands))
    assert typed == {kind: words.command for kind, words in KINDS.items() if kind != "test"}


def test_what_is_not_committed_is_told_by_its_jobs() -> None:
    one = Message("3", "NODE", "not_committed", 1, ("job 7",), 0.0)
    several = Message("4", "NODE", "not_committed", 3, ("job 7", "job 9"), 0.0)
    assert one.text == "job 7 was sent, and the destination does not say that it keeps it"
    assert several.text == "job 7, job 9 and 1 more were sent, and the destinations do not say that they keep them"
