"""Notices reach an HTTP server and a mail server, signed, by checked TLS, once, and without anything of a patient.

Flow: dicomnode.send.notices > [test_notices] > http.server, aiosmtpd, openssl
Never: a receiver beyond loopback.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from pathlib import Path

import pytest
from numpy.random import default_rng

from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import JobClaim, claim_job, move_claimed_job
from dicomnode.database.notices import Notice, fetch_notices
from dicomnode.errors import (
    DatabaseUnavailableError,
    DicomnodeError,
    PeerBusyError,
    PeerRejectedError,
    PeerUnreachableError,
)
from dicomnode.send.channels import Channel, make_channels
from dicomnode.send.notice_words import Message
from dicomnode.send.notices import NoticeService
from dicomnode.settings import NodeSettings, SendSettings, Settings
from dicomnode.settings_limits import LimitSettings
from dicomnode.settings_reporting import EmailSettings, NoticeSettings, WebhookSettings
from tests.certificates import Authority
from tests.clocks import Clock
from tests.notice_receivers import HttpReceiver, MailServer, receive_posts
from tests.peers_programs import LOOPBACK, free_port
from tests.rows import add_waiting_job
from tests.waiting import wait_until

SECRET = "5f0c2c1e6d4b4f7fa9a1"  # noqa: S105 - of this test alone
MESSAGE = Message("7", "DICOMNODE", "job_failed", 3, ("job 4", "job 5"), 1700000000.0)
NOW = 1700000100.0
WAIT_S = 30.0


def _settings(
    root: Path, url: str = "", email: EmailSettings | None = None, ca: Path | None = None, **limits: int
) -> Settings:
    secret = root / "secret"
    secret.write_text(f"{SECRET}\n", encoding="utf-8")
    notices = NoticeSettings(
        ca="" if ca is None else str(ca),
        webhook=WebhookSettings(url=url, secret_file=str(secret)) if url else WebhookSettings(),
        email=email or EmailSettings(),
    )
    send = SendSettings(timeout_s=5.0, attempts=3)
    limited = LimitSettings(**{"disk_reserve_bytes": 0, **limits})
    return Settings(node=NodeSettings(storage_root=root), notices=notices, send=send, limits=limited)


def _channel(settings: Settings) -> Channel:
    (channel,) = make_channels(settings).values()
    return channel


def _service(settings: Settings, database: Database, clock: Clock) -> NoticeService:
    return NoticeService(settings, database, clock, default_rng(0))


def _step(service: NoticeService) -> None:
    """Let the clock call once, and wait for what it set going."""
    service.step()
    wait_until(service.is_idle, WAIT_S, "the channels being idle")


def _end_job(database: Database, state: str) -> int:
    add_waiting_job(database)
    job = claim_job(database, 20.0, 60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), state, reason="Doe^Jane", finished_at=21.0)
    return job.id


def _notices(database: Database) -> list[Notice]:
    with database.read() as connection:
        return fetch_notices(connection)


def _bodies(receiver: HttpReceiver) -> list[tuple[str, int, list[str]]]:
    bodies = [json.loads(post.body) for post in receiver.posts]
    return [(body["kind"], body["count"], body["subjects"]) for body in bodies]


def test_a_webhook_is_posted_by_tls_and_signed(tmp_path: Path, authority: Authority) -> None:
    with receive_posts(authority) as receiver:
        url = f"https://{LOOPBACK}:{receiver.port}/hook?who=dicomnode"
        _channel(_settings(tmp_path, url, ca=authority.certificate)).send(MESSAGE, NOW)
    (post,) = receiver.posts
    assert post.path == "/hook?who=dicomnode"
    signed = post.headers["Dicomnode-Timestamp"].encode() + b"." + post.body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert post.headers["Dicomnode-Signature"] == f"sha256={expected}"
    assert post.headers["Dicomnode-Timestamp"] == "1700000100"
    assert post.headers["Content-Type"] == "application/json"
    assert json.loads(post.body) == {
        "notice": "7",
        "node": "DICOMNODE",
        "kind": "job_failed",
        "count": 3,
        "subjects": ["job 4", "job 5"],
        "first_at": "2023-11-14T22:13:20+00:00",
        "text": "job 4, job 5 and 1 more failed",
        "command": "dicomnode jobs list --state failed",
    }


def test_a_webhook_with_another_certificate_is_posted_nothing(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other", "Somebody")
    with receive_posts(authority) as receiver:
        url = f"https://{LOOPBACK}:{receiver.port}/"
        with pytest.raises(PeerUnreachableError, match=r"certificate is not accepted: .*; notices.ca must hold its CA"):
            _channel(_settings(tmp_path, url, ca=other.certificate)).send(MESSAGE, NOW)
    assert receiver.posts == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (204, None),
        (302, PeerRejectedError),
        (404, PeerRejectedError),
        (408, PeerBusyError),
        (429, PeerBusyError),
        (503, PeerBusyError),
    ],
)
def test_what_an_answer_means(tmp_path: Path, status: int, error: type[DicomnodeError] | None) -> None:
    with receive_posts() as receiver:
        receiver.statuses.append(status)
        channel = _channel(_settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/"))
        if error is None:
            assert channel.send(MESSAGE, NOW) == ""
        else:
            with pytest.raises(error, match=f"webhook at 127.0.0.1: answered with status {status}"):
                channel.send(MESSAGE, NOW)
    assert [post.path for post in receiver.posts] == ["/"]  # a redirection is not followed


def test_a_webhook_that_is_away_is_tried_again_later(tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachableError, match=r"webhook at 127\.0\.0\.1: .*[Rr]efused"):
        _channel(_settings(tmp_path, f"http://{LOOPBACK}:{free_port()}/")).send(MESSAGE, NOW)


@pytest.mark.parametrize("encryption", ["starttls", "tls", "none"])
def test_an_e_mail_is_sent_and_says_what_to_do(tmp_path: Path, authority: Authority, encryption: str) -> None:
    with MailServer(tmp_path, authority, encryption) as server:
        settings = _settings(tmp_path, email=server.settings(), ca=authority.certificate)
        assert _channel(settings).send(MESSAGE, NOW) == ""
        (mail,) = server.messages()
    assert mail["Subject"] == "DICOMNODE: job 4, job 5 and 1 more failed"
    assert mail["To"] == "physics@hospital.example.org"
    assert mail["Message-ID"] == "<dicomnode-7-1700000000@hospital.example.org>"
    text = mail.get_content()
    assert "To do: dicomnode jobs list --state failed" in text
    assert "Since: 2023-11-14T22:13:20+00:00" in text


def test_the_node_logs_in_to_a_mail_server_and_says_when_it_may_not(tmp_path: Path, authority: Authority) -> None:
    with MailServer(tmp_path, authority, login=("dicomnode", "s3cret")) as server:
        password = tmp_path / "password"
        email = server.settings(user="dicomnode", password_file=str(password))
        for text in ("s3cret", "wrong"):
            password.write_text(f"{text}\n", encoding="utf-8")
            channel = _channel(_settings(tmp_path, email=email, ca=authority.certificate))
            if text == "s3cret":
                channel.send(MESSAGE, NOW)
            else:
                with pytest.raises(PeerRejectedError, match=r"answered with 535; is notices\.email right") as caught:
                    channel.send(MESSAGE, NOW)
                assert "wrong" not in str(caught.value)
        assert len(server.messages()) == 1


@pytest.mark.parametrize(
    ("encryption", "asked", "message"),
    [("starttls", "tls", "mail server"), ("none", "starttls", "STARTTLS extension not supported")],
)
def test_an_e_mail_never_falls_back_to_plain_text(
    tmp_path: Path, authority: Authority, encryption: str, asked: str, message: str
) -> None:
    with MailServer(tmp_path, authority, encryption) as server:
        settings = _settings(tmp_path, email=server.settings(encryption=asked), ca=authority.certificate)
        with pytest.raises((PeerUnreachableError, PeerRejectedError), match=message):
            _channel(settings).send(MESSAGE, NOW)
        assert server.messages() == []


def test_a_mail_server_with_another_certificate_is_sent_nothing(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other", "Somebody")
    with MailServer(tmp_path, authority) as server:
        channel = _channel(_settings(tmp_path, email=server.settings(), ca=other.certificate))
        with pytest.raises(PeerUnreachableError, match="certificate is not accepted"):
            channel.send(MESSAGE, NOW)
        assert server.messages() == []


def test_recipients_that_are_refused_are_named_or_decide(tmp_path: Path, authority: Authority) -> None:
    with MailServer(tmp_path, authority, "none") as server:

        def send(*names: str) -> str:
            recipients = [f"{name}@hospital.example.org" for name in names]
            return _channel(_settings(tmp_path, email=server.settings(recipients=recipients))).send(MESSAGE, NOW)

        assert send("physics", "nobody") == "refused for nobody@hospital.example.org"
        with pytest.raises(PeerRejectedError, match="refused every recipient with 550"):
            send("nobody")
        with pytest.raises(PeerBusyError, match="refused every recipient with 451, 550"):
            send("nobody", "busy")
        assert len(server.messages()) == 1


def test_what_needs_a_person_is_told_once_by_each_channel(
    tmp_path: Path, authority: Authority, database: Database
) -> None:
    with receive_posts() as receiver, MailServer(tmp_path, authority, "none") as server:
        clock = Clock(NOW)
        settings = _settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/", server.settings())
        failed, review = _end_job(database, "failed"), _end_job(database, "review")
        first = _service(settings, database, clock)
        _step(first)
        first.stop(WAIT_S)
        second = _service(settings, database, clock)  # after a restart
        _step(second)
        clock.now += 5 * settings.notices.window_s
        _step(second)
        second.stop(WAIT_S)
        assert sorted(_bodies(receiver)) == [("job_failed", 1, [f"job {failed}"]), ("review", 1, [f"job {review}"])]
        mails = server.messages()
    assert sorted(mail["Subject"] for mail in mails) == [
        f"DICOMNODE: job {failed} failed",
        f"DICOMNODE: job {review} waits for a person",
    ]
    told = b"".join(post.body for post in receiver.posts) + b"".join(mail.as_bytes() for mail in mails)
    assert b"Doe" not in told
    assert b"4711" not in told
    assert [notice.state for notice in _notices(database)] == ["sent"] * 4


def test_many_that_fail_one_after_the_other_make_one_notice_a_window(tmp_path: Path, database: Database) -> None:
    with receive_posts() as receiver:
        clock = Clock(NOW)
        settings = _settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/")
        service = _service(settings, database, clock)
        jobs = []
        for _ in range(7):
            jobs.append(f"job {_end_job(database, 'failed')}")
            _step(service)
            clock.now += settings.notices.window_s / 6
        service.stop(WAIT_S)
    assert _bodies(receiver) == [("job_failed", 1, jobs[:1]), ("job_failed", 6, jobs[1:7])]


def test_a_receiver_that_was_away_is_told_when_it_is_back(tmp_path: Path, database: Database) -> None:
    with receive_posts() as receiver:
        receiver.statuses += [503, 503]
        clock = Clock(NOW)
        service = _service(_settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/"), database, clock)
        job_id = _end_job(database, "failed")
        _step(service)
        _step(service)
        (notice,) = _notices(database)
        assert (notice.state, notice.reason) == ("retry", "webhook at 127.0.0.1: answered with status 503")
        assert len(receiver.posts) == 1  # the wait is not over
        for _ in range(2):
            clock.now = _notices(database)[0].not_before
            _step(service)
        service.stop(WAIT_S)
    assert _bodies(receiver)[-1] == ("job_failed", 1, [f"job {job_id}"])
    assert [notice.state for notice in _notices(database)] == ["sent"]
    assert {json.loads(post.body)["notice"] for post in receiver.posts} == {str(notice.id)}


@pytest.mark.parametrize(("statuses", "posts"), [([404], 1), ([503, 503, 503], 3)])
def test_a_notice_is_given_up_when_refused_or_out_of_attempts(
    tmp_path: Path, database: Database, statuses: list[int], posts: int
) -> None:
    with receive_posts() as receiver:
        receiver.statuses += statuses
        clock = Clock(NOW)
        service = _service(_settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/"), database, clock)
        _end_job(database, "failed")
        for _ in range(4):
            _step(service)
            clock.now += 3600.0
        service.stop(WAIT_S)
    assert [notice.state for notice in _notices(database)] == ["dead"]
    assert len(receiver.posts) == posts


def test_a_disk_below_its_reserve_is_told_once_until_it_was_well_for_a_window(
    tmp_path: Path, database: Database
) -> None:
    with receive_posts() as receiver:
        clock = Clock(NOW)
        url = f"http://{LOOPBACK}:{receiver.port}/"
        well, full = _settings(tmp_path, url), _settings(tmp_path, url, disk_reserve_bytes=10**18)
        service = _service(full, database, clock)
        for settings in (full, well, full, full):  # it is at the edge
            service.reload(settings)
            _step(service)
            clock.now += full.notices.window_s / 2
        assert _bodies(receiver) == [("disk", 1, ["the storage root"])]
        for settings in (well, well, well, full):
            service.reload(settings)
            _step(service)
            clock.now += full.notices.window_s
        service.stop(WAIT_S)
    assert _bodies(receiver) == [("disk", 1, ["the storage root"])] * 2


def test_a_disk_that_takes_no_row_is_told_all_the_same_and_once(tmp_path: Path, database: Database) -> None:
    root = tmp_path / "gone"
    with receive_posts() as receiver:
        receiver.statuses += [503]
        clock = Clock(NOW)
        settings = _settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/")
        node = settings.node.model_copy(update={"storage_root": root})
        away = open_database(f"sqlite:///{root / 'dicomnode.sqlite'}")
        service = _service(settings.model_copy(update={"node": node}), away, clock)
        for _ in range(6):
            with pytest.raises(DatabaseUnavailableError):
                service.step()
            wait_until(service.is_idle, WAIT_S)
            clock.now += 30.0
        service.stop(WAIT_S)
        away.close()
    assert _bodies(receiver) == [("disk", 1, ["the storage root"])] * 2  # the first was answered with 503


def test_a_database_that_stays_away_is_told(tmp_path: Path, database: Database) -> None:
    with receive_posts() as receiver:
        clock = Clock(NOW)
        away = open_database(f"sqlite:///{tmp_path / 'none' / 'dicomnode.sqlite'}")
        service = _service(_settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/"), away, clock)
        told = []
        for _ in range(4):
            with pytest.raises(DatabaseUnavailableError):
                service.step()
            wait_until(service.is_idle, WAIT_S)
            told.append(len(receiver.posts))
            clock.now += 30.0
        service.stop(WAIT_S)
        away.close()
    assert told == [0, 0, 1, 1]  # from 60 s on
    assert _bodies(receiver) == [("database", 1, ["the database"])]


def test_a_certificate_that_runs_out_is_told_once(tmp_path: Path, authority: Authority, database: Database) -> None:
    with receive_posts() as receiver:
        clock = Clock(NOW)
        settings = _settings(tmp_path, f"http://{LOOPBACK}:{receiver.port}/")
        tls = authority.settings(authority.sign("/CN=node", days=10))
        service = _service(settings.model_copy(update={"tls": tls}), database, clock)
        for days in (0, 1, 11, 12):
            clock.now = time.time() + days * 86400.0
            _step(service)
        service.stop(WAIT_S)
    assert _bodies(receiver) == [
        ("certificate", 1, ["tls.certificate (runs out)"]),
        ("certificate", 1, ["tls.certificate (not valid)"]),
    ]
