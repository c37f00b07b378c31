-- tranche, schema 1, SQLite. The same tables, columns and views exist in Postgres.
-- Times are UTC text, '2026-01-31T12:00:00.000Z', which sorts as it reads. JSON is text.
-- A job's key is (run, batch_id, custom_id): `run` tells apart two model revisions, templates or
-- parameter sets that work on the same jobs; 'main' unless named.

-- One row for every accepted job, written once and never changed.
CREATE TABLE results (
    run               TEXT NOT NULL,    -- which line of results: 'main', 'blue', ...
    batch_id          TEXT NOT NULL,    -- named by the job, else the input file's stem
    custom_id         TEXT NOT NULL,    -- the job's own id; without a readable one its origin, 'jobs:17'
    status            TEXT NOT NULL     -- ok | failed (engine or database) | invalid (the request) | expired (its deadline) | cancelled (asked for) | dead (crashes)
                      CHECK (status IN ('ok', 'failed', 'invalid', 'expired', 'cancelled', 'dead')),
    answer            TEXT,             -- first choice without its reasoning; NULL: none was reached
    reasoning         TEXT,             -- what stood before </think>; NULL: the model did not think
    correct           INTEGER,          -- 1, 0: answer against `expected`; NULL: none was given
    finish_reason     TEXT,             -- stop | length | loop | cancelled | failed; of the first choice
    prompt_tokens     INTEGER NOT NULL, -- all prompts of the job
    completion_tokens INTEGER NOT NULL, -- all choices, reasoning included
    reasoning_tokens  INTEGER NOT NULL, -- of these, the ones up to and with </think>
    cached_tokens     INTEGER NOT NULL, -- prompt tokens that came from a shared prefix
    logprobs          TEXT,             -- JSON array, one OpenAI logprobs object for each choice
    prompt_logprobs   TEXT,             -- JSON array, one for each prompt, in vLLM's shape
    choices           TEXT,             -- JSON array of OpenAI choices (without logprobs)
    error_code        TEXT,             -- stable name: bad_json, unknown_field, prompt_too_long, ...
    error_detail      TEXT,             -- for people
    sanitized         INTEGER NOT NULL, -- 1: a NUL or broken UTF-8 was replaced by U+FFFD
    raw               BLOB,             -- the first choice's exact bytes, only where sanitized
    model             TEXT,             -- what the request called the model, else the folder's name; not matched
    model_sha256      TEXT,             -- of the model folder's weights; NULL: not known yet
    fingerprint       TEXT,             -- device, kernels and build that the bytes depend on
    config_revision   TEXT,             -- hash of model config, template and defaults
    params            TEXT,             -- JSON: the parameters in effect
    seed              INTEGER,          -- asked for, or derived from the body and custom_id
    request           TEXT,             -- the body as canonical JSON; of a broken line its text
    request_sha256    TEXT NOT NULL,    -- hex; of `request`: tells a repeated job from another one
    source            TEXT,             -- JSON: file and line, or topic, partition and offset; metadata
    attempts          INTEGER NOT NULL, -- times this job was started, this one included
    worker            TEXT,             -- who wrote the row: host and process
    device_seconds    REAL NOT NULL,    -- its share of the steps it was in, split by tokens
    queued_at         TEXT,             -- when the message was claimed (or written to its queue)
    started_at        TEXT,             -- when it first got a slot of the engine
    finished_at       TEXT NOT NULL,    -- when its last choice ended, or when it was refused
    PRIMARY KEY (run, batch_id, custom_id)
);
CREATE INDEX results_finished ON results (finished_at);
CREATE INDEX results_not_ok ON results (run, batch_id, status) WHERE status <> 'ok';

-- One row for each batch of each run: what came of it so far.
CREATE TABLE batches (
    run             TEXT NOT NULL,              -- as results.run
    batch_id        TEXT NOT NULL,              -- as results.batch_id
    source          TEXT,                       -- where its first message came from
    total           INTEGER,                    -- jobs in it; NULL: not known
    metadata        TEXT,                       -- JSON, from who submitted it
    config_revision TEXT,                       -- of the worker that wrote its newest row
    rows_ok         INTEGER NOT NULL DEFAULT 0, -- rows of results by status
    rows_failed     INTEGER NOT NULL DEFAULT 0, -- the same for failed
    rows_invalid    INTEGER NOT NULL DEFAULT 0, -- the same for invalid
    rows_expired    INTEGER NOT NULL DEFAULT 0, -- the same for expired
    rows_cancelled  INTEGER NOT NULL DEFAULT 0, -- the same for cancelled
    rows_dead       INTEGER NOT NULL DEFAULT 0, -- the same for dead
    dead_letters    INTEGER NOT NULL DEFAULT 0, -- messages in dead_letters
    outputs_sha256  TEXT NOT NULL,              -- hex; sum of the rows' output hashes, in any order
    created_at      TEXT NOT NULL,              -- when it was submitted, or its first row written
    updated_at      TEXT NOT NULL,              -- when its newest row was written
    PRIMARY KEY (run, batch_id)
);

