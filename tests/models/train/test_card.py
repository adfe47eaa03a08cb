from __future__ import annotations

from pathlib import Path

from models.train.card import make_table, write_section


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    for body in ("old figures", "new figures"):
        write_section(tmp_path, "Network", "train", "2026-01-02", body)
        write_section(tmp_path, "Confidence", "calibrate", "2026-01-02", r"a back\slash stays")

    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert text.startswith("# Model card")
    assert "old figures" not in text
    assert text.count("## Network") == 1
    assert text.index("new figures") < text.index("## Confidence")
    assert r"a back\slash stays" in text


def test_a_table() -> None:
    assert make_table(["a", "b"], [(1, "x")]) == "| a | b |\n|---|---|\n| 1 | x |"
