"""`housekeeping plan|log`, `backup`, `restore` and `verify` as a person meets them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.database.engine import Database
from dicomnode.housekeeping.integrity import scan
from dicomnode.housekeeping.retention import delete_due, remove_doomed
from dicomnode.settings_file import load_settings
from tests.dicomnode.cli.conftest import Run
from tests.house import DAY_S, House, spoil


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "storage", database, now=time.time() - 9 * DAY_S) as opened:
        yield opened


def ask_for(config: Path, *lines: str) -> None:
    config.write_text("\n".join([config.read_text(encoding="utf-8"), *lines, ""]), encoding="utf-8")


def test_the_plan_says_what_would_go_and_why_the_rest_stays_and_deletes_nothing(
    run: Run, config: Path, house: House
) -> None:
    pair_id, mr, pet = house.pair(1)
    house.finish(pair_id)
    lonely = house.receive("MR", 50, patient="SECRET-4711")
    house.settle(lonely, "unpaired")
    kept = house.files()
    assert run("housekeeping", "plan", "--config", config).out.splitlines()[-1] == "0 of 4 would go, 0 bytes"

    ask_for(config, "[retention.unpaired]", "days = 2")
    plan = run("housekeeping", "plan", "--config", config, "--json").json

    assert plan["is_asked_for"]
    assert {row["name"]: row["why"] for row in plan["subjects"] if row["goes"]} == {
        lonely: "retention.unpaired.days = 2"
    }
    stay = {row["name"]: row["why"] for row in plan["subjects"] if not row["goes"]}
    assert stay == {mr: "job 1: 2 of it are owed", pet: "job 1: 2 of it are owed", "1": "2 of it are owed"}
    text = run("housekeeping", "plan", "--config", config)
    size_bytes = next(row["size_bytes"] for row in plan["subjects"] if row["goes"])
    assert (text.code, text.out.splitlines()[-1]) == (0, f"1 of 4 would go, {size_bytes} bytes")
    assert "SECRET" not in text.out
    assert house.files() == kept


def test_the_plan_counts_the_rows_that_would_go_and_names_what_stays(run: Run, config: Path, house: House) -> None:
    for number in (50, 51):
        house.settle(house.receive("MR", number), "unpaired")
    ask_for(config, "[retention]", "history_days = 4", "[retention.unpaired]", "days = 2")
    delete_due(house.database, house.store, load_settings(config), house.now + 3 * DAY_S, lambda: 0)
    assert remove_doomed(house.database, house.store, house.now)

    plan = run("housekeeping", "plan", "--config", config, "--json").json

    rows = {row["table"]: (row["going"], row["staying"]) for row in plan["history"]}
    assert (rows["deletions"], rows["associations"], rows["queries"]) == ((1, 1), (1, 1), (0, 0))
    text = run("housekeeping", "plan", "--config", config).out
    assert "those that brought what is kept" in text
    assert "2 rows of what is long over would go\n" in text


def test_the_log_says_what_went_when_and_why(run: Run, config: Path, house: House) -> None:
    assert run("housekeeping", "log", "--config", config).out == "nothing was deleted\n"
    lonely = house.receive("MR", 50)
    house.settle(lonely, "unpaired")
    ask_for(config, "[retention.unpaired]", "days = 2")
    delete_due(house.database, house.store, load_settings(config), time.time(), lambda: 0)
    [row] = run("housekeeping", "log", "--config", config, "--json").json
    assert (row["kind"], row["subject"], row["reason"]) == ("unpaired", lonely, "retention.unpaired.days = 2")
    assert row["done_at"] is None
    assert lonely in run("housekeeping", "log", "--config", config).out
    assert [one["series_uid"] for one in run("series", "list", "--state", "deleted", "--config", config, "--json").json]


def test_a_node_is_backed_up_verified_and_restored_by_command(
    run: Run, config: Path, house: House, tmp_path: Path
) -> None:
    house.finish(house.pair(1)[0])
    backup, other = tmp_path / "backup", tmp_path / "other.toml"
    other.write_text(f'[node]\nstorage_root = "{tmp_path / "other"}"\n', encoding="utf-8")
    made = run("backup", backup, "--config", config)
    assert (made.code, made.out.startswith(f"{backup}: 6 files, ")) == (0, True)
    assert run("verify", backup).out == f"{backup}: 6 files, 0 differences\n"
    assert run("verify", "--config", config).out == f"{house.root}: 6 files, 0 differences\n"
    assert run("restore", backup, "--config", other).code == 0
    assert run("verify", "--config", other).out == f"{tmp_path / 'other'}: 6 files, 0 differences\n"

    again = run("restore", backup, "--config", other)
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith(f"dicomnode: {tmp_path / 'other'}: holds ")
    spoiled = sorted(house.files("outputs"))[0]
    spoil(house.root / spoiled)
    found = run("verify", "--config", config)
    assert found.code == 3
    assert found.out.startswith(f"{spoiled}: has the SHA-256 ")
    damaged = run("backup", tmp_path / "second", "--config", config, "--json")
    assert (damaged.code, [one["path"] for one in damaged.json["differences"]]) == (3, [spoiled])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "nowhere"), "a folder that `dicomnode backup` finished is needed"),
        (("backup", "{root}/backup"), "it is below node.storage_root; name a folder elsewhere"),
        (("restore", "nowhere"), "a folder that `dicomnode backup` finished is needed"),
    ],
)
def test_a_mistake_is_one_line(run: Run, config: Path, arguments: tuple[str, ...], message: str) -> None:
    root = config.parent / "storage"
    ran = run(*(argument.format(root=root) for argument in arguments), "--config", config)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert message in ran.err


def test_doctor_names_what_is_damaged(run: Run, config: Path, house: House) -> None:
    uid = house.receive("MR", 50)
    spoil(house.root / sorted(house.files("store"))[0])
    scan(house.database, house.store, 10**9, 30.0, house.now)
    findings = run("doctor", "--config", config, "--json").json["findings"]
    [found] = [one for one in findings if one["check"] == "file"]
    assert found["state"] == "problem"
    assert found["text"].startswith(f"series {uid}: ")
    assert found["text"].endswith("have it sent again, or restore it from a backup")


def test_doctor_says_how_a_damaged_result_is_made_again_and_sent(run: Run, config: Path, house: House) -> None:
    job_id = house.finish(house.pair(1)[0])
    spoil(house.outputs(job_id)[0])
    scan(house.database, house.store, 10**9, 30.0, house.now)
    findings = run("doctor", "--config", config, "--json").json["findings"]
    [found] = [one["text"] for one in findings if one["check"] == "file"]
    words = (
        f"; dicomnode jobs reprocess {job_id} makes it again, and sends it where it is due, or restore it from a backup"
    )
    assert (found.startswith(f"job {job_id}: "), found.endswith(words)) == (True, True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("[backup]", 'folder = "backups"'), "a path from / on is needed"),
        (
            ("[retention]", "free_start_bytes = 1000", "free_stop_bytes = 1000"),
            "is not above limits.disk_reserve_bytes",
        ),
        (("[retention]", "free_start_bytes = 2000000000"), "set both, the first at least as high"),
        (("[retention]", "hold_hours = 0.5"), "greater than or equal to 1"),
        (("[retention]", "history_days = -1"), "greater than or equal to 0"),
        (("[retention.paired]", "days = -1"), "greater than or equal to 0"),
        (("[retention.pairs]", "days = 1"), "paired"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(run: Run, config: Path, lines: tuple[str, ...], message: str) -> None:
    ask_for(config, *lines)
    ran = run("config", "check", "--config", config)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.startswith(f"{config}:")


def test_backups_below_the_storage_root_are_refused(run: Run, config: Path, tmp_path: Path) -> None:
    ask_for(config, "[backup]", f'folder = "{tmp_path / "storage" / "backups"}"')
    assert "name a folder elsewhere" in run("config", "check", "--config", config).err
