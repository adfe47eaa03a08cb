"""Every limit that a peer can cross is crossed by a test that asserts its counter.

Flow: tests/peers, tests/system > [test_limits] > settings_limits
Never: a limit that is only mentioned, or only set, taken as one that was crossed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dicomnode.metrics import LIMIT_CROSSINGS
from dicomnode.settings_limits import LimitSettings
from tests.conftest import TESTS

FOLDERS = ("peers", "system")
BOUNDS_NO_PEER = {"shutdown_s"}
# What reads a counter of a limit: the limit is the argument at this place.
READERS = {"count": 1, "assert_crossed": 2}
COUNTER = re.compile(LIMIT_CROSSINGS + r'\{limit="(\w+)"\}')


def test_every_limit_is_crossed_by_a_test() -> None:
    files = [path for folder in FOLDERS for path in (TESTS / folder).glob("test_*.py")]
    found = {limit for path in files for limit in read(path.read_text(encoding="utf-8"))}
    assert found & set(LimitSettings.model_fields) == set(LimitSettings.model_fields) - BOUNDS_NO_PEER


def test_what_is_only_mentioned_or_not_asserted_does_not_count() -> None:
    seen = """
def test_mentions(limits={"pdu_s": 1}):
    "idle_s"
    count(node, "pdu_bytes")
    assert running(pdu_bytes=1), "pdu_bytes"
def test_by_name():
    assert (count(node, "associations"), 2) == (1, 2)
    assert_crossed(node, logs, "data_set_s", "words")
@parametrize([{"idle_s": 1}, {"pdu_s": 1}])
def test_by_table(limits):
    (limit,) = limits
    assert count(node, limit) == 1
def test_by_the_counter_itself():
    assert counts['dicomnode_receive_limit_crossings{limit="nesting_depth"}'] == 1
"""
    assert set(read(seen)) == {"associations", "data_set_s", "idle_s", "pdu_s", "nesting_depth"}


def read(source: str) -> Iterator[str]:
    """Yield the limits whose counters the tests of a file assert."""
    for test in ast.parse(source).body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            for node in ast.walk(test):
                if isinstance(node, ast.Assert):
                    yield from _read_assertion(node.test, test)
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    yield from _read_call(node.value, test, {"assert_crossed"})


def _read_assertion(asserted: ast.expr, test: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(asserted):
        if isinstance(node, ast.Call):
            yield from _read_call(node, test, set(READERS))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from COUNTER.findall(node.value)


def _read_call(call: ast.Call, test: ast.FunctionDef, readers: set[str]) -> Iterator[str]:
    """Yield the limit that is an argument of a reader; where that is a variable, all of the tables of this test."""
    name = getattr(call.func, "id", "")
    if name not in readers:
        return
    limit = call.args[READERS[name]]
    if isinstance(limit, ast.Constant):
        yield str(limit.value)
    else:
        tables = (node for node in ast.walk(test) if isinstance(node, ast.Dict))
        yield from (str(key.value) for table in tables for key in table.keys if isinstance(key, ast.Constant))
