"""README.md as an administrator follows it: every block, top to bottom, on this machine instead of the example's.

Flow: README.md > [test_readme] > dicomnode, DCMTK as scanner and PACS
Never: a command that README does not show, save for what it asks a person to do elsewhere (the scanner's push).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pydicom
import tomlkit

from tests.builders import NodeProcess, make_patient, run_command
from tests.certificates import Authority
from tests.conftest import REPOSITORY
from tests.peers_programs import LOOPBACK, StoreScp, free_port, send_with_dcmtk
from tests.waiting import wait_until

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^ *```(console|toml)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# What other tests run: the suite runs under `make test`, test_demo runs the demonstration and registers what it wrote,
# test_wheel installs the wheel, test_systemd holds the unit's command to `serve`.
RUN_ELSEWHERE = ("make test", "make demo", "pip install", "dicomnode register")
START = "systemctl enable --now dicomnode"
DELIVERY_S = 240.0
SHORT_SILENCES = {f"DICOMNODE_PAIRING__{kind}_QUIET_PERIOD_S": "0.5" for kind in ("SERIES", "STUDY")}
Step = tuple[str, str]  # what kind of block, and one command or the whole table


def read_steps() -> list[Step]:
    """Return README's commands, one by one, and its TOML tables, in their order."""
    steps: list[Step] = []
    for kind, text in BLOCK.findall(README):
        if kind == "toml":
            steps.append((kind, text))
        else:
            steps += [(kind, line.strip()[2:]) for line in text.splitlines() if line.strip().startswith("$ ")]
    return steps


class Administrator:
    """Follows README on one machine: `here` says what stands for the example's names and numbers."""

    def __init__(self, folder: Path, pacs_port: int) -> None:
        self.config = folder / "dicomnode.toml"
        self.port, self.tls_port = free_port(), free_port()
        self.authority = Authority(folder / "ca")
        identity = self.authority.sign("/O=Hospital/CN=fusion.example.org")
        self.storage_root = folder / "storage"
        self.storage_root.mkdir()
        self.here: Mapping[str, str] = {
            "/etc/dicomnode/dicomnode.toml": str(self.config),
            "/var/lib/dicomnode": str(self.storage_root),
            "10.1.2.10": LOOPBACK,
            "10.1.2.20": LOOPBACK,
            "10.1.2.30": LOOPBACK,
            "--port 104": f"--port {pacs_port}",
            "port = 11112": f"port = {self.port}",
            "port = 2762": f"port = {self.tls_port}",
            "/etc/dicomnode/tls/fusion.pem": str(identity.certificate),
            "/etc/dicomnode/tls/fusion.key": str(identity.key),
            "/etc/dicomnode/tls/hospital-ca.pem": str(self.authority.certificate),
        }
        self.printed: dict[str, str] = {}  # what each command of README printed, without its flags

    def localise(self, text: str) -> str:
        """Return what README says with this machine's names in the place of the example's."""
        for example, local in self.here.items():
            text = text.replace(example, local)
        return text

    def run(self, command: str) -> None:
        """Run one command as README shows it, and expect it to succeed."""
        program, *arguments = shlex.split(self.localise(command))
        assert program == "dicomnode"
        result = run_command(*arguments)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        self.printed[command.partition(" --")[0]] = result.stdout

    def write(self, table: str) -> None:
        """Put a table README shows into the file: over the keys that are there, or as a new one."""
        document = tomlkit.parse(self.config.read_text(encoding="utf-8"))
        for name, value in tomlkit.parse(self.localise(table)).items():
            if isinstance(value, Mapping) and name in document:
                document[name].update(value)
            else:
                document.append(name, value)
        self.config.write_text(tomlkit.dumps(document), encoding="utf-8")


def push_a_pair_that_needs_a_person(folder: Path, admin: Administrator) -> int:
    """Push an MR, and by TLS a PET whose header says another sex, as a scanner does; return the slices."""
    patient = make_patient(folder / "patient", seed=1)
    for path in patient.pet_files:
        data_set = pydicom.dcmread(path)
        data_set.PatientSex = {"F": "M", "M": "F"}[data_set.PatientSex]
        data_set.save_as(path)
    scanner = admin.authority.sign("/O=Hospital/CN=petct1.example.org")
    for files, port, options in (
        (patient.mr_files, admin.port, []),
        (patient.pet_files, admin.tls_port, admin.authority.dcmtk_options(scanner)),
    ):
        sent = send_with_dcmtk(files, port, called="FUSION", calling="PETCT1", options=["-R", *options])
        assert sent.all_stored, sent.output[-2000:]
    return len(patient.mr_files)


def test_readme_leads_an_administrator_from_nothing_to_delivered_results(tmp_path: Path) -> None:
    steps = [(kind, text) for kind, text in read_steps() if not text.startswith(RUN_ELSEWHERE)]
    start = steps.index(("console", START))
    with StoreScp(tmp_path, ae_title="PACS") as pacs:
        admin = Administrator(tmp_path, pacs.port)
        for kind, text in steps[:start]:
            admin.write(text) if kind == "toml" else admin.run(text)
        node = NodeProcess(admin.config, admin.port)
        node.environment |= SHORT_SILENCES
        with node:
            slices = push_a_pair_that_needs_a_person(tmp_path, admin)
            wait_until(lambda: node.list_rows("pairs"), DELIVERY_S, "a pair")
            number = node.list_rows("pairs")[0]["id"]
            for _, text in steps[start + 1 :]:
                admin.run(text.replace(" 7 ", f" {number} "))
            wait_until(lambda: len(pacs.files()) == 2 * slices + 1, DELIVERY_S, "the results at the PACS")
    assert "held" in admin.printed["dicomnode pairs list"]
    assert {pydicom.dcmread(path, stop_before_pixels=True).Modality for path in pacs.files()} == {"REG", "PT", "OT"}


def test_what_readme_leaves_to_other_tests_is_what_they_run() -> None:
    commands = [text for kind, text in read_steps() if kind == "console"]
    assert all(any(text.startswith(start) for text in commands) for start in RUN_ELSEWHERE)
    # The suite itself runs below make, whose flags and ARGS a make inside would follow.
    environment = {name: value for name, value in os.environ.items() if not re.match(r"MAKE|MFLAGS$|ARGS$", name)}
    command = ["make", "-n", "demo"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == [".venv/bin/dicomnode", "demo"]
