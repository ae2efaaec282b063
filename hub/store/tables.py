"""The tables, in SQLAlchemy Core. A change here needs a step in `migrations.py`, and a test compares the two.

Times are UTC seconds since 1970 (REAL), so that SQLite and PostgreSQL order them alike. Documents are kept as the bytes that were
signed. Nothing here holds a row of anybody's data.
"""

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = [
    "approvals",
    "assignments",
    "audit",
    "deltas",
    "directives",
    "egress",
    "facts",
    "invites",
    "leases",
    "metadata",
    "questions",
    "receipts",
    "reports",
    "rings",
    "rollouts",
    "spokes",
    "tokens",
    "versions",
]

metadata = MetaData()
NAME, DIGEST = String(63), String(71)

facts = Table("facts", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))
"""Single values: ports kept between starts, schema number."""

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("until", Float, nullable=False),
)
"""Which hub process owns which loop, and until when."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("roles", String(200), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)
"""Bearer tokens, by SHA-256; the token itself is shown once."""

invites = Table(
    "invites",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
    Column("used_by", DIGEST),
)
"""One-time enrolment codes; the code itself is not kept."""

spokes = Table(
    "spokes",
    metadata,
    Column("site", NAME, primary_key=True),
    Column("spoke", NAME, primary_key=True),
    Column("zone", NAME, nullable=False),
    Column("regime", String(16), nullable=False),
    Column("certificate", Text, nullable=False),
    Column("serial", String(64), nullable=False),
    Column("enrolled", Float, nullable=False),
    Column("revoked", Float),
    Column("online", Boolean, nullable=False, default=False),
    Column("last_seen", Float),
    Column("last_sequence", Integer, nullable=False, default=0),
    Column("serving", Text, nullable=False, default="[]"),
    Column("serving_at", Float),
)
"""`serving` is from the last signed report; `online` and `last_seen` are hints."""

versions = Table(
    "versions",
    metadata,
    Column("model", NAME, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("index_digest", DIGEST, nullable=False),
    Column("size", Integer, nullable=False),
    Column("signature", DIGEST, nullable=False),
    Column("title", Text, nullable=False),
    Column("zones", Text, nullable=False),
    Column("regimes", Text, nullable=False),
    Column("fallback", Text, nullable=False),
    Column("claims", Text, nullable=False),
    Column("overridden_by", Text),
    Column("published", Float, nullable=False),
)
"""What was released; the truth is the TUF metadata, this is its index."""

deltas = Table(
    "deltas",
    metadata,
    Column("base", DIGEST, primary_key=True),
    Column("target", DIGEST, primary_key=True),
    Column("delta", DIGEST, nullable=False),
    Column("size", Integer, nullable=False),
    Column("model", NAME, nullable=False),
    Column("version", Integer, nullable=False),
)
"""Shortcuts between files; untrusted, offered in directives."""

rollouts = Table(
    "rollouts",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("model", NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("index_digest", DIGEST, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("author", String(100), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
)
"""Plans under way and done; `reason` is what it waits for, or why it ended."""

rings = Table(
    "rings",
    metadata,
    Column("rollout", NAME, ForeignKey("rollouts.name"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("state", String(16), nullable=False),
    Column("started", Float),
    Column("ready", Float),
    Column("finished", Float),
)

assignments = Table(
    "assignments",
    metadata,
    Column("site", NAME, primary_key=True),
    Column("spoke", NAME, primary_key=True),
    Column("model", NAME, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("index_digest", DIGEST, nullable=False),
    Column("rollout", NAME),
    Column("ring", Integer),
    Column("terms", LargeBinary, nullable=False),
    Column("assigned", Float, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("good_version", Integer),
    Column("good_index", DIGEST),
)
"""What each spoke should serve, and what it goes back to."""

directives = Table(
    "directives",
    metadata,
    Column("site", NAME, primary_key=True),
    Column("spoke", NAME, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("content", DIGEST, nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
"""The signed word to each spoke, as it is retained at the broker."""

reports = Table(
    "reports",
    metadata,
    Column("site", NAME, primary_key=True),
    Column("spoke", NAME, primary_key=True),
    Column("nonce", String(32), primary_key=True),
    Column("sequence", Integer, nullable=False),
    Column("time", Float, nullable=False),
    Column("received", Float, nullable=False),
    Column("model", NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("index_digest", DIGEST, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(40), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
"""Signed transitions, kept as they came. A spoke that is enrolled anew counts from one again, so the nonce is the key."""
Index("reports_by_version", reports.c.model, reports.c.index_digest, reports.c.site)

egress = Table(
    "egress",
    metadata,
    Column("digest", DIGEST, primary_key=True),
    Column("site", NAME, nullable=False),
    Column("spoke", NAME, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("model", NAME),
    Column("received", Float, nullable=False),
    Column("quarantined", Text),
    Column("document", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
"""What came through outboxes; `quarantined` says why a record is not believed."""
Index("egress_by_kind", egress.c.kind, egress.c.model, egress.c.received)

receipts = Table(
    "receipts",
    metadata,
    Column("site", NAME, primary_key=True),
    Column("spoke", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("received", Float, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
"""Signed files that were carried back by hand."""

questions = Table(
    "questions",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("zone", NAME, nullable=False),
    Column("model", NAME, nullable=False),
    Column("state", String(16), nullable=False),
    Column("author", String(100), nullable=False),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("cohort", LargeBinary),
    Column("result", LargeBinary),
)
"""Federated questions: what was asked, who answers (sealed), and what the sum over all of them says once it is opened."""

approvals = Table(
    "approvals",
    metadata,
    Column("rollout", NAME, ForeignKey("rollouts.name"), primary_key=True),
    Column("who", String(100), primary_key=True),
    Column("time", Float, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("who", String(100), nullable=False),
    Column("action", String(60), nullable=False),
    Column("what", String(200), nullable=False),
    Column("details", Text, nullable=False),
    Column("previous", DIGEST, nullable=False),
    Column("digest", DIGEST, nullable=False),
)
"""Append-only; each line holds the digest of the one before."""
