-- Snapshots of sandboxes' file systems. A name belongs to one of a tenant's at a time.

CREATE TABLE snapshot (
    id      BLOB PRIMARY KEY NOT NULL,
    tenant  BLOB NOT NULL,
    sandbox BLOB NOT NULL,
    name    TEXT,
    record  TEXT NOT NULL
) STRICT;
CREATE INDEX snapshot_of_tenant ON snapshot (tenant, id);
CREATE UNIQUE INDEX snapshot_name ON snapshot (tenant, name) WHERE name IS NOT NULL;
