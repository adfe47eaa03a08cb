"""Peers added to and removed from a configuration file: what else stands in it stays, byte for byte.

Flow: settings_edit > [test_settings_edit]
Never: a file outside the test's folder.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path

import pytest

from dicomnode.errors import ConfigurationError, UsageError
from dicomnode.settings import PeerSettings
from dicomnode.settings_edit import add_peer, remove_peer, replace_configuration
from dicomnode.shipped import EXAMPLE, find_shipped

PACS = PeerSettings(name="pacs", ae_title="PACS", host="pacs.example.org", port=104, may=("store", "receive"))
SCANNER = PeerSettings(name="scanner", ae_title="PETCT1", host="10.0.0.3", port=104, may=("store",))
TWO = """# ours
[[peers]]  # the archive
name = "pacs"
ae_title = "PACS"  # fixed by IT
host = "pacs.example.org"
port = 104
may = [
  "store",
]

# a comment about the scanner
[[peers]]
name = "scanner"
ae_title = "PETCT1"
host = "10.0.0.3"
port = 104

# a comment about the node
[node]
port = 11112
"""
INLINE = 'peers = [{name = "a", ae_title = "A", host = "h", port = 1}]  # ours\n[node]\nport = 1 # x\n'


def peer_names(text: str) -> list[str]:
    return [peer["name"] for peer in tomllib.loads(text).get("peers", [])]


def changed_lines(old: str, new: str) -> tuple[list[str], list[str]]:
    """Return the lines that went and the lines that came, blank ones left out."""
    rows = [row for row in difflib.ndiff(old.splitlines(), new.splitlines()) if row[2:].strip()]
    return [row[2:] for row in rows if row[0] == "-"], [row[2:] for row in rows if row[0] == "+"]


@pytest.mark.parametrize("text", [find_shipped(EXAMPLE).read_text(encoding="utf-8"), TWO, ""])
def test_adding_changes_nothing_else(text: str) -> None:
    peer = SCANNER.model_copy(update={"name": "third"})
    gone, came = changed_lines(text, add_peer(text, peer, is_destination=False))
    assert gone == []
    assert came[:2] == ["[[peers]]", 'name = "third"']
    assert len(came) == 1 + len(["name", "ae_title", "host", "port", "may"])  # what is not a default


def test_a_peer_is_added_behind_the_last_peer_and_before_the_comment_of_what_follows() -> None:
    text = add_peer(TWO, SCANNER.model_copy(update={"name": "third"}), is_destination=False)
    assert peer_names(text) == ["pacs", "scanner", "third"]
    assert "# a comment about the node\n[node]" in text


def test_a_destination_is_added_with_its_peer() -> None:
    text = add_peer("", PACS, is_destination=True)
    assert tomllib.loads(text) == {
        "peers": [PACS.model_dump(mode="json", exclude_defaults=True)],
        "destinations": [{"peer": "pacs"}],
    }


def test_removing_takes_the_table_and_leaves_every_comment_around_it() -> None:
    assert changed_lines(TWO, remove_peer(TWO, "scanner"))[0] == [
        "[[peers]]", 'name = "scanner"', 'ae_title = "PETCT1"', 'host = "10.0.0.3"', "port = 104",
    ]  # fmt: skip
    without = remove_peer(TWO, "pacs")
    assert without.startswith("# ours\n# a comment about the scanner\n[[peers]]\n")
    assert peer_names(without) == ["scanner"]


def test_adding_and_removing_gives_the_same_file() -> None:
    peer = SCANNER.model_copy(update={"name": "third"})
    text = find_shipped(EXAMPLE).read_text(encoding="utf-8") + TWO.replace("[node]", "").replace("port = 11112", "")
    assert remove_peer(add_peer(text, peer, is_destination=False), "third").strip() == text.strip()


def test_peers_on_one_line_are_edited_as_well() -> None:
    more = add_peer(INLINE, SCANNER, is_destination=False)
    assert peer_names(more) == ["a", "scanner"]
    assert "# ours" in more
    assert peer_names(remove_peer(more, "a")) == ["scanner"]


def test_a_name_stands_once() -> None:
    with pytest.raises(UsageError, match="named 'pacs' already"):
        add_peer(TWO, PACS, is_destination=False)


def test_a_peer_that_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(UsageError, match="no peer is named 'x'; peers: pacs, scanner"):
        remove_peer(TWO, "x")


def test_a_destination_cannot_be_removed() -> None:
    with pytest.raises(UsageError, match="results are sent to peer 'pacs'"):
        remove_peer(add_peer("", PACS, is_destination=True), "pacs")


def test_a_file_is_replaced_with_its_mode_kept_and_nothing_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "n.toml"
    path.write_text(TWO, encoding="utf-8")
    path.chmod(0o640)
    replace_configuration(path, TWO.replace("11112", "11113"))
    assert "11113" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real.toml", tmp_path / "n.toml"
    path.write_text("", encoding="utf-8")
    link.symlink_to(path)
    replace_configuration(link, TWO)
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == TWO


def test_a_text_the_node_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "n.toml"
    path.write_text(TWO, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="the file was left as it is"):
        replace_configuration(path, TWO + "[node]\nport = 0\n")
    assert path.read_text(encoding="utf-8") == TWO


def test_a_folder_that_cannot_be_written_leaves_the_file() -> None:
    path = Path("/proc/self/environ")  # no user, root included, makes a file beside it
    assert os.access(path, os.R_OK)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        replace_configuration(path, TWO)
