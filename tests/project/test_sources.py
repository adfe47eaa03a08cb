"""House rules that no linter knows, over every file of the repository.

Flow: the files git knows > [test_sources]
Never: a rule that ruff, mypy or import-linter can check.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = ("dicomnode/", "registration/", "models/train/")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "manager", "misc"}
# STYLE: at the C-STORE handler and at the worker's boundary; each records a state.
BROAD_EXCEPTS = {"dicomnode/receive/": 2, "dicomnode/jobs/": 1}
MODULE_DOCSTRING = re.compile(r"[^\n]+[.:?!]\n\n(.*\n)?Flow: .*\[.+\].*\nNever: .+", re.DOTALL)
FUNCTION_LINES = 70  # with its docstring
MIGRATIONS = "dicomnode/database/migrations/"  # lists of tables, as long as the schema
MODULE_LINES = 400
# Put together here, so that this file does not hold what it looks for.
REGISTRIES = ["py" + "pi.org/simple", "python" + "hosted", "download." + "pytorch", "deb." + "debian.org"]
MACHINE_PATH = re.compile(r"(?<![\w.$~-])/(work|root|farm|home|opt/pypi|opt/wheels)/\w")


def list_files(*endings: str) -> list[str]:
    """Return what is tracked or would be, below the repository."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    found = sorted({name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()})
    assert found, "git lists no file"
    return [name for name in found if name.endswith(endings)]


def read_code() -> dict[str, ast.Module]:
    names = [name for name in list_files(".py") if name.startswith(CODE)]
    return {name: ast.parse((REPOSITORY / name).read_text(encoding="utf-8")) for name in names}


@pytest.mark.parametrize("name", [name for name in list_files(".py") if name.startswith(CODE)])
def test_a_module_says_what_it_is_for_its_neighbours_and_what_is_kept_out(name: str) -> None:
    tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree)
    assert docstring, "a module begins with a docstring"
    if name.endswith("__init__.py") and len(tree.body) == 1:
        return  # it only names the package
    assert MODULE_DOCSTRING.match(docstring), f"needed: a sentence, Flow: a > [this] > b, Never: ...\n{docstring}"


def test_no_file_is_named_after_nothing() -> None:
    named = {name for name in list_files(".py") if FORBIDDEN_NAMES & set(Path(name).stem.split("_"))}
    assert named == set()


def test_broad_excepts_stand_where_a_state_is_recorded() -> None:
    found: Counter[str] = Counter()
    for name, tree in read_code().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node):
                found[next((place for place in BROAD_EXCEPTS if name.startswith(place)), name)] += 1
    assert found <= Counter(BROAD_EXCEPTS), f"broad excepts: {dict(found)}"


def test_only_the_database_package_holds_sql() -> None:
    found = []
    for name, tree in read_code().items():
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(module.partition(".")[0] in {"sqlalchemy", "alembic", "sqlite3", "psycopg"} for module in modules):
                names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set(modules)
                found += [f"{name}: {names}"] if names - {"Connection"} else []  # a transaction is handed on
    assert [row for row in found if not row.startswith("dicomnode/database/")] == []


def test_modules_and_functions_can_be_read_at_one_sitting() -> None:
    long = []
    for name, tree in read_code().items():
        lines = len((REPOSITORY / name).read_text(encoding="utf-8").splitlines())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        long += [f"{name}: {lines} lines"] if lines > MODULE_LINES else []
        if not name.startswith(MIGRATIONS):
            long += [f"{name}:{node.lineno} {node.name}" for node in functions if _count_lines(node) > FUNCTION_LINES]
    assert long == []


def test_tests_wait_for_conditions_and_never_for_time() -> None:
    sleeping = []
    for name in list_files(".py"):
        if name.startswith("tests/"):
            tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
            loops = [node for node in ast.walk(tree) if isinstance(node, ast.While)]
            polls = {call for loop in loops if not isinstance(loop.test, ast.Constant) for call in _find_sleeps(loop)}
            sleeping += [f"{name}:{call.lineno}" for call in _find_sleeps(tree) if call not in polls]
    assert sleeping == []


def test_an_exception_to_a_rule_names_the_rule_and_the_reason() -> None:
    bare = []
    for name in list_files(".py"):
        for number, line in enumerate((REPOSITORY / name).read_text(encoding="utf-8").splitlines(), 1):
            found = re.search(r"# (noqa|type: ignore)(?P<rest>.*)", line)
            if found and not re.match(r"(: [A-Z0-9, ]+|\[[\w, -]+\])\W+\w+", found["rest"]):
                bare.append(f"{name}:{number}")
    assert bare == []


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = []
    for name in list_files():
        try:
            text = (REPOSITORY / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {host}" for host in REGISTRIES if host in text]
        found += [
            f"{name}: {path[0]}" for path in MACHINE_PATH.finditer(text) if name != "tests/project/test_sources.py"
        ]
    assert found == []


def test_a_page_that_is_referred_to_by_its_section_is_here() -> None:
    pages = {Path(name).stem for name in list_files(".md")}
    named = []
    for name in list_files(".py", ".md", ".toml"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        named += [(name, page) for page in re.findall(r"([A-Za-z][\w-]+)(?:\.md)?`? section \d", text)]
    assert [(name, page) for name, page in named if page not in pages] == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """Say whether it catches everything and does not raise it again."""
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    is_broad = any(name is None or getattr(name, "id", "") in {"Exception", "BaseException"} for name in names)
    last = handler.body[-1]
    return is_broad and not (isinstance(last, ast.Raise) and last.exc is None)


def _count_lines(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _find_sleeps(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == "sleep"]
