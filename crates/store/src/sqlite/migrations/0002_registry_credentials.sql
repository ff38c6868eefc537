-- Secrets are in the record, sealed: without the server's key they are noise. Nothing of this is kept in memory.

CREATE TABLE registry_credential (
    owner  BLOB NOT NULL,
    host   TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (owner, host)
) STRICT, WITHOUT ROWID;
