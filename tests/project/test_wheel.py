"""The wheel alone: what it holds is enough to register, configure and serve, without the checkout.

Flow: pyproject.toml > [test_wheel] > a virtual environment outside the checkout
Never: the checkout's own modules. The fresh environment holds the wheel; the libraries it depends on are those of this
environment, seen through a .pth file, so that no network is needed; the checkout's own .pth is not followed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.builders import make_patient

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = {
    "registration/model/cnn_sift.onnx",
    "registration/model/cnn_sift.toml",
    "registration/model/alexnet.onnx",
    "registration/model/alexnet.toml",
    "dicomnode/shipped_files/config/dicomnode.example.toml",
    "dicomnode/shipped_files/systemd/dicomnode.service",
    "dicomnode/shipped_files/systemd/sysusers.d/dicomnode.conf",
    "dicomnode/shipped_files/systemd/tmpfiles.d/dicomnode.conf",
    "dicomnode/py.typed",
    "registration/py.typed",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, REPOSITORY], check=True, cwd=folder)
    (built,) = folder.glob("dicomnode_fusion-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the `bin` folder of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    target = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    # A .pth adds the folder but does not follow the .pth files in it: the checkout stays out.
    libraries = sysconfig.get_path("purelib")
    (Path(target) / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    return folder / "bin"


def run(installed: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DICOMNODE_", "PYTHON"))}
    command = [str(installed / "dicomnode"), *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_the_node_needs_beside_its_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
    assert names >= NEEDED
    assert any(name.startswith("dicomnode/database/migrations/versions/") for name in names)
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"dicomnode", "registration"}


def test_the_modules_are_the_wheels(installed: Path, tmp_path: Path) -> None:
    program = "import dicomnode, registration; print(dicomnode.__file__, registration.__file__)"
    done = subprocess.run(
        [str(installed / "python"), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for path in done.stdout.split():
        assert Path(path).is_relative_to(installed.parent)


def test_the_installed_command_configures_itself(installed: Path, tmp_path: Path) -> None:
    written = run(installed, tmp_path, "config", "init", "--config", "n.toml")
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "n.toml").read_bytes() == (REPOSITORY / "config" / "dicomnode.example.toml").read_bytes()
    units = Path(written.stdout.rstrip().rpartition(" ")[2])
    assert units.is_relative_to(installed.parent)
    assert (units / "dicomnode.service").is_file()


def test_the_installed_command_registers(installed: Path, tmp_path: Path) -> None:
    patient = make_patient(tmp_path / "patient")
    flags = ["--fixed", patient.mr_folder, "--moving", patient.pet_folder, "--output", tmp_path / "out", "--json"]
    done = run(installed, tmp_path, "register", *flags)
    assert done.returncode in {0, 3}, done.stderr
    answer = json.loads(done.stdout)
    assert answer["verdict"] in {"accept", "review"}
    assert {"reg", "pt", "rgb"} == {output["kind"] for output in answer["outputs"]}
    assert all(Path(output["path"]).is_file() for output in answer["outputs"])
