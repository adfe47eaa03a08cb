"""The locks: they satisfy pyproject.toml, hash every file, and name no place to download from.

Flow: requirements/*.lock, pyproject.toml > [test_lock]
Never: the network.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = ("build", "runtime", "dev", "bench")
# Where the node is meant to run: markers choose among the pins.
ENVIRONMENTS = (
    {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.11.2", "python_version": "3.11"},
    {"sys_platform": "linux", "platform_machine": "aarch64", "python_full_version": "3.11.2", "python_version": "3.11"},
    {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.13.1", "python_version": "3.13"},
)


def read_project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return project


def read_pins(lock: str, environment: dict[str, str]) -> dict[str, str]:
    """Return name -> version of what a lock installs in an environment."""
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text(encoding="utf-8").replace("\\\n", "")
    pins: dict[str, str] = {}
    for line in text.splitlines():
        requirement = Requirement(line.partition(" --hash")[0])
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice for {environment}"
            pins[name] = next(iter(requirement.specifier)).version
    return pins


def needed(lock: str) -> list[str]:
    project = read_project()
    extras = project["project"]["optional-dependencies"]
    runtime: list[str] = project["project"]["dependencies"]
    wanted: dict[str, list[str]] = {
        "build": project["build-system"]["requires"],
        "runtime": runtime,
        "dev": [*runtime, *extras["dev"], *extras["postgres"]],
        "bench": [*runtime, *extras["dev"], *extras["bench"]],
    }
    return wanted[lock]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: f"{e['platform_machine']}-{e['python_version']}")
def test_a_lock_satisfies_the_project(lock: str, environment: dict[str, str]) -> None:
    pins = read_pins(lock, environment)
    for line in needed(lock):
        requirement = Requirement(line)
        if requirement.marker is None or Marker(str(requirement.marker)).evaluate(environment):
            version = pins.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in {lock}.lock"
            assert requirement.specifier.contains(version), f"{requirement} but {lock}.lock pins {version}"


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: f"{e['platform_machine']}-{e['python_version']}")
def test_the_locks_agree_with_each_other(environment: dict[str, str]) -> None:
    build, runtime, dev, bench = (read_pins(lock, environment) for lock in LOCKS)
    assert runtime.items() <= dev.items()
    assert all(dev.get(name, version) == version for name, version in bench.items())
    for name in build.keys() & dev.keys():
        assert build[name] == dev[name]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_nothing_else(lock: str) -> None:
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
    for line in text.replace("\\\n", "").splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+ *", line), line[:60]


def test_one_onnx_runtime_is_installed_on_each_machine() -> None:
    # Both share one package directory: together they break each other.
    for environment in ENVIRONMENTS:
        pins = read_pins("runtime", environment)
        assert len({"onnxruntime", "onnxruntime-gpu"} & set(pins)) == 1


def test_torch_is_not_locked() -> None:
    for environment in ENVIRONMENTS:
        assert "torch" not in read_pins("dev", environment)
