"""A job reads a dynamic PET as the settings say: series that the node's own ingest stored, on both databases.

Flow: tests/house > jobs/pipeline > [test_jobs_dynamic]
Never: a registration; reading ends before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from dicomnode.database.engine import Database
from dicomnode.database.jobs import add_job, claim_job
from dicomnode.errors import SeriesRefusedError
from dicomnode.jobs.pipeline import run_job
from dicomnode.setting_values import DynamicPet
from dicomnode.settings import NodeSettings, PairingSettings, Settings
from tests.dicomnode.dynamic_files import PET, DynamicSpec, make_dynamic
from tests.dicomnode.series_files import SeriesSpec, make_series
from tests.house import House


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "node", database) as lived_in:
        yield lived_in


@pytest.mark.parametrize(
    ("dynamic_pet", "reason"),
    [
        ("refuse", "a dynamic series: 2 stacks of 14, 14 slices"),
        ("mean", "time frame 1 of 2: ActualFrameDuration is absent"),
    ],
)
def test_a_job_takes_the_mean_where_the_settings_say_so(house: House, dynamic_pet: DynamicPet, reason: str) -> None:
    def change(header: pydicom.Dataset, _number: int) -> None:
        del header.ActualFrameDuration

    mr, pet = SeriesSpec(), DynamicSpec(durations_s=(60, 120), change=change)
    house.receive_data_sets(make_series(mr))
    house.receive_data_sets([header for slices in make_dynamic(pet) for header in slices])
    pair_id = house.pair_series((f"{mr.uid}.2", f"{PET.uid}.2"))
    with house.database.write() as connection:
        add_job(connection, pair_id, house.now)
    job = claim_job(house.database, house.now, lease_s=60.0)
    assert job is not None
    node = NodeSettings(storage_root=house.root)
    settings = Settings(node=node, pairing=PairingSettings(dynamic_pet=dynamic_pet))

    with pytest.raises(SeriesRefusedError, match=reason):
        run_job(job, settings, house.database, time.time)
