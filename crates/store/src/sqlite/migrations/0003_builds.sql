-- Builds, newest last, each with the end of its log; and the layers that their steps left for later builds.

CREATE TABLE build (
    id     BLOB PRIMARY KEY NOT NULL,
    tenant BLOB NOT NULL,
    ended  INTEGER NOT NULL,
    record TEXT NOT NULL,
    log    TEXT
) STRICT;
CREATE INDEX build_of_tenant ON build (tenant, id);
CREATE INDEX build_unfinished ON build (id) WHERE ended = 0;

CREATE TABLE build_step (
    tenant  BLOB NOT NULL,
    key     TEXT NOT NULL,
    used_at INTEGER NOT NULL,
    record  TEXT NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
