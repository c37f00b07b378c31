-- tranche, schema 2, PostgreSQL: a job keeps the configuration of its first admission.
SET LOCAL search_path = tranche, pg_temp;
SET LOCAL ROLE tranche_owner;

CREATE TABLE config_revisions (
    revision   text COLLATE "C" PRIMARY KEY,
    content    text NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE config_revisions IS 'What a config revision names: template, defaults and system prompts, as a worker read them.';
COMMENT ON COLUMN config_revisions.revision IS 'as results.config_revision';
COMMENT ON COLUMN config_revisions.content IS 'JSON; the revision is the head of its SHA-256';
COMMENT ON COLUMN config_revisions.created_at IS 'when a worker first adopted it';

ALTER TABLE job_attempts ADD COLUMN config_revision text;
COMMENT ON COLUMN job_attempts.config_revision IS 'that its first start was counted under';

GRANT SELECT, INSERT ON config_revisions TO tranche_worker;
GRANT SELECT ON config_revisions TO tranche_analyst, tranche_redrive;

INSERT INTO schema_migrations (version, name) VALUES (2, '002_config');
