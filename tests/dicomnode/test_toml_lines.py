"""Where the keys of a TOML text stand, on texts worked out by hand.

Flow: toml_lines > [test_toml_lines]
Never: a text that is not valid TOML.
"""

from __future__ import annotations

from dicomnode.toml_lines import find_entries, find_lines


def test_lines_are_found_behind_long_values_and_inline_tables() -> None:
    text = 'a = """\n[not.a.table]\n"""\nb = [\n  1, # one\n  2,\n]\n[t]\nc.d = {e = 1}\n[[l]]\nx = 1\n[[l]]\n\nx = 2\n'
    lines = find_lines(text)
    assert lines["a",] == 1
    assert lines["b", 1] == 4
    assert lines["t",] == 8
    assert lines["t", "c", "d", "e"] == 9
    assert (lines["l", 0, "x"], lines["l", 1], lines["l", 1, "x"]) == (11, 12, 14)


def test_an_entry_ends_where_its_value_ends() -> None:
    text = "[[peers]]\n# a comment\nmay = [\n  'store',\n]\nport = 1\n\n# about what follows\n[node]\n"
    assert [(entry.table, entry.start, entry.end) for entry in find_entries(text)] == [
        (("peers", 0), 1, 1),
        (("peers", 0), 3, 5),
        (("peers", 0), 6, 6),
        (("node",), 9, 9),
    ]
