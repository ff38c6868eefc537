-- Each table keeps the record as JSON and, beside it, the columns that are searched by. Ids are the 16 bytes of the UUID,
-- times are milliseconds since 1970. An owner that is the whole installation is the empty blob: NULL would not be unique.

CREATE TABLE tenant (
    id     BLOB PRIMARY KEY NOT NULL,
    name   TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
) STRICT;

CREATE TABLE api_key (
    id     BLOB PRIMARY KEY NOT NULL,
    hash   TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
) STRICT;

CREATE TABLE template (
    id         BLOB PRIMARY KEY NOT NULL,
    owner      BLOB NOT NULL,
    name       TEXT NOT NULL,
    generation INTEGER NOT NULL,
    newest     INTEGER NOT NULL,
    record     TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX template_newest ON template (owner, name) WHERE newest = 1;
CREATE INDEX template_versions ON template (owner, name);

CREATE TABLE pool (
    id     BLOB PRIMARY KEY NOT NULL,
    tenant BLOB NOT NULL,
    name   TEXT NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (tenant, name)
) STRICT;

-- A claim rewrites one row here and touches no index: the indexes hold what has ended, or what never changes while a
-- sandbox lives. Live sandboxes are found in memory; of their columns only id, tenant, pool, pool_name, revision, live,
-- generation, state and last_activity_at are kept up, the others are set when a sandbox ends.
CREATE TABLE sandbox (
    id               BLOB PRIMARY KEY NOT NULL,
    tenant           BLOB NOT NULL,
    pool             BLOB,
    pool_name        TEXT,
    state            TEXT NOT NULL,
    live             INTEGER NOT NULL,
    revision         INTEGER NOT NULL,
    generation       INTEGER NOT NULL,
    claimed_at       INTEGER,
    sorted_at        INTEGER NOT NULL,
    ended_at         INTEGER,
    last_activity_at INTEGER NOT NULL,
    record           TEXT NOT NULL
) STRICT;
CREATE INDEX sandbox_live ON sandbox (id) WHERE live = 1;
CREATE INDEX sandbox_ended_of_tenant ON sandbox (tenant, sorted_at DESC, id) WHERE live = 0;
CREATE INDEX sandbox_ended_by_time ON sandbox (sorted_at DESC, id) WHERE live = 0;
CREATE INDEX sandbox_failed_of_pool ON sandbox (pool, ended_at) WHERE live = 0 AND state = 'failed';

CREATE TABLE event (
    seq     INTEGER PRIMARY KEY NOT NULL,
    at      INTEGER NOT NULL,
    tenant  BLOB NOT NULL,
    sandbox BLOB,
    pool    BLOB,
    record  TEXT NOT NULL
) STRICT;
CREATE INDEX event_of_sandbox ON event (sandbox) WHERE sandbox IS NOT NULL;
-- None of pool or tenant: each index more is two pages more in every claim's commit, and a reader of those wants the newest
-- entries or what came after one it knows, which stand at the log's end.

CREATE TABLE image (
    owner  BLOB NOT NULL,
    name   TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;
