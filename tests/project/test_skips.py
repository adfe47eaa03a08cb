"""Continuous integration skips nothing: a skip is a failure there, and a skip elsewhere.

Flow: tests/conftest > [test_skips]
Never: the outcome of this run; each case runs a pytest of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SKIPS = {
    "in the test": "import pytest\ndef test_one():\n    pytest.skip('no peer')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='no peer')\ndef test_one():\n    pass\n",
    "in a fixture": (
        "import pytest\n@pytest.fixture\ndef f():\n    pytest.skip('no peer')\ndef test_one(f):\n    pass\n"
    ),
    "of a module": "import pytest\npytest.skip('no peer', allow_module_level=True)\n",
    "of a missing program": (
        "from tests.conftest import find_peer_program\ndef test_one():\n    find_peer_program('no peer at all')\n"
    ),
}


def run(tmp_path: Path, text: str, ci: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_one.py").write_text(text, encoding="utf-8")
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull, "-rs"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_one.py")],
        cwd=REPOSITORY,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("how", SKIPS)
def test_a_skip_fails_under_ci(tmp_path: Path, how: str) -> None:
    done = run(tmp_path, SKIPS[how], "true")
    assert done.returncode != 0
    assert "skipped under CI" in done.stdout
    assert "no peer" in done.stdout


@pytest.mark.parametrize("how", SKIPS)
def test_a_skip_is_a_skip_elsewhere(tmp_path: Path, how: str) -> None:
    done = run(tmp_path, SKIPS[how], "")
    assert "1 skipped" in done.stdout
    assert "no peer" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    done = run(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_one():\n    assert False\n", "true")
    assert done.returncode == 0
