"""Settings and the configuration file: defaults, the example, and what each mistake is answered with.

Flow: settings, settings_file > [test_settings]
Never: a port that is bound; the environment of whoever runs the tests.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydicom.uid import UID

from dicomnode.errors import ConfigurationError
from dicomnode.setting_values import Section
from dicomnode.settings import (
    ChoiceSettings,
    DestinationSettings,
    OutputSettings,
    PeerSettings,
    RuleSettings,
    Settings,
)
from dicomnode.settings_file import check_configuration, load_settings
from dicomnode.shipped import EXAMPLE, find_shipped
from dicomnode.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from registration.fusion import COLOUR_MAP, COLOUR_MAPS

PEER = '[[peers]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\nmay = ["store"]\n'
CHOICE = '[[pairing.choices]]\nmodality = "MR"\ndescription = "mprage"\ntake = "first"\n'
MAIL = '[notices.email]\nhost = "h"\nsender = "a@b.c"\nrecipients = ["d@e.f"]\n'
TLS = '[tls]\ncertificate = "a.pem"\nkey = "a.key"\n'


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOMNODE_")]:
        monkeypatch.delenv(name)


def read_example() -> str:
    return find_shipped(EXAMPLE).read_text(encoding="utf-8")


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "n.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def refuse(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_the_example_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, read_example()) == Settings()


def test_the_example_names_every_key_with_its_default() -> None:
    defaults = Settings().model_dump(mode="json", exclude={"peers", "destinations", "rules"})
    del defaults["pairing"]["choices"]
    assert tomllib.loads(read_example()) == defaults


@pytest.mark.parametrize(
    ("table", "model"),
    [
        ("peers", PeerSettings),
        ("destinations", DestinationSettings),
        ("rules", RuleSettings),
        ("pairing.choices", ChoiceSettings),
    ],
)
def test_the_example_shows_every_key_of_a_list(table: str, model: type[Section]) -> None:
    rows = read_example().splitlines()
    start = rows.index(f"# [[{table}]]")
    shown: dict[str, Any] = {}
    for row in rows[start + 1 :]:
        if " = " not in row:
            break
        shown |= tomllib.loads(row.removeprefix("# "))
    assert list(shown) == list(model.model_fields)
    model(**shown)


def test_every_key_of_the_example_has_a_comment() -> None:
    bare = [row for row in read_example().splitlines() if " = " in row.removeprefix("# ") and row.count("#") == 0]
    assert bare == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node]\nprot = 104\n", 'n.toml:2: node.prot: unknown key; did you mean "port"?'),
        ("[nodes]\nport = 104\n", 'n.toml:1: nodes: unknown key; did you mean "node"?'),
        ("[database]\nzzz = 1\n", "n.toml:2: database.zzz: unknown key; known here: url"),
        ('[node]\n\n# a comment\nport = "x"\n', "n.toml:4: node.port: found 'x'; input should be a valid integer"),
        ('[node]\nport = "11112"\n', "n.toml:2: node.port: found '11112', needed a whole number"),
        ("[node]\nport = true\n", "n.toml:2: node.port: found true, needed a whole number"),
        ("[node]\nport = 70000\n", "n.toml:2: node.port: found 70000; input should be less than or equal to 65535"),
        ('[receive]\ncheck_called_ae_title = "yes"\n', "needed true or false"),
        ('[node]\nae_title = "A2345678901234567"\n', "an AE title is 1 to 16 characters, this one has 17"),
        ('[node]\nae_title = "A\\\\B"\n', "an AE title holds printable ASCII without backslash, this one holds '\\\\'"),
        ('[node]\nae_title = "A\\u0007B"\n', "this one holds '\\x07'"),
        ('[node]\nae_title = "  "\n', "an AE title is 1 to 16 characters, this one is empty"),
        (PEER + PEER, "n.toml:8: peers[1].name: the name 'pacs' stands twice; give each peer its own"),
        (PEER + "colour = 3\n", "n.toml:7: peers[0].colour: unknown key; known here: name, ae_title"),
        (PEER.replace("port = 104\n", ""), "n.toml:1: peers[0].port: missing; every entry needs it"),
        (PEER.replace('"store"', '"fetch"'), "n.toml:6: peers[0].may[0]: found 'fetch'"),
        ('[[destinations]]\npeer = "pacs"\n', "n.toml:2: destinations[0].peer: no peer is named 'pacs'; peers: none"),
        (PEER + '[[destinations]]\npeer = "pacs"\n', "n.toml:8: destinations[0].peer: peer 'pacs' may not receive"),
        ('[node]\nbind = "0.0.0.0"\n[receive]\naccept = "any"\n', "n.toml:4: receive.accept: 'any' is for a loopback"),
        (
            PEER.replace("127.0.0.1", "10.1.2.1/24"),
            "n.toml:4: peers[0].host: a network is written as 10.1.2.0/24, this is",
        ),
        (PEER.replace("127.0.0.1", "pacs/a"), "n.toml:4: peers[0].host: a network is written as 10.1.2.0/24, this is"),
        (
            PEER.replace("127.0.0.1", "10.1.2.0/24") + "tls = true\n",
            "n.toml:4: peers[0].host: 10.1.2.0/24 is a network, which may call us but cannot be called; name one host",
        ),
        (
            PEER.replace("127.0.0.1", "10.1.2.0/24").replace("store", "receive"),
            "n.toml:4: peers[0].host: 10.1.2.0/24 is a network",
        ),
        (
            PEER.replace("127.0.0.1", "10.1.2.0/24") + 'answers = ["find"]\n',
            "n.toml:4: peers[0].host: 10.1.2.0/24 is a",
        ),
        (PEER + 'answers = ["move"]\n', 'n.toml:7: peers[0].answers: what is fetched must be found first; add "find"'),
        (
            PEER + 'answers = ["find", "move", "get"]\n',
            'n.toml:7: peers[0].answers: priors are fetched by "move" or by',
        ),
        (
            PEER.replace('"store"', "") + 'answers = ["find", "move"]\n',
            'n.toml:7: peers[0].answers: what it moves to us comes by C-STORE; add "store" to its may',
        ),
        (
            CHOICE.replace("mprage", "(mprage"),
            "n.toml:3: pairing.choices[0].description: a regular expression is needed",
        ),
        (
            '[pairing]\ndynamic_pet = "sum"\n',
            "n.toml:2: pairing.dynamic_pet: found 'sum'; input should be 'refuse' or 'mean'",
        ),
        (CHOICE.replace("MR", "CT"), "n.toml:2: pairing.choices[0].modality: found 'CT'"),
        (CHOICE.replace("first", "last"), "n.toml:4: pairing.choices[0].take: found 'last'"),
        (PEER + 'certificate_sha256 = "ab:cd"\n', "n.toml:7: peers[0].certificate_sha256: a SHA-256 fingerprint is 64"),
        (
            PEER + 'sop_classes = ["MRImage"]\n',
            "n.toml:7: peers[0].sop_classes[0]: known are MRImageStorage, EnhancedMRImageStorage, ",
        ),
        (
            PEER + 'transfer_syntaxes = ["ExplicitVRLittleEndian", "1.2.840.10008.1.2.1.99"]\n',
            "or their UIDs; this is '1.2.840.10008.1.2.1.99'",
        ),
        (
            "[limits]\nmemory_bytes = 1024\n",
            "n.toml:2: limits.memory_bytes: 1024 hold no instance of limits.data_set_bytes = 1073741824; raise this",
        ),
        (PEER + 'certificate_subject = "pacs"\n', "n.toml:7: peers[0].certificate_subject: a subject is written as"),
        (
            PEER + 'certificate_subject = "CN = pacs"\n',
            "n.toml:7: peers[0].certificate_subject: this peer may call by TLS only, which needs tls.certificate",
        ),
        ('[tls]\ncertificate = "a.pem"\n', "n.toml:2: tls.certificate: needs tls.key too; name its PEM file"),
        ('[tls]\nkey = "a.key"\n', "n.toml:2: tls.key: needs tls.certificate too; name its PEM file"),
        (TLS, "n.toml:2: tls.certificate: callers must show a certificate, but tls.ca is empty; name the PEM file"),
        (TLS + 'ca = "ca.pem"\nport = 11112\n', "n.toml:5: tls.port: 11112 is node.port already; TLS needs a port"),
        (
            '[notices.webhook]\nurl = "http://10.1.2.3/"\n',
            "n.toml:2: notices.webhook.url: notices go by https; http is",
        ),
        ('[notices.webhook]\nurl = "https://a..b/"\n', 'notices.webhook.url: a URL is written as "https://'),
        ('[audit]\nhost = "logs..example.org"\n', "audit.host: a host is a name or an IP address, this is 'logs..exam"),
        (
            MAIL + 'user = "müller"\npassword_file = "p"\n',
            "n.toml:5: notices.email.user: a mail server is logged in to by ASCII only, this is",
        ),
        ('[notices.webhook]\nurl = "ftp://a/"\n', 'notices.webhook.url: a URL is written as "https://'),
        (
            '[notices.webhook]\nurl = "https://u:p4ss@h/"\n',
            "a URL holds no user and no password; each notice is signed",
        ),
        (
            '[notices.webhook]\nurl = "https://h/"\n',
            "n.toml:1: notices.webhook: url needs secret_file too; a notice is",
        ),
        ('[notices.webhook]\nsecret_file = "s"\n', "n.toml:1: notices.webhook: secret_file needs url too; a notice is"),
        ('[notices.email]\nhost = "h"\n', "n.toml:1: notices.email: host needs sender too; name an e-mail address"),
        (
            '[notices.email]\nrecipients = ["a@b.c"]\n',
            "n.toml:1: notices.email: recipients needs host too; name the mail",
        ),
        ('[notices.email]\nsender = "a b@c"\n', "n.toml:2: notices.email.sender: an e-mail address is written as"),
        (MAIL + 'encryption = "none"\n', 'n.toml:1: notices.email: encryption "none" is for a loopback address only'),
        (MAIL + 'user = "u"\n', "n.toml:1: notices.email: user needs password_file too; without both, the node does"),
        ("[notices]\nwindow_s = 0\n", "n.toml:2: notices.window_s: found 0; input should be greater than 0"),
        ('[audit]\nfile = "audit.log"\n', "n.toml:2: audit.file: a path from / on is needed, this is 'audit.log'"),
        ('[audit]\ntransport = "tcp"\n', "n.toml:2: audit.transport: found 'tcp'"),
        (
            '[outputs]\nobjects = ["pt", "pt"]\n',
            "n.toml:2: outputs.objects: each object stands once, 'pt' stands 2 times",
        ),
        ("[outputs]\nobjects = []\n", "n.toml:2: outputs.objects: found []; value should have at least 1 item"),
        (
            '[outputs]\nobjects = ["reg", "blending"]\n',
            'n.toml:2: outputs.objects: "blending" shows the "pt" on the MR; add "pt"',
        ),
        (
            '[outputs.descriptions]\npt = "PET {patient}"\n',
            "n.toml:2: outputs.descriptions.pt: a description is one line of text, which may hold {pet}",
        ),
        (
            PEER.replace("store", "receive") + '[[destinations]]\npeer = "pacs"\nobjects = ["blending"]\n',
            "n.toml:9: destinations[0].objects: 'blending' is not made; add it to outputs.objects",
        ),
        (
            '[node]\nstorage_root = "dicom"\n',
            "n.toml:2: node.storage_root: a path from / on is needed, this is 'dicom'",
        ),
        ('[node]\nstorage_root = ""\n', "n.toml:2: node.storage_root: a path from / on is needed"),
        ('[node]\nstorage_root = "/a\\u0000b"\n', r"node.storage_root: a path from / on is needed, this is '/a\x00b'"),
        ('[backup]\nfolder = "/a\\u0000b"\n', r"backup.folder: a path from / on is needed, this is '/a\x00b'"),
        ('[node]\nbind = "a\\u0000b"\n', r"node.bind: a host is a name or an IP address, this is 'a\x00b'"),
        ('[database]\nurl = "mysql://u:s3cret@h/d"\n', 'database.url: a database is written as "postgresql+psycopg:'),
        ('[database]\nurl = "sqlite://"\n', "n.toml:2: database.url: a database is written as"),
        ("[limits]\nidle_s = inf\n", "n.toml:2: limits.idle_s: found inf; input should be "),
        (
            "[send]\ntimeout_s = 1e7\n",
            "n.toml:2: send.timeout_s: found 10000000.0; input should be less than or equal to",
        ),
        ("[send]\nattempts = 9999999999\n", "n.toml:2: send.attempts: found 9999999999; input should be less than"),
        (
            "[pairing]\nwindow_days = 999999999\n",
            "n.toml:2: pairing.window_days: found 999999999; input should be less",
        ),
        ("peers = 3\n", "n.toml:1: peers: found 3, needed a list, of tables with [[name]] before each"),
        ("node = [3]\n", "n.toml:1: node: found [3], needed a table, with [name] before it"),
        ("[node]\nport = \n", "n.toml:2: not TOML: Invalid value (at line 2, column 8)"),
        ("[node]\nport = 1\nport = 2\n", "n.toml:3: not TOML: Cannot overwrite a value"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_and_fix(tmp_path: Path, text: str, message: str) -> None:
    found = refuse(tmp_path, text)
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize("name", ["other", "ward"])
def test_a_peer_that_cannot_be_asked_to_commit_is_named(tmp_path: Path, name: str) -> None:
    ward = '[[peers]]\nname = "ward"\nae_title = "WARD"\nhost = "10.1.2.0/24"\nport = 104\nmay = ["store"]\n'
    destination = f'[[destinations]]\npeer = "pacs"\ncommitment = "{name}"\n'
    found = refuse(tmp_path, PEER.replace("store", "receive") + ward + destination)
    words = f"no peer that can be called is named '{name}'; peers with a host: pacs"
    assert found == f"n.toml:15: destinations[0].commitment: {words}"


def test_a_destination_twice_is_named(tmp_path: Path) -> None:
    peer = PEER.replace('["store"]', '["receive"]')
    found = refuse(tmp_path, peer + '[[destinations]]\npeer = "pacs"\n' * 2)
    assert found == "n.toml:10: destinations[1].peer: peer 'pacs' is a destination twice; remove one"


def test_the_order_in_which_objects_are_named_means_nothing(tmp_path: Path) -> None:
    settings = load(tmp_path, '[outputs]\nobjects = ["rgb", "reg", "pt"]\n')
    assert settings == Settings()
    assert [DestinationSettings(peer="pacs", objects=("rgb",)).takes(kind) for kind in ("rgb", "pt")] == [True, False]
    assert DestinationSettings(peer="pacs").takes("pt")


def test_colour_maps_are_those_that_can_be_painted() -> None:
    assert set(get_args(OutputSettings.model_fields["colour_map"].annotation)) == set(COLOUR_MAPS)
    assert OutputSettings().colour_map == COLOUR_MAP


def test_every_mistake_is_found_at_once(tmp_path: Path) -> None:
    text = '[node]\nport = 0\nae_title = ""\n[jobs]\nworkers = 0\n'
    settings, problems = check_configuration(text, "f.toml")
    assert settings is None
    assert [problem.place for problem in problems] == ["f.toml:3", "f.toml:2", "f.toml:5"]
    assert refuse(tmp_path, text).endswith("(and 2 more: dicomnode config check)")


def test_a_missing_file_is_answered_with_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigurationError, match="no such file; make one with: dicomnode config init --config"):
        load_settings(path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigurationError, match="not UTF-8 at byte 5"):
        load_settings(path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff[node]\nport = 104\n").node.port == 104


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory; name a file that this user may read"):
        load_settings(tmp_path)


def test_the_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMNODE_NODE__PORT", "4242")
    settings = load(tmp_path, '[node]\nport = 104\nae_title = "FROM FILE"\n')
    assert (settings.node.port, settings.node.ae_title) == (4242, "FROM FILE")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DICOMNODE_NODE__PORT", "many", "environment variable DICOMNODE_NODE__PORT: node.port: found 'many'"),
        ("DICOMNODE_NODE__PROT", "1", "variable DICOMNODE_NODE__PROT: node.prot: unknown key; did you"),
        ("DICOMNODE_PEERS", "not json", "environment: error parsing value for field"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert message in refuse(tmp_path, "[node]\nport = 104\n")


def test_a_database_url_with_a_password_is_not_shown(tmp_path: Path) -> None:
    assert "s3cret" not in refuse(tmp_path, '[database]\nurl = ["postgresql://u:s3cret@h/d"]\n')


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.node.port = 104


def test_sqlite_stands_below_the_storage_root(tmp_path: Path) -> None:
    settings = load(tmp_path, '[node]\nstorage_root = "/srv/d"\n')
    assert settings.database_url == "sqlite:////srv/d/dicomnode.sqlite"
    url = "postgresql+psycopg://h/d"
    assert load(tmp_path, f'[database]\nurl = "{url}"\n').database_url == url


def test_sop_classes_and_syntaxes_are_named_by_keyword_or_uid(tmp_path: Path) -> None:
    lists = """sop_classes = ["1.2.840.10008.5.1.4.1.1.4", "EnhancedPETImageStorage"]
transfer_syntaxes = ["1.2.840.10008.1.2"]
"""
    (peer,) = load(tmp_path, PEER + lists).peers
    assert peer.sop_classes == ("MRImageStorage", "EnhancedPETImageStorage")
    assert peer.transfer_syntaxes == ("ImplicitVRLittleEndian",)


@pytest.mark.parametrize("known", [STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES])
def test_the_keywords_are_the_standard_s(known: dict[str, str]) -> None:
    assert {uid: UID(uid).keyword for uid in known} == known
