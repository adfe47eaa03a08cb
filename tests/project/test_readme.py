"""Every command the pages show exists: its flags parse, its make target is there.

Flow: *.md > [test_readme] > cli/arguments, Makefile
Never: a command run; that is the business of the tests that know what comes out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.cli.arguments import make_parser

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "models").rglob("*.md")])
OTHER_PROGRAMS = {"pip", "systemctl", "systemd-sysusers", "systemd-tmpfiles", "cp", "git", "cd", "apt-get", "python3"}


def find_commands() -> Iterator[tuple[str, str]]:
    """Yield (page, command) for each `$ ` line of each console block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^ *```console\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            for line in block[1].replace("\\\n", " ").splitlines():
                if line.strip().startswith("$ "):
                    yield str(page.relative_to(REPOSITORY)), line.strip()[2:]


def find_commands_in_operations() -> Iterator[tuple[str, str]]:
    """Yield (page, command) for each whole command the operations page names in its text."""
    page = "docs/operations.md"
    for command in re.findall(r"`(dicomnode [^`]+)`", (REPOSITORY / page).read_text(encoding="utf-8")):
        yield page, command


COMMANDS = sorted({*find_commands(), *find_commands_in_operations()})
TARGETS = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_readme_shows_the_three_first_commands() -> None:
    shown = {command for page, command in COMMANDS if page == "README.md"}
    assert {"make demo", "make test"} <= shown
    assert any(command.startswith("dicomnode register ") for command in shown)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_that_is_shown_exists(page: str, command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    program, arguments = (arguments[0], arguments[1:]) if program == "sudo" else (program, arguments)
    if program == "make":
        targets = [argument for argument in arguments if "=" not in argument]
        assert set(targets) <= TARGETS, f"no such target: {targets}"
    elif Path(program).name == "dicomnode":
        make_parser().parse_args(arguments)  # ends the test (SystemExit) with what is wrong
    else:
        assert program in OTHER_PROGRAMS


def test_the_operations_page_names_events_that_are_logged_and_every_one_that_warns() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8").partition("\n## Logs\n")[2]
    firsts = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {event for cell in firsts for event in re.findall(r"`([a-z]+\.[a-z_]+)`", cell)}
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "dicomnode").rglob("*.py")]
    calls = [call for source in sources for call in re.findall(r'log\.(\w+)\(\s*"([a-z]+\.[a-z_]+)"', source)]
    assert named <= {event for _, event in calls}
    assert {event for level, event in calls if level != "info"} - named == set()


def test_the_readme_installs_where_the_unit_looks() -> None:
    unit = (REPOSITORY / "systemd" / "dicomnode.service").read_text(encoding="utf-8")
    folder = re.search(r"^ExecStart=(/\S+)/bin/dicomnode serve ", unit, re.MULTILINE)
    assert folder is not None
    assert f"`python3 -m venv {folder[1]}`" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_target_is_explained_by_help() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    explained = set(re.findall(r"@echo 'make (\w+)", makefile))
    assert explained == TARGETS - {"help", "setup", "peers"}


@pytest.mark.parametrize("page", [str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_a_link_to_a_file_leads_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text)
    broken = [link for link in links if "://" not in link and not (folder / link).exists()]
    assert broken == []
