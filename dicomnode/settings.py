"""What an administrator decides, read from one TOML file and checked when built.

Flow: cli|app > [settings] > setting_values
Never: a default that changes a result in silence; the environment, save for `DICOMNODE_DATABASE__URL` style overrides
of the same keys. `config/dicomnode.example.toml` lists every key with its default and unit; a test compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dicomnode.setting_values import (
    COUNT_AT_MOST,
    DAYS_AT_MOST,
    AETitle,
    Bytes,
    Compression,
    Count,
    DatabaseUrl,
    Description,
    DynamicPet,
    Folder,
    Host,
    OutputObjects,
    Pattern,
    PeerHost,
    Permission,
    Port,
    Profile,
    Seconds,
    Section,
    Service,
    Sha256,
    SopClass,
    Subject,
    TransferSyntax,
    is_loopback,
)
from dicomnode.settings_keeping import BackupSettings, IntegritySettings, RetentionSettings
from dicomnode.settings_limits import LimitSettings
from dicomnode.settings_reporting import AuditSettings, NoticeSettings

ENV_PREFIX = "DICOMNODE_"
DATABASE_NAME = "dicomnode.sqlite"  # below the storage root, unless database.url says otherwise
ASSOCIATIONS_AT_MOST = 16  # with one destination at one time


class NodeSettings(Section):
    """Who we are and where we keep things."""

    ae_title: AETitle = "DICOMNODE"
    bind: Host = "127.0.0.1"
    port: Port = 11112
    storage_root: Folder = Path("/var/lib/dicomnode")
    log_format: Literal["console", "json"] = "console"


class DatabaseSettings(Section):
    """Where the truth about work is kept; empty means SQLite below the storage root."""

    url: DatabaseUrl = ""


class ReceiveSettings(Section):
    """Whom we accept as a caller."""

    accept: Literal["configured", "any"] = "configured"
    check_called_ae_title: bool = True


class TlsSettings(Section):
    """How associations are encrypted, and whose certificates are trusted (PS3.15 annex B)."""

    certificate: str = ""
    key: str = ""
    ca: str = ""
    port: Port = 2762  # registered for DICOM over TLS: PS3.8 9.1.1
    require_client_certificate: bool = True


class PeerSettings(Section):
    """An AE we talk to, and what it may do: `store` to us, `receive` our results. Every peer may C-ECHO.

    What we may ask of it stands in `answers`: `find` how many instances its series have, and with `move` or `get` also
    for priors, which are fetched by that service.

    One with a `certificate_...` can call us by TLS only, and with that certificate; one with `tls` must show it as well
    when we call it.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    ae_title: AETitle
    host: PeerHost
    port: Port
    may: tuple[Permission, ...] = ()
    sop_classes: tuple[SopClass, ...] = ()
    transfer_syntaxes: tuple[TransferSyntax, ...] = ()
    answers: tuple[Service, ...] = ()
    tls: bool = False
    certificate_sha256: Sha256 = ""
    certificate_subject: Subject = ""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0

    @property
    def has_priors(self) -> bool:
        """Whether it is asked for priors."""
        return "move" in self.answers or "get" in self.answers

    @property
    def is_network(self) -> bool:
        """Whether it calls from anywhere in a network, so that it cannot be called."""
        return "/" in self.host


class DestinationSettings(Section):
    """A peer that gets results; it must be allowed to `receive`. No `objects` is all that are made.

    `commitment` names the peer that is asked to keep safe what this one was sent: mostly this one itself.
    """

    peer: str
    objects: OutputObjects = ()
    compression: Compression = "none"
    associations: Annotated[int, Field(ge=1, le=ASSOCIATIONS_AT_MOST)] = 2
    registration_object: Literal["last", "first"] = "last"
    commitment: str = ""

    def takes(self, kind: str) -> bool:
        """Whether it gets objects of this kind."""
        return not self.objects or kind in self.objects


class ChoiceSettings(Section):
    """What the site knows better than the rules: series of this description come first, or never."""

    calling_ae: str = ""
    modality: Literal["MR", "PT"]
    description: Annotated[Pattern, Field(min_length=1)]
    take: Literal["first", "never"]


class RuleSettings(Section):
    """Which results go to which destinations; what is empty asks for nothing, and all that is not must be met."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    mr_from: tuple[AETitle, ...] = ()
    pet_from: tuple[AETitle, ...] = ()
    description: Pattern = ""
    verdict: Literal["", "accept", "review"] = ""
    objects: OutputObjects = ()
    destinations: tuple[str, ...]


class PairingSettings(Section):
    """When a series is complete, which MR belongs to which PET, and how much of a peer's priors is looked at."""

    series_quiet_period_s: Seconds = 20.0
    study_quiet_period_s: Seconds = 60.0
    window_days: Annotated[int, Field(ge=0, le=DAYS_AT_MOST)] = 90
    is_single_issuer: bool = False
    dynamic_pet: DynamicPet = "refuse"
    prior_results: Annotated[int, Field(ge=1, le=10000)] = 100
    prior_instances: Count = 2000
    prior_bytes: Annotated[Bytes, Field(ge=1)] = 2147483648
    prior_s: Seconds = 600.0
    choices: tuple[ChoiceSettings, ...] = ()


