"""`dicomnode notices`: what was told, by what it failed, told again; and what config check and doctor say of it.

Flow: cli/notices, cli/listings, cli/decisions, cli/doctor > [test_notices]
Never: a server beyond loopback.
"""

from __future__ import annotations

from pathlib import Path

from dicomnode.database.audit import open_audit, record_message
from dicomnode.database.engine import Database
from dicomnode.database.notices import Cause, DueNotice, claim_notice, finish_notice, note_causes, owe_notice
from tests.dicomnode.cli.conftest import Run
from tests.notice_receivers import receive_posts
from tests.peers_programs import LOOPBACK, free_port

SECRET = "0123456789abcdef"  # noqa: S105 - of this test alone


def _add_webhook(config: Path, port: int, secret: str = SECRET) -> Path:
    file = config.with_name("secret")
    file.write_text(f"{secret}\n", encoding="utf-8")
    file.chmod(0o600)
    table = f'[notices.webhook]\nurl = "http://{LOOPBACK}:{port}/"\nsecret_file = "{file}"\n'
    config.write_text(config.read_text(encoding="utf-8") + table, encoding="utf-8")
    return file


def _add_dead_notice(database: Database) -> int:
    with database.write() as connection:
        note_causes(connection, "webhook", [Cause("job_failed", f"job {number}", 1.0) for number in (3, 4)], 10.0)
        notice_id = owe_notice(connection, "webhook", "job_failed", 10.0, 900.0)
    notice = claim_notice(database, DueNotice("webhook", 10.0, 60.0, 3600.0))
    assert notice is not None
    with database.write() as connection:
        finish_notice(connection, notice, "dead", 11.0, "status \x1b[31m404")
    assert notice.id == notice_id
    return notice.id


def test_a_dead_notice_is_listed_shown_and_owed_again(run: Run, config: Path, database: Database) -> None:
    notice_id = _add_dead_notice(database)
    (row,) = run("notices", "list", "--config", config, "--json").json
    assert (row["state"], row["count"], row["subjects"], row["reason"]) == (
        "dead",
        2,
        ["job 3", "job 4"],
        "status \x1b[31m404",
    )
    assert "status \\x1b[31m404" in run("notices", "list", "--config", config, "--state", "dead").out
    assert "job 3, job 4" in run("notices", "show", notice_id, "--config", config).out
    assert run("notices", "retry", notice_id, "--config", config).out == f"notice {notice_id}: owed\n"
    again = run("notices", "retry", notice_id, "--config", config)
    assert (again.code, again.err) == (2, f"dicomnode: notice {notice_id}: it is owed, dead is needed\n")


def test_a_test_is_sent_by_each_channel(run: Run, config: Path) -> None:
    with receive_posts() as receiver:
        _add_webhook(config, receiver.port)
        ran = run("notices", "test", "--config", config)
        assert (ran.code, ran.out) == (0, "webhook: sent\n")
        receiver.statuses.append(404)
        ran = run("notices", "test", "--config", config, "--json")
    assert ran.code == 2
    reason = "webhook at 127.0.0.1: answered with status 404, 2xx is needed; is notices.webhook right?"
    assert ran.json == [{"channel": "webhook", "is_sent": False, "reason": reason}]
    assert b'"kind": "test"' in receiver.posts[0].body


def test_a_test_without_anybody_to_tell_says_what_to_set(run: Run, config: Path) -> None:
    ran = run("notices", "test", "--config", config)
    assert ran.code == 2
    assert ran.err == (
        f"dicomnode: {config}: nobody is told anything; set notices.webhook.url or notices.email.host first\n"
    )


def test_a_secret_that_cannot_be_used_is_named_and_not_shown(run: Run, config: Path) -> None:
    file = _add_webhook(config, free_port(), "short")
    line = config.read_text(encoding="utf-8").splitlines().index("[notices.webhook]") + 3
    needed = f"{file}: one line of 16 or more characters is needed; openssl rand -hex 32 makes a secret"
    assert run("config", "check", "--config", config).err.splitlines()[0] == (
        f"{config}:{line}: notices.webhook.secret_file: {needed}"
    )
    assert run("notices", "test", "--config", config).err == f"dicomnode: notices.webhook.secret_file: {needed}\n"
    file.unlink()
    missing = f"{file}: No such file or directory; name a file that the node's user may read"
    assert run("notices", "test", "--config", config).err == f"dicomnode: notices.webhook.secret_file: {missing}\n"


def test_a_password_by_which_nobody_can_log_in_is_named_and_not_shown(run: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("Pässwort\n", encoding="utf-8")
    email = {"host": "h", "sender": "a@b.c", "user": "u", "password_file": str(tmp_path / "password")}
    keys = "".join(f'{key} = "{value}"\n' for key, value in email.items()) + 'recipients = ["d@e.f"]\n'
    config.write_text(f"{config.read_text(encoding='utf-8')}[notices.email]\n{keys}", encoding="utf-8")
    ran = run("notices", "test", "--config", config)
    assert ran.code == 2
    assert "notices.email.password_file: " in ran.err
    assert ran.err.endswith(
        "holds more than ASCII, by which alone a mail server is logged in to; set another password\n"
    )
    assert "sswort" not in ran.err


def test_a_secret_that_everybody_can_read_is_warned_of(run: Run, config: Path) -> None:
    _add_webhook(config, free_port()).chmod(0o644)
    ran = run("config", "check", "--config", config)
    assert "can be read by every user; make it the node's alone: chmod 600" in ran.err


def test_an_audit_file_that_cannot_be_written_is_named(run: Run, config: Path, tmp_path: Path) -> None:
    text = config.read_text(encoding="utf-8")
    for name, problem in ((tmp_path, "is a folder; name a file in it"), (tmp_path / "none" / "a", "cannot be written")):
        config.write_text(f'{text}[audit]\nfile = "{name}"\n', encoding="utf-8")
        ran = run("config", "check", "--config", config)
        assert ran.code == 2
        assert f"audit.file: {name} {problem}" in ran.err


def test_doctor_says_what_did_not_get_through(run: Run, config: Path, database: Database) -> None:
    notice_id = _add_dead_notice(database)
    _add_webhook(config, free_port())
    with database.write() as connection:
        open_audit(connection, ["file"], 0.0)
        record_message(connection, ["file"], "<AuditMessage/>", 1.0)
    findings = run("doctor", "--config", config, "--json").json["findings"]
    said = {(one["check"], one["state"], one["text"]) for one in findings if one["check"] in ("notices", "audit")}
    assert said == {
        ("notices", "warning", f"notice {notice_id} by webhook is dead: status \x1b[31m404"),
        ("audit", "ok", "file: 1 messages wait"),
    }
