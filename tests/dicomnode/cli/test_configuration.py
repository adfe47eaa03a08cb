"""`dicomnode config`: the file written, checked against this machine, and shown.

Flow: cli/configuration > [test_configuration]
Never: a port other than one the test holds itself.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dicomnode.running import announce_node
from dicomnode.settings import Settings, TlsSettings
from dicomnode.shipped import EXAMPLE, find_shipped
from tests.certificates import Authority
from tests.dicomnode.cli.conftest import Run


def write(config: Path, *lines: str) -> None:
    config.write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_init_writes_the_example(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "etc" / "n.toml"
    ran = run("config", "init", "--config", path)
    assert ran.code == 0
    assert path.read_text(encoding="utf-8") == find_shipped(EXAMPLE).read_text(encoding="utf-8")
    units = Path(ran.out.rstrip().rpartition(" ")[2])
    assert (units / "dicomnode.service").is_file()


def test_init_leaves_a_file_that_is_there(run: Run, config: Path) -> None:
    before = config.read_text(encoding="utf-8")
    ran = run("config", "init", "--config", config)
    assert ran.code == 2
    assert "is there already" in ran.err
    assert config.read_text(encoding="utf-8") == before


def test_init_does_not_take_a_folder_for_a_file(run: Run, config: Path) -> None:
    ran = run("config", "init", "--config", config / "n.toml")
    assert (ran.code, ran.err) == (
        2,
        f"dicomnode: {config}/n.toml: cannot be written: {config}: File exists; name another with --config\n",
    )


def test_init_names_a_folder_it_cannot_write(run: Run) -> None:
    ran = run("config", "init", "--config", "/proc/n.toml")
    assert ran.code == 2
    assert "/proc/n.toml: cannot be written" in ran.err


def test_check_finds_nothing_wrong(run: Run, tmp_path: Path, config: Path) -> None:
    write(
        config, "[node]", f'storage_root = "{tmp_path}"', f"port = {free_port()}", "[limits]", "disk_reserve_bytes = 0"
    )
    ran = run("config", "check", "--config", config)
    assert (ran.code, ran.out, ran.err) == (0, f"{config}: nothing wrong\n", "")
    assert run("config", "check", "--config", config, "--json").json == {
        "file": str(config), "is_valid": True, "problems": [], "warnings": [],
    }  # fmt: skip


def test_check_names_every_problem(run: Run, config: Path) -> None:
    write(config, "[node]", "port = 0", 'ae_title = ""')
    ran = run("config", "check", "--config", config)
    assert ran.code == 2
    assert ran.err.splitlines() == [
        f"{config}:3: node.ae_title: an AE title is 1 to 16 characters, this one is empty",
        f"{config}:2: node.port: found 0; input should be greater than or equal to 1",
    ]
    found = run("config", "check", "--config", config, "--json")
    assert (found.code, found.json["is_valid"], len(found.json["problems"])) == (2, False, 2)


def test_check_names_a_port_in_use(run: Run, tmp_path: Path, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        write(config, "[node]", f'storage_root = "{tmp_path}"', f"port = {port}")
        ran = run("config", "check", "--config", config)
        assert ran.code == 2
        assert f"{config}:3: node.port: port {port} of 127.0.0.1 is in use by another program; stop it" in ran.err
        with announce_node(tmp_path):  # held by the node itself
            assert "in use" not in run("config", "check", "--config", config).err


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("{tmp}/a-file", "a-file is a file; name a folder"),
        ("/proc/nowhere/dicomnode", "/proc/nowhere/dicomnode is not there, and /proc is not writable"),
        ("/proc", "/proc is not writable for this user"),
    ],
)
def test_check_names_a_storage_root_that_cannot_be_written(
    run: Run, tmp_path: Path, config: Path, root: str, message: str
) -> None:
    (tmp_path / "a-file").touch()
    write(config, "[node]", f'storage_root = "{root.format(tmp=tmp_path)}"', f"port = {free_port()}")
    ran = run("config", "check", "--config", config)
    assert ran.code == 2
    assert ran.err.startswith(f"{config}:2: node.storage_root: ")
    assert message in ran.err


def write_with_tls(config: Path, tls: TlsSettings) -> None:
    rows = [f"{key} = {json.dumps(value)}" for key, value in tls.model_dump(mode="json").items()]
    node = ["[node]", f'storage_root = "{config.parent}"', f"port = {free_port()}"]
    write(config, "[tls]", *rows, *node, "[limits]", "disk_reserve_bytes = 0")


def test_check_names_certificates_that_cannot_be_used(run: Run, tmp_path: Path, config: Path) -> None:
    authority = Authority(tmp_path / "ca")
    mine, other = authority.sign("/CN=node"), authority.sign("/CN=other")
    mine.key.chmod(0o600)
    good = authority.settings(mine, free_port())
    write_with_tls(config, good)
    assert run("config", "check", "--config", config).out == f"{config}: nothing wrong\n"
    write_with_tls(config, good.model_copy(update={"key": str(other.key), "ca": "/none.pem"}))
    ran = run("config", "check", "--config", config)
    assert ran.code == 2
    text = f"{config}:4: tls.ca: /none.pem: No such file or directory; name a PEM file that the node's user may read\n"
    assert ran.err == text
    write_with_tls(config, good.model_copy(update={"key": str(other.key)}))
    ran = run("config", "check", "--config", config)
    assert ran.err == (
        f"{config}:3: tls.key: {other.key}: does not fit {mine.certificate}; "
        "name the key that certificate was made for\n"
    )


def test_check_names_certificates_that_run_out(run: Run, tmp_path: Path, config: Path) -> None:
    authority = Authority(tmp_path / "ca")
    expired, soon = authority.sign("/CN=node", days=-1), authority.sign("/CN=node", days=29)
    write_with_tls(config, authority.settings(expired, free_port()))
    ran = run("config", "check", "--config", config)
    assert ran.code == 2
    assert f"{config}:2: tls.certificate: {expired.certificate}: the certificate expired at " in ran.err
    soon.key.chmod(0o604)
    write_with_tls(config, authority.settings(soon, free_port()))
    ran = run("config", "check", "--config", config)
    assert ran.code == 0
    first, second = ran.err.splitlines()
    assert first.startswith(f"warning: {config}:2: tls.certificate: {soon.certificate}: the certificate expires at ")
    assert second == (
        f"warning: {config}:3: tls.key: {soon.key} can be read by every user; make it the node's alone: chmod 600"
    )


def test_check_names_a_tls_port_in_use(run: Run, tmp_path: Path, config: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        write_with_tls(config, authority.settings(authority.sign("/CN=node"), holder.getsockname()[1]))
        ran = run("config", "check", "--config", config)
    assert f"{config}:5: tls.port: port {holder_port(config)} of 127.0.0.1 is in use by another program" in ran.err


def holder_port(config: Path) -> int:
    port: int = tomllib.loads(config.read_text(encoding="utf-8"))["tls"]["port"]
    return port


def test_check_looks_up_no_network(run: Run, tmp_path: Path, config: Path) -> None:
    peer = ["[[peers]]", 'name = "p"', 'ae_title = "P"', 'host = "10.0.0.0/8"', "port = 104"]
    write(config, "[node]", f'storage_root = "{tmp_path}"', f"port = {free_port()}", *peer)
    assert "peers[0].host" not in run("config", "check", "--config", config).err


def test_check_leaves_no_trace(run: Run, tmp_path: Path, config: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    run("config", "check", "--config", config)
    assert sorted(tmp_path.rglob("*")) == before


def test_check_names_a_driver_that_is_not_installed(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as where it is not installed
    node = ["[node]", f'storage_root = "{config.parent}"', f"port = {free_port()}"]
    write(config, *node, "[database]", 'url = "postgresql+psycopg://user@h/dicomnode"')
    ran = run("config", "check", "--config", config)
    message = "database.url: psycopg is not installed; pip install 'dicomnode-fusion[postgres]'"
    assert (ran.code, ran.err) == (2, f"{config}:5: {message}\n")


def test_check_names_an_address_of_another_machine(run: Run, tmp_path: Path, config: Path) -> None:
    write(config, "[node]", 'bind = "192.0.2.1"', f'storage_root = "{tmp_path}"')  # RFC 5737: nobody's
    ran = run("config", "check", "--config", config)
    assert f"{config}:2: node.bind: 192.0.2.1 is not an address of this machine" in ran.err


def test_check_looks_hosts_up_side_by_side(
    run: Run, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"no-such-host-{number}.invalid" for number in range(3)]
    together, look_up = threading.Barrier(len(names), timeout=10), socket.getaddrinfo

    def look_up_together(host: str, *rest: Any, **more: Any) -> Any:
        if host in names:
            together.wait()
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_together)
    peers = [
        line
        for number, host in enumerate(names)
        for line in ("[[peers]]", f'name = "p{number}"', f'ae_title = "P{number}"', f'host = "{host}"', "port = 104")
    ]
    write(config, "[node]", f'storage_root = "{tmp_path}"', f"port = {free_port()}", *peers)
    ran = run("config", "check", "--config", config)
    assert ran.code == 0
    assert [line.split(": ")[3].split()[0] for line in ran.err.splitlines() if "is not known" in line] == names


def test_check_warns_of_an_unknown_host_and_a_full_disk(run: Run, tmp_path: Path, config: Path) -> None:
    peer = ["[[peers]]", 'name = "p"', 'ae_title = "P"', 'host = "no-such-host.invalid"', "port = 104"]
    node = ["[node]", f'storage_root = "{tmp_path}"', f"port = {free_port()}"]
    write(config, *node, *peer, "[limits]", "disk_reserve_bytes = 1000000000000000000")
    ran = run("config", "check", "--config", config)
    assert ran.code == 0
    assert f"warning: {config}:7: peers[0].host: no-such-host.invalid is not known" in ran.err
    assert f"warning: {config}:10: limits.disk_reserve_bytes: " in ran.err


def test_show_gives_the_settings_in_force(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMNODE_NODE__AE_TITLE", "FROM ENV")
    shown = tomllib.loads(run("config", "show", "--config", config).out)
    assert shown["node"]["ae_title"] == "FROM ENV"
    assert shown["send"] == Settings().send.model_dump(mode="json")
    assert run("config", "show", "--config", config, "--json").json == shown


def test_show_hides_a_password(run: Run, config: Path) -> None:
    write(config, "[database]", 'url = "postgresql+psycopg://node:s3cret@db/dicomnode"')
    out = run("config", "show", "--config", config).out
    assert "s3cret" not in out
    assert "postgresql+psycopg://node:***@db/dicomnode" in out


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port: int = holder.getsockname()[1]
        return port
