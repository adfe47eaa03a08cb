"""What peers say that they take: Orthanc, which answers questions, and DCMTK's storescp, which does not.

Flow: send/probe > [test_probe]
Never: an instance sent.
"""

from __future__ import annotations

from pathlib import Path

from dicomnode.outputs.modules import PLANS
from dicomnode.send.association import Caller
from dicomnode.send.probe import SERVICE_CONTEXTS, Probe, probe
from dicomnode.settings import PeerSettings
from tests.peers_programs import LOOPBACK, Orthanc, StoreScp

CALLER = Caller("DICOMNODE", 30.0)
OBJECTS = {(str(plan.sop_class_uid), "1.2.840.10008.1.2.1") for plan in PLANS.values()}
NOT_STORAGE = ("1.2.840.10008.1.1", "1.2.840.10008.1.20.1", "1.2.840.10008.5.1.4.1.2")


def _probe(server: Orthanc | StoreScp) -> Probe:
    services = {context for contexts in SERVICE_CONTEXTS.values() for context in contexts}
    with server:
        peer = PeerSettings(name="pacs", ae_title=server.ae_title, host=LOOPBACK, port=server.port)
        return probe(peer, CALLER, services | OBJECTS)


def _services(found: Probe) -> set[str]:
    return {service for service, contexts in SERVICE_CONTEXTS.items() if found.accepted.intersection(contexts)}


def test_orthanc_takes_every_object_and_answers_every_question(tmp_path: Path) -> None:
    found = _probe(Orthanc(tmp_path))
    assert found.accepted >= OBJECTS
    assert _services(found) == {"echo", "find", "move", "get", "commitment"}
    assert found.pdu_bytes == 16384
    assert found.implementation_version_name.startswith(("ORTHANC", "OFFIS_DCMTK"))


def test_storescp_takes_objects_and_answers_no_question(tmp_path: Path) -> None:
    found = _probe(StoreScp(tmp_path))
    assert found.accepted >= OBJECTS
    assert _services(found) == {"echo"}
    assert found.implementation_class_uid.startswith("1.2.276.0.7230010.3.0.3.6.")
    assert not [context for context in found.accepted - OBJECTS if not context[0].startswith(NOT_STORAGE)]
