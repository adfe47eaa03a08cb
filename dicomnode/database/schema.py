"""The tables: what the node received, what it decided, what it still owes.

Flow: index|pairs|jobs|outbox|deletions > [schema] > engine
Never: a patient's identity outside `patients`; a state that its module does not name (each module that
moves a state holds the allowed moves). Instants are UTC seconds since 1970; UIDs are text of at most 64 characters.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

UID = String(64)
STATE = String(16)

patients = Table(
    "patients",
    metadata,
    # One row for each distinct identity as it was sent: two rows with one patient_id are a conflict to judge.
    Column("id", Integer, primary_key=True),
    Column("patient_id", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("birth_date", String(16), nullable=False),
    Column("sex", String(16), nullable=False),
    UniqueConstraint("patient_id", "issuer", "name", "birth_date", "sex"),
)

studies = Table(
    "studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_uid", UID, nullable=False, unique=True),
    Column("study_date", String(16), nullable=False),
    Column("study_time", String(16), nullable=False),
    Column("accession_number", Text, nullable=False),
)

associations = Table(
    "associations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("node", Text, nullable=False),  # the process that accepted it: a restart closes what it left open
    Column("calling_ae", String(16), nullable=False),
    Column("address", Text, nullable=False),
    Column("opened_at", Double, nullable=False, index=True),
    Column("closed_at", Double, nullable=True, index=True),  # null: still open
    Column("is_audited", Boolean, nullable=False, server_default=false(), index=True),  # what it brought
)

series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("series_uid", UID, nullable=False, unique=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("patient_id", ForeignKey("patients.id"), nullable=False, index=True),
    Column("state", STATE, nullable=False, index=True),  # receiving complete paired unpaired refused deleted
    Column("reason", Text, nullable=False, default=""),
    Column("modality", String(16), nullable=False),
    Column("description", Text, nullable=False),
    Column("frame_of_reference_uid", UID, nullable=False),
    Column("expected_instances", Integer, nullable=True),  # PET: NumberOfSlices x NumberOfTimeSlices
    Column("source_count", Integer, nullable=True),  # NumberOfSeriesRelatedInstances, as a peer that has it answered
    Column("completed_by", Text, nullable=False, default=""),  # from what it was last judged complete
    Column("summary", JSON, nullable=False),  # what choosing a series needs, by DICOM keyword; never an identity
    Column("calling_ae", String(16), nullable=False),
    Column("first_received_at", Double, nullable=False),
    Column("last_received_at", Double, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", UID, nullable=False, unique=True),
    Column("sop_class_uid", UID, nullable=False),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("series_id", ForeignKey("series.id"), nullable=False, index=True),
    Column("association_id", ForeignKey("associations.id"), nullable=False, index=True),
    Column("file_name", String(64), nullable=False, unique=True),  # random; `receive.spool` makes it a path
    Column("size_bytes", BigInteger, nullable=False),  # of the data set, without preamble and File Meta
    Column("sha256", String(64), nullable=False),  # of the same bytes
    Column("received_at", Double, nullable=False),
    Column("commitment_requested_at", Double, nullable=True),  # a sender's storage commitment request named it
    Column("committed_at", Double, nullable=True),  # a peer was last told that it is kept safe, or is about to be
)

conflicts = Table(
    "conflicts",
    metadata,
    # A SOP Instance UID that came again with other content: kept apart, refused, for a person to look at.
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", UID, nullable=False, index=True),
    Column("association_id", ForeignKey("associations.id"), nullable=False),
    Column("file_name", String(64), nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("received_at", Double, nullable=False),
    UniqueConstraint("sop_instance_uid", "sha256"),
)

pairs = Table(
    "pairs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("fixed_series_id", ForeignKey("series.id"), nullable=False, index=True),
    Column("moving_series_id", ForeignKey("series.id"), nullable=False, index=True),
    Column("input_digest", String(64), nullable=False),  # of both series' SOP Instance UIDs: late slices change it
    Column("state", STATE, nullable=False, index=True),  # held ready rejected
    Column("reason", Text, nullable=False, default=""),
    Column("is_requested", Boolean, nullable=False, default=False),  # by a person, with two series UIDs
    Column("explanation", JSON, nullable=False),  # the candidates and the rule each won or lost by
    Column("created_at", Double, nullable=False),
    UniqueConstraint("fixed_series_id", "moving_series_id", "input_digest"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pair_id", ForeignKey("pairs.id"), nullable=False, index=True),
    Column("state", STATE, nullable=False, index=True),  # waiting running done retry failed review
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("token", Integer, nullable=False, default=0),  # fencing: rises with each claim; a late worker's is stale
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),
    Column("stage", String(32), nullable=False, default=""),
    Column("percent", Integer, nullable=False, default=0),
    Column("verdict", String(16), nullable=False, default=""),  # accept review reject
    Column("decision", String(16), nullable=False, default=""),  # a person's: accepted rejected reprocessed
    Column("result", JSON, nullable=True),  # fixed_from_moving, confidence, metrics, timings_s, device, model_sha256
    Column("created_at", Double, nullable=False),  # dates the outputs, so that a re-run makes the same bytes
    Column("finished_at", Double, nullable=True),
    Column("profile", String(16), nullable=False, server_default=""),  # of the registration; empty: the settings' own
    Column("reprocess_of", ForeignKey("jobs.id"), nullable=True),  # the job whose pair a person had registered again
)

outputs = Table(
    "outputs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # reg pt rgb
    Column("sop_instance_uid", UID, nullable=False, unique=True),
    Column("sop_class_uid", UID, nullable=False),
    Column("series_uid", UID, nullable=False, index=True),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("path", Text, nullable=False),  # below the storage root
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),  # of the whole file
    Column("returned", Integer, nullable=False, server_default="0"),  # how often somebody sent it back to us
    Column("copies", JSON, nullable=True),  # SHA-256 of the compressed copies beside it, by compression
    Column("deleted_at", Double, nullable=True),  # its files went; the row stays: what was made, and where it is
    Column("committed_at", Double, nullable=True),  # as of an instance: a peer may ask for what it was sent, too
)

commitments = Table(
    "commitments",
    metadata,
    # Storage commitment that is asked of a peer: a row for each transaction, before the request is sent.
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", UID, nullable=False, unique=True),
    Column("destination", Text, nullable=False),  # whose outbox rows it is about
    Column("peer", Text, nullable=False),  # who is asked
    Column("state", STATE, nullable=False),  # owed asked reported settled failed dead
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),  # those of the transactions before it too
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),  # once it is asked: until when its report is waited for
    Column("report", JSON, nullable=True),  # as the peer gave it, until it is settled
    Column("created_at", Double, nullable=False),
    Index("ix_commitments_state_peer", "state", "peer"),
)

commitment_requests = Table(
    "commitment_requests",
    metadata,
    # Storage commitment that a peer asks of us, until it has our report, and after that for when it asks again.
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", UID, nullable=False),
    Column("peer", Text, nullable=False),  # who asked, and is told
    Column("digest", String(64), nullable=False),  # of what the request names: the same again is no other request
    Column("is_duplicate", Boolean, nullable=False),  # its transaction was in use already, for other instances
    Column("instances", JSON, nullable=False),  # SOP class and instance UID of each; empty once it is reported
    Column("instance_count", Integer, nullable=False),
    Column("state", STATE, nullable=False),  # owed retry reported failed
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),
    Column("requested_at", Double, nullable=False),
    Column("reported_at", Double, nullable=True),
    UniqueConstraint("peer", "transaction_uid", "digest"),
    Index("ix_commitment_requests_state_peer", "state", "peer"),
)

commitment_refusals = Table(
    "commitment_refusals",
    metadata,
    # Whose requests or reports are refused, until one of them is taken.
    Column("id", Integer, primary_key=True),
    Column("calling_ae", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # request report
    Column("refused", Integer, nullable=False),  # how often in a row
    Column("reason", Text, nullable=False),  # of the last
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    UniqueConstraint("calling_ae", "address", "kind"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("output_id", ForeignKey("outputs.id"), nullable=False),
    Column("destination", Text, nullable=False),  # a peer's name
    Column("state", STATE, nullable=False),  # owed sent committed retry dead
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),
    Column("sent_at", Double, nullable=True),
    Column("is_commitment_owed", Boolean, nullable=False, server_default=false()),  # sent, and not asked for yet
    Column("commitment_id", ForeignKey("commitments.id"), nullable=True, index=True),  # the last that was asked for it
    Column("is_audited", Boolean, nullable=False, server_default=false(), index=True),  # that it was sent
    UniqueConstraint("output_id", "destination"),
    Index("ix_outbox_state_destination", "state", "destination"),
    Index("ix_outbox_commitment_owed", "is_commitment_owed", "destination", "state"),
)

priors = Table(
    "priors",
    metadata,
    # Series that a peer has of a patient, found for a series without a partner here.
    Column("id", Integer, primary_key=True),
    Column("series_id", ForeignKey("series.id"), nullable=False),  # the one without a partner
    Column("patient_id", ForeignKey("patients.id"), nullable=False),  # as the peer names the patient
    Column("peer", Text, nullable=False),
    Column("state", STATE, nullable=False),  # found chosen lost refused
    Column("reason", Text, nullable=False, default=""),
    Column("study_uid", UID, nullable=False),
    Column("study_date", String(16), nullable=False),
    Column("study_time", String(16), nullable=False),
    Column("accession_number", Text, nullable=False),
    Column("series_uid", UID, nullable=False, index=True),
    Column("modality", String(16), nullable=False),
    Column("description", Text, nullable=False),
    Column("instance_count", Integer, nullable=True),  # NumberOfSeriesRelatedInstances
    UniqueConstraint("series_id", "peer", "series_uid"),
)

queries = Table(
    "queries",
    metadata,
    # What is owed to be asked of a peer, for a series.
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),  # count priors fetch
    Column("series_id", ForeignKey("series.id"), nullable=False, index=True),
    Column("prior_id", ForeignKey("priors.id"), nullable=True),  # what is to be fetched
    Column("peer", Text, nullable=False),
    Column("state", STATE, nullable=False, index=True),  # owed retry done failed
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double, nullable=True),
)

deletions = Table(
    "deletions",
    metadata,
    # What housekeeping deleted, and why; without `done_at` some of its files may be there yet.
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),  # of [retention], or leftovers, or history
    Column("subject", Text, nullable=False),  # a series' UID, a job's id, a file's name
    Column("reason", Text, nullable=False),
    Column("files", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("decided_at", Double, nullable=False),
    Column("done_at", Double, nullable=True),
)

doomed_files = Table(
    "doomed_files",
    metadata,
    # Files that no other row names any more: a crash between the commit and their end forgets none.
    Column("id", Integer, primary_key=True),
    Column("deletion_id", ForeignKey("deletions.id"), nullable=False, index=True),
    Column("path", Text, nullable=False, unique=True),  # below the storage root
)

damages = Table(
    "damages",
    metadata,
    # Files that do not hold what their row says, until they do again.
    Column("id", Integer, primary_key=True),
    Column("instance_id", ForeignKey("instances.id"), nullable=True, unique=True),
    Column("output_id", ForeignKey("outputs.id"), nullable=True, unique=True),
    Column("reason", Text, nullable=False),
    Column("found_at", Double, nullable=False),
)

marks = Table(
    "marks",
    metadata,
    # How far something that goes on for ever has come, whichever process does it.
    Column("name", String(32), primary_key=True),
    Column("at", Double, nullable=False),
    Column("until", Double, nullable=False, server_default="0"),
    Column("position", BigInteger, nullable=False, server_default="0"),
)

notices = Table(
    "notices",
    metadata,
    # What is owed to be told to people by one channel: one kind of trouble, with all of it that came together.
    Column("id", Integer, primary_key=True),
    Column("channel", String(16), nullable=False),  # webhook email
    Column("kind", String(16), nullable=False),
    Column("state", STATE, nullable=False, index=True),  # owed retry sent dead
    Column("reason", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("sent_at", Double, nullable=True),
    Index("ix_notices_channel_kind", "channel", "kind"),
)

notice_causes = Table(
    "notice_causes",
    metadata,
    # What a notice is about: noted once for each channel, whenever it is seen again.
    Column("id", Integer, primary_key=True),
    Column("channel", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("subject", Text, nullable=False),  # "job 7": by our own numbers
    Column("occurrence", Double, nullable=False),  # tells one time from the next, when the same befalls it again
    Column("noticed_at", Double, nullable=False),
    Column("notice_id", ForeignKey("notices.id"), nullable=True, index=True),  # null: waits for the next notice
    UniqueConstraint("channel", "kind", "subject", "occurrence"),
)

audit_messages = Table(
    "audit_messages",
    metadata,
    # The spool of the audit trail, a row for each message and channel, deleted when it has arrived there.
    Column("id", Integer, primary_key=True),
    Column("channel", String(16), nullable=False, index=True),  # file syslog
    Column("recorded_at", Double, nullable=False),
    Column("text", Text, nullable=False),  # XML of PS3.15 A.5.1; a patient is named by the row of `patients`
)

audit_channels = Table(
    "audit_channels",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("reason", Text, nullable=False, default=""),  # why it takes nothing now
    Column("attempts", Integer, nullable=False, default=0),  # in a row that failed
    Column("token", Integer, nullable=False, default=0),
    Column("lease_until", Double, nullable=True),
    Column("not_before", Double, nullable=False),
)