-- Messages that could not become a row of results, because their key belongs to another payload, or
-- that were given up. The row is the record; a copy to a queue may follow.
CREATE TABLE dead_letters (
    source_key  TEXT PRIMARY KEY, -- names the message for ever: run/batch_id/origin/16 hex digits of SHA-256(payload)
    run         TEXT NOT NULL,    -- as results.run
    batch_id    TEXT NOT NULL,    -- as results.batch_id
    custom_id   TEXT,             -- as results.custom_id; NULL: none was readable
    reason      TEXT NOT NULL,    -- id_conflict, crashed, ...
    detail      TEXT,             -- for people
    payload     BLOB,             -- the message as received
    sha256      TEXT NOT NULL,    -- hex; as request_sha256
    source      TEXT,             -- JSON, as results.source
    attempts    INTEGER NOT NULL, -- times the job was started
    first_seen  TEXT NOT NULL,    -- when the message was first refused
    last_seen   TEXT NOT NULL,    -- when it last came again
    worker      TEXT,             -- who wrote the row
    copied_at   TEXT,             -- when the copy reached the dead-letter queue; NULL: not yet
    redriven_at TEXT,             -- when it was sent again
    queue       TEXT,             -- topic or stream that the message came from; a file's stem
    message_key BLOB              -- the message's key in Kafka; NULL: it had none
);
CREATE INDEX dead_letters_job ON dead_letters (run, batch_id, custom_id);

-- Starts of jobs that have no row yet, counted before the engine sees the job: a job that was in
-- flight at several crashes is a suspect; two deaths that it alone was in flight at convict it.
CREATE TABLE job_attempts (
    run       TEXT NOT NULL,    -- as results.run
    batch_id  TEXT NOT NULL,    -- as results.batch_id
    custom_id TEXT NOT NULL,    -- as results.custom_id
    n         INTEGER NOT NULL, -- starts so far that did not come back
    last_at   TEXT NOT NULL,    -- when n last changed
    deaths    INTEGER NOT NULL DEFAULT 0, -- deaths of a process by its own doing, with this job alone in it
    cause     TEXT,             -- of the newest such death, alone or not: SIGSEGV, hang, memory, engine, ...
    process   TEXT,             -- which process has it in flight; NULL: none that is known
    alone     INTEGER NOT NULL DEFAULT 0, -- 1: started with nothing else in flight there
    PRIMARY KEY (run, batch_id, custom_id)
) WITHOUT ROWID;

-- Sequences taken off an engine between two tokens; the next worker goes on with the same bytes.
CREATE TABLE parked (
    run             TEXT NOT NULL,    -- as results.run
    batch_id        TEXT NOT NULL,    -- as results.batch_id
    custom_id       TEXT NOT NULL,    -- as results.custom_id
    choice          INTEGER NOT NULL, -- number of the choice within the job
    n               INTEGER NOT NULL, -- ids generated so far
    state           BLOB NOT NULL,    -- ids and logprobs
    config_revision TEXT,             -- what the sequence was begun under
    worker          TEXT,             -- who parked it
    parked_at       TEXT NOT NULL,    -- when it was parked
    PRIMARY KEY (run, batch_id, custom_id, choice)
);

-- How far each source has come: every message before `position` has its row. Written in the
-- transaction of the rows.
CREATE TABLE partition_progress (
    run            TEXT NOT NULL,    -- as results.run
    consumer_group TEXT NOT NULL,    -- 'file' for files
    source         TEXT NOT NULL,    -- file name, or topic or stream
    partition      INTEGER NOT NULL, -- of the topic; 0 for files and streams
    position       INTEGER NOT NULL, -- byte offset, or offset behind the last such message
    messages       INTEGER NOT NULL, -- messages before it in this run of the worker
    updated_at     TEXT NOT NULL,    -- when position last changed
    PRIMARY KEY (run, consumer_group, source, partition)
);

