"""models/MODEL_CARD.md: what the network is made of and what was measured, each section by the program that knows it.

Flow: training | calibrate > [card] > models/MODEL_CARD.md
Never: a figure without the date and the command that gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

FILE_NAME = "MODEL_CARD.md"
HEADER = """# Model card: the descriptor networks

They serve dicomnode's registration: 64x64 patches of one place, of MR and of PET, become two vectors that point the
same way. They find candidates; a search by mutual information polishes the pose they give, and a confidence says how
far to trust it. They diagnose nothing.

Each section below is written by the command it names.
"""


def write_section(folder: Path, title: str, command: str, date: str, body: str) -> None:
    """Write or replace one section of the card in a folder, the others kept."""
    path = folder / FILE_NAME
    text = path.read_text(encoding="utf-8") if path.is_file() else HEADER
    section = f"## {title}\n\n`{command}`, {date}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    is_known = pattern.search(text) is not None
    text = pattern.sub(lambda _: section + "\n", text) if is_known else text.rstrip() + "\n\n" + section
    path.write_text(text.rstrip() + "\n", encoding="utf-8")


def make_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