class JobSettings(Section):
    """How registrations are run."""

    workers: Annotated[int, Field(ge=1, le=64)] = 1
    order: Literal["oldest", "newest"] = "oldest"
    attempts: Count = 3
    deadline_s: Seconds = 900.0
    lease_s: Annotated[Seconds, Field(ge=5)] = 60.0
    retry_first_s: Seconds = 10.0
    recycle_after: Count = 50
    memory_bytes: Annotated[Bytes, Field(ge=268435456)] = 8589934592
    open_files: Annotated[int, Field(ge=64, le=COUNT_AT_MOST)] = 1024


class RegistrationSettings(Section):
    """How a PET is laid on an MR."""

    profile: Profile = "default"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    seed: Annotated[int, Field(ge=0, le=COUNT_AT_MOST)] = 0


class SeriesNameSettings(Section):
    """How each series made is described; {pet} and {mr} stand for the descriptions of those it was made from."""

    reg: Description = "PET to MR spatial registration"
    pt: Description = "PET {pet} registered to {mr}"
    rgb: Description = "PET {pet} fused on {mr}"
    multiframe: Description = "PET {pet} fused on {mr}, multi-frame"
    blending: Description = "PET {pet} blended on {mr}"


class OutputSettings(Section):
    """What the results are, and what they look like."""

    objects: Annotated[OutputObjects, Field(min_length=1)] = ("reg", "pt", "rgb")
    study: Literal["mr", "pet", "new"] = "mr"
    review: Literal["hold", "send"] = "hold"
    series_number: Annotated[int, Field(ge=1, le=99999)] = 9001
    colour_map: Literal["inferno", "magma", "plasma", "viridis", "cividis", "hot"] = "inferno"
    opacity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    descriptions: SeriesNameSettings = SeriesNameSettings()


class SendSettings(Section):
    """How hard we try to deliver."""

    attempts: Count = 200
    retry_first_s: Seconds = 10.0
    retry_ceiling_s: Seconds = 3600.0
    timeout_s: Seconds = 30.0
    commitment_s: Seconds = 3600.0