-- Messages that a broker dropped before they were read: nobody can answer them any more.
CREATE TABLE lost_ranges (
    run            TEXT NOT NULL,    -- as results.run
    consumer_group TEXT NOT NULL,    -- as partition_progress.consumer_group
    source         TEXT NOT NULL,    -- as partition_progress.source
    partition      INTEGER NOT NULL, -- as partition_progress.partition
    from_position  INTEGER NOT NULL, -- first position that is gone
    to_position    INTEGER NOT NULL, -- first one that is there again
    reason         TEXT NOT NULL,    -- retention, truncation, ...
    noticed_at     TEXT NOT NULL,    -- when a worker noticed
    PRIMARY KEY (run, consumer_group, source, partition, from_position)
);

-- Jobs that nobody wants any more. Insert a row; a job without a row in `results` becomes
-- `cancelled`, also one that runs: workers look every few seconds.
CREATE TABLE cancellations (
    run          TEXT NOT NULL,                                                 -- as results.run
    batch_id     TEXT NOT NULL,                                                 -- as results.batch_id
    custom_id    TEXT NOT NULL DEFAULT '',                                      -- '': the whole batch
    reason       TEXT,                                                          -- for people
    requested_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), -- when the row was inserted
    PRIMARY KEY (run, batch_id, custom_id)
) WITHOUT ROWID;

-- Which schema this file has.
CREATE TABLE schema_migrations (
    version    INTEGER PRIMARY KEY,                                          -- number of the migration
    name       TEXT NOT NULL,                                                -- its file
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) -- when it ran
);

-- Finished jobs, without the bulky columns.
CREATE VIEW v_results AS
SELECT run, batch_id, custom_id, answer, reasoning, correct, finish_reason, prompt_tokens,
       completion_tokens, reasoning_tokens, cached_tokens, device_seconds, model, config_revision,
       seed, attempts, worker, queued_at, started_at, finished_at
FROM results WHERE status = 'ok';

-- Jobs without an answer, and why.
CREATE VIEW v_failures AS
SELECT run, batch_id, custom_id, status, error_code, error_detail, source, attempts, worker,
       finished_at
FROM results WHERE status <> 'ok';

-- Batches with their counts, share correct and cost.
CREATE VIEW v_batches AS
SELECT run, batch_id, count(*) AS rows, sum(status = 'ok') AS ok, sum(status = 'failed') AS failed,
       sum(status = 'invalid') AS invalid, avg(correct) AS accuracy,
       sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
       sum(device_seconds) AS device_seconds, min(started_at) AS first_start,
       max(finished_at) AS last_finish
FROM results GROUP BY run, batch_id;

-- Rows and tokens by minute.
CREATE VIEW v_throughput_1m AS
SELECT run, batch_id, substr(finished_at, 1, 16) || ':00Z' AS minute, count(*) AS rows,
       sum(status <> 'ok') AS not_ok, sum(prompt_tokens) AS prompt_tokens,
       sum(completion_tokens) AS completion_tokens
FROM results GROUP BY run, batch_id, minute;

-- Batches as they go: counts kept up with each transaction, so cheap at any size.
CREATE VIEW v_progress AS
SELECT run, batch_id, total, rows_ok + rows_failed + rows_invalid + rows_expired + rows_cancelled +
       rows_dead AS rows, rows_ok, dead_letters, config_revision, outputs_sha256, created_at,
       updated_at
FROM batches;

-- Seconds from the queue to a slot, and from there to the end, of each finished job.
CREATE VIEW v_queue_age AS
SELECT run, batch_id, custom_id,
       (julianday(started_at) - julianday(queued_at)) * 86400.0 AS queued_seconds,
       (julianday(finished_at) - julianday(started_at)) * 86400.0 AS run_seconds
FROM results WHERE status = 'ok';

-- Share of right answers for each revision of model, template and defaults.
CREATE VIEW v_accuracy AS
SELECT run, batch_id, config_revision, count(correct) AS judged, sum(correct) AS correct,
       avg(correct) AS accuracy
FROM results WHERE correct IS NOT NULL GROUP BY run, batch_id, config_revision;

-- Dead letters without their payload.
CREATE VIEW v_dead_letters AS
SELECT source_key, run, batch_id, custom_id, reason, detail, attempts, first_seen, last_seen,
       copied_at, redriven_at
FROM dead_letters;

-- Dead letters whose copy has not reached a dead-letter queue yet; for workers.
CREATE VIEW v_outbox AS
SELECT source_key, run, batch_id, custom_id, reason, detail, payload, sha256, source, attempts,
       first_seen, last_seen, worker, copied_at, queue, message_key
FROM dead_letters WHERE copied_at IS NULL;

INSERT INTO schema_migrations (version, name) VALUES (1, '001_init');
