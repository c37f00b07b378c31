-- tranche, schema 2, SQLite: a job keeps the configuration of its first admission.

-- What a config revision names: template, defaults and system prompts, as a worker read them.
CREATE TABLE config_revisions (
    revision   TEXT PRIMARY KEY, -- as results.config_revision
    content    TEXT NOT NULL,    -- JSON; the revision is the head of its SHA-256
    created_at TEXT NOT NULL     -- when a worker first adopted it
) WITHOUT ROWID;

ALTER TABLE job_attempts ADD COLUMN
    config_revision TEXT; -- that its first start was counted under

INSERT INTO schema_migrations (version, name) VALUES (2, '002_config');