class Settings(BaseSettings):
    """The whole file."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    node: NodeSettings = NodeSettings()
    database: DatabaseSettings = DatabaseSettings()
    receive: ReceiveSettings = ReceiveSettings()
    tls: TlsSettings = TlsSettings()
    peers: tuple[PeerSettings, ...] = ()
    destinations: tuple[DestinationSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = ()
    pairing: PairingSettings = PairingSettings()
    jobs: JobSettings = JobSettings()
    registration: RegistrationSettings = RegistrationSettings()
    outputs: OutputSettings = OutputSettings()
    send: SendSettings = SendSettings()
    limits: LimitSettings = LimitSettings()
    retention: RetentionSettings = RetentionSettings()
    integrity: IntegritySettings = IntegritySettings()
    backup: BackupSettings = BackupSettings()
    notices: NoticeSettings = NoticeSettings()
    audit: AuditSettings = AuditSettings()

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database.url or f"sqlite:///{self.node.storage_root / DATABASE_NAME}"

    def peer(self, name: str) -> PeerSettings:
        """Return the peer with this name, which `Settings` has checked to be there."""
        return next(peer for peer in self.peers if peer.name == name)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings fixes the signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings fixes the signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings fixes the signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment over the file's values, so that a service can override one key."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check_names_agree(self) -> Self:
        # Each message begins with the key it is about: `settings_file` finds the line by it.
        names = [peer.name for peer in self.peers]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"peers.{number}.name: the name {name!r} stands twice; give each peer its own")
        receivers = {peer.name for peer in self.peers if "receive" in peer.may}
        destinations = [destination.peer for destination in self.destinations]
        for number, name in enumerate(destinations):
            key = f"destinations.{number}.peer"
            if name not in names:
                raise ValueError(f"{key}: no peer is named {name!r}; peers: {', '.join(names) or 'none'}")
            if name not in receivers:
                raise ValueError(f'{key}: peer {name!r} may not receive; add "receive" to its may = [...]')
            if name in destinations[:number]:
                raise ValueError(f"{key}: peer {name!r} is a destination twice; remove one")
            asked = self.destinations[number].commitment
            if asked and asked not in (hosts := [peer.name for peer in self.peers if not peer.is_network]):
                words = f"no peer that can be called is named {asked!r}; peers with a host: {', '.join(hosts)}"
                raise ValueError(f"destinations.{number}.commitment: {words}")
        if self.receive.accept == "any" and not is_loopback(self.node.bind):
            raise ValueError(
                f"receive.accept: 'any' is for a loopback address, node.bind is {self.node.bind}; "
                'list the callers under [[peers]] and set accept = "configured"'
            )
        return self

    @model_validator(mode="after")
    def _check_objects_agree(self) -> Self:
        made = self.outputs.objects
        if "blending" in made and "pt" not in made:
            raise ValueError('outputs.objects: "blending" shows the "pt" on the MR; add "pt"')
        wanted = {
            **{f"destinations.{number}": row.objects for number, row in enumerate(self.destinations)},
            **{f"rules.{number}": row.objects for number, row in enumerate(self.rules)},
        }
        for key, kinds in wanted.items():
            for kind in kinds:
                if kind not in made:
                    raise ValueError(
                        f"{key}.objects: {kind!r} is not made; add it to outputs.objects, which is {', '.join(made)}"
                    )
        return self

    @model_validator(mode="after")
    def _check_rules_agree(self) -> Self:
        known = [destination.peer for destination in self.destinations]
        for number, rule in enumerate(self.rules):
            for name in rule.destinations:
                if name not in known:
                    raise ValueError(
                        f"rules.{number}.destinations: {name!r} is no destination; destinations: "
                        f"{', '.join(known) or 'none'}"
                    )
            if rule.name in [other.name for other in self.rules[:number]]:
                raise ValueError(f"rules.{number}.name: the name {rule.name!r} stands twice; give each rule its own")
        return self

    @model_validator(mode="after")
    def _check_tls_agrees(self) -> Self:
        tls = self.tls
        for given, missing in (("certificate", "key"), ("key", "certificate")):
            if getattr(tls, given) and not getattr(tls, missing):
                raise ValueError(f"tls.{given}: needs tls.{missing} too; name its PEM file")
        if tls.certificate and tls.require_client_certificate and not tls.ca:
            raise ValueError(
                "tls.certificate: callers must show a certificate, but tls.ca is empty; name the PEM file of the CA "
                "that signs theirs"
            )
        if tls.certificate and tls.port == self.node.port:
            raise ValueError(f"tls.port: {tls.port} is node.port already; TLS needs a port of its own, such as 2762")
        return self

    @model_validator(mode="after")
    def _check_limits_agree(self) -> Self:
        limits = self.limits
        if limits.memory_bytes < limits.data_set_bytes:
            raise ValueError(
                f"limits.memory_bytes: {limits.memory_bytes} hold no instance of limits.data_set_bytes = "
                f"{limits.data_set_bytes}; raise this, or lower that"
            )
        return self

    @model_validator(mode="after")
    def _check_keeping_agrees(self) -> Self:
        start, reserve = self.retention.free_start_bytes, self.limits.disk_reserve_bytes
        if start and start <= reserve:
            raise ValueError(
                f"retention.free_start_bytes: {start} is not above limits.disk_reserve_bytes = {reserve}, below which "
                "instances are refused; raise it"
            )
        if self.backup.folder and Path(self.backup.folder).is_relative_to(self.node.storage_root):
            raise ValueError(
                "backup.folder: it is below node.storage_root; name a folder elsewhere, best on another disk"
            )
        return self

    @model_validator(mode="after")
    def _check_peers_agree(self) -> Self:
        for number, peer in enumerate(self.peers):
            asked = next((name for name in ("certificate_sha256", "certificate_subject") if getattr(peer, name)), None)
            if asked and not peer.tls and not (self.tls.certificate and self.tls.ca):
                raise ValueError(
                    f"peers.{number}.{asked}: this peer may call by TLS only, which needs tls.certificate, tls.key "
                    "and tls.ca"
                )
            if peer.is_network and (peer.tls or "receive" in peer.may or peer.answers):
                raise ValueError(
                    f"peers.{number}.host: {peer.host} is a network, which may call us but cannot be called; "
                    'name one host, or leave out "receive", answers and tls'
                )
            if problem := _find_service_problem(peer):
                raise ValueError(f"peers.{number}.answers: {problem}")
        return self


def _find_service_problem(peer: PeerSettings) -> str:
    if {"move", "get"} <= set(peer.answers):
        return 'priors are fetched by "move" or by "get"; name one'
    if {"move", "get"} & set(peer.answers) and "find" not in peer.answers:
        return 'what is fetched must be found first; add "find"'
    if "move" in peer.answers and "store" not in peer.may:
        return 'what it moves to us comes by C-STORE; add "store" to its may = [...]'
    return ""
