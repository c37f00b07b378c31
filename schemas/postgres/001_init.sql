-- tranche, schema 1, PostgreSQL 14 and later. The same tables, columns and views as in SQLite, in a
-- schema of their own. JSON is text here too: it stays byte for byte what was computed, and a \u0000
-- in it cannot refuse a row (cast it to jsonb where you query it). Keys sort by
-- their bytes: quicker, and an index outlives an upgrade of the C library.
-- `tranche migrate` runs this once, in one transaction, as a role that may create schemas and roles.

-- Group roles without login: grant them to the users of each pod, analyst or operator.
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tranche_owner', 'tranche_worker', 'tranche_analyst', 'tranche_redrive']
    LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
    -- From 16 on who made a role is a member of it that may not act as it, unless granted once more.
    IF NOT pg_has_role('tranche_owner', CASE WHEN current_setting('server_version_num')::int >= 160000
                                        THEN 'SET' ELSE 'MEMBER' END) THEN
        EXECUTE format('GRANT tranche_owner TO %I', current_user);
    END IF;
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END $$;
CREATE SCHEMA IF NOT EXISTS tranche AUTHORIZATION tranche_owner;
SET LOCAL ROLE tranche_owner;
SET LOCAL search_path = tranche;

CREATE TABLE results (
    run               text COLLATE "C" NOT NULL,
    batch_id          text COLLATE "C" NOT NULL,
    custom_id         text COLLATE "C" NOT NULL,
    status            text NOT NULL CHECK
        (status IN ('ok', 'failed', 'invalid', 'expired', 'cancelled', 'dead')),
    answer            text,
    reasoning         text,
    correct           integer,
    finish_reason     text,
    prompt_tokens     integer NOT NULL,
    completion_tokens integer NOT NULL,
    reasoning_tokens  integer NOT NULL,
    cached_tokens     integer NOT NULL,
    logprobs          text,
    prompt_logprobs   text,
    choices           text,
    error_code        text,
    error_detail      text,
    sanitized         integer NOT NULL,
    raw               bytea,
    model             text,
    model_sha256      text,
    fingerprint       text,
    config_revision   text,
    params            text,
    seed              bigint,
    request           text,
    request_sha256    text NOT NULL,
    source            text,
    attempts          integer NOT NULL,
    worker            text,
    device_seconds    double precision NOT NULL,
    queued_at         timestamptz,
    started_at        timestamptz,
    finished_at       timestamptz NOT NULL,
    PRIMARY KEY (run, batch_id, custom_id)
);
CREATE INDEX results_finished ON results (finished_at);
CREATE INDEX results_not_ok ON results (run, batch_id, status) WHERE status <> 'ok';
COMMENT ON TABLE results IS 'One row for every accepted job, written once and never changed.';
COMMENT ON COLUMN results.run IS 'which line of results: ''main'', ''blue'', ...';
COMMENT ON COLUMN results.batch_id IS 'named by the job, else the input file''s stem';
COMMENT ON COLUMN results.custom_id IS 'the job''s own id; without a readable one its origin, ''jobs:17''';
COMMENT ON COLUMN results.status IS 'ok | failed (engine or database) | invalid (the request) | expired (its deadline) | cancelled (asked for) | dead (crashes)';
COMMENT ON COLUMN results.answer IS 'first choice without its reasoning; NULL: none was reached';
COMMENT ON COLUMN results.reasoning IS 'what stood before </think>; NULL: the model did not think';
COMMENT ON COLUMN results.correct IS '1, 0: answer against `expected`; NULL: none was given';
COMMENT ON COLUMN results.finish_reason IS 'stop | length | loop | cancelled | failed; of the first choice';
COMMENT ON COLUMN results.prompt_tokens IS 'all prompts of the job';
COMMENT ON COLUMN results.completion_tokens IS 'all choices, reasoning included';
COMMENT ON COLUMN results.reasoning_tokens IS 'of these, the ones up to and with </think>';
COMMENT ON COLUMN results.cached_tokens IS 'prompt tokens that came from a shared prefix';
COMMENT ON COLUMN results.logprobs IS 'JSON array, one OpenAI logprobs object for each choice';
COMMENT ON COLUMN results.prompt_logprobs IS 'JSON array, one for each prompt, in vLLM''s shape';
COMMENT ON COLUMN results.choices IS 'JSON array of OpenAI choices (without logprobs)';
COMMENT ON COLUMN results.error_code IS 'stable name: bad_json, unknown_field, prompt_too_long, ...';
COMMENT ON COLUMN results.error_detail IS 'for people';
COMMENT ON COLUMN results.sanitized IS '1: a NUL or broken UTF-8 was replaced by U+FFFD';
COMMENT ON COLUMN results.raw IS 'the first choice''s exact bytes, only where sanitized';
COMMENT ON COLUMN results.model IS 'what the request called the model, else the folder''s name; not matched';
COMMENT ON COLUMN results.model_sha256 IS 'of the model folder''s weights; NULL: not known yet';
COMMENT ON COLUMN results.fingerprint IS 'device, kernels and build that the bytes depend on';
COMMENT ON COLUMN results.config_revision IS 'hash of model config, template and defaults';
COMMENT ON COLUMN results.params IS 'JSON: the parameters in effect';
COMMENT ON COLUMN results.seed IS 'asked for, or derived from the body and custom_id';
COMMENT ON COLUMN results.request IS 'the body as canonical JSON; of a broken line its text';
COMMENT ON COLUMN results.request_sha256 IS 'hex; of `request`: tells a repeated job from another one';
COMMENT ON COLUMN results.source IS 'JSON: file and line, or topic, partition and offset; metadata';
COMMENT ON COLUMN results.attempts IS 'times this job was started, this one included';
COMMENT ON COLUMN results.worker IS 'who wrote the row: host and process';
COMMENT ON COLUMN results.device_seconds IS 'its share of the steps it was in, split by tokens';
COMMENT ON COLUMN results.queued_at IS 'when the message was claimed (or written to its queue)';
COMMENT ON COLUMN results.started_at IS 'when it first got a slot of the engine';
COMMENT ON COLUMN results.finished_at IS 'when its last choice ended, or when it was refused';

CREATE TABLE batches (
    run             text COLLATE "C" NOT NULL,
    batch_id        text COLLATE "C" NOT NULL,
    source          text,
    total           bigint,
    metadata        text,
    config_revision text,
    rows_ok         bigint NOT NULL DEFAULT 0,
    rows_failed     bigint NOT NULL DEFAULT 0,
    rows_invalid    bigint NOT NULL DEFAULT 0,
    rows_expired    bigint NOT NULL DEFAULT 0,
    rows_cancelled  bigint NOT NULL DEFAULT 0,
    rows_dead       bigint NOT NULL DEFAULT 0,
    dead_letters    bigint NOT NULL DEFAULT 0,
    outputs_sha256  text NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (run, batch_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE batches IS 'One row for each batch of each run: what came of it so far.';
COMMENT ON COLUMN batches.run IS 'as results.run';
COMMENT ON COLUMN batches.batch_id IS 'as results.batch_id';
COMMENT ON COLUMN batches.source IS 'where its first message came from';
COMMENT ON COLUMN batches.total IS 'jobs in it; NULL: not known';
COMMENT ON COLUMN batches.metadata IS 'JSON, from who submitted it';
COMMENT ON COLUMN batches.config_revision IS 'of the worker that wrote its newest row';
COMMENT ON COLUMN batches.rows_ok IS 'rows of results by status';
COMMENT ON COLUMN batches.rows_failed IS 'the same for failed';
COMMENT ON COLUMN batches.rows_invalid IS 'the same for invalid';
COMMENT ON COLUMN batches.rows_expired IS 'the same for expired';
COMMENT ON COLUMN batches.rows_cancelled IS 'the same for cancelled';
COMMENT ON COLUMN batches.rows_dead IS 'the same for dead';
COMMENT ON COLUMN batches.dead_letters IS 'messages in dead_letters';
COMMENT ON COLUMN batches.outputs_sha256 IS 'hex; sum of the rows'' output hashes, in any order';
COMMENT ON COLUMN batches.created_at IS 'when it was submitted, or its first row written';
COMMENT ON COLUMN batches.updated_at IS 'when its newest row was written';

CREATE TABLE dead_letters (
    source_key  text COLLATE "C" PRIMARY KEY,
    run         text COLLATE "C" NOT NULL,
    batch_id    text COLLATE "C" NOT NULL,
    custom_id   text COLLATE "C",
    reason      text NOT NULL,
    detail      text,
    payload     bytea,
    sha256      text NOT NULL,
    source      text,
    attempts    integer NOT NULL,
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz NOT NULL,
    worker      text,
    copied_at   timestamptz,
    redriven_at timestamptz,
    queue       text,
    message_key bytea
);
CREATE INDEX dead_letters_job ON dead_letters (run, batch_id, custom_id);
CREATE INDEX dead_letters_uncopied ON dead_letters (queue, first_seen) WHERE copied_at IS NULL;
COMMENT ON TABLE dead_letters IS 'Messages that could not become a row of results, because their key belongs to another payload, or that were given up. The row is the record; a copy to a queue may follow.';
COMMENT ON COLUMN dead_letters.source_key IS 'names the message for ever: run/batch_id/origin/16 hex digits of SHA-256(payload)';
COMMENT ON COLUMN dead_letters.run IS 'as results.run';
COMMENT ON COLUMN dead_letters.batch_id IS 'as results.batch_id';
COMMENT ON COLUMN dead_letters.custom_id IS 'as results.custom_id; NULL: none was readable';
COMMENT ON COLUMN dead_letters.reason IS 'id_conflict, crashed, ...';
COMMENT ON COLUMN dead_letters.detail IS 'for people';
COMMENT ON COLUMN dead_letters.payload IS 'the message as received';
COMMENT ON COLUMN dead_letters.sha256 IS 'hex; as request_sha256';
COMMENT ON COLUMN dead_letters.source IS 'JSON, as results.source';
COMMENT ON COLUMN dead_letters.attempts IS 'times the job was started';
COMMENT ON COLUMN dead_letters.first_seen IS 'when the message was first refused';
COMMENT ON COLUMN dead_letters.last_seen IS 'when it last came again';
COMMENT ON COLUMN dead_letters.worker IS 'who wrote the row';
COMMENT ON COLUMN dead_letters.copied_at IS 'when the copy reached the dead-letter queue; NULL: not yet';
COMMENT ON COLUMN dead_letters.redriven_at IS 'when it was sent again';
COMMENT ON COLUMN dead_letters.queue IS 'topic or stream that the message came from; a file''s stem';
COMMENT ON COLUMN dead_letters.message_key IS 'the message''s key in Kafka; NULL: it had none';

CREATE TABLE job_attempts (
    run       text COLLATE "C" NOT NULL,
    batch_id  text COLLATE "C" NOT NULL,
    custom_id text COLLATE "C" NOT NULL,
    n         integer NOT NULL,
    last_at   timestamptz NOT NULL,
    deaths    integer NOT NULL DEFAULT 0,
    cause     text,
    process   text,
    alone     integer NOT NULL DEFAULT 0,
    PRIMARY KEY (run, batch_id, custom_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE job_attempts IS 'Starts of jobs that have no row yet, counted before the engine sees the job: a job that was in flight at several crashes is a suspect; two deaths that it alone was in flight at convict it.';
COMMENT ON COLUMN job_attempts.run IS 'as results.run';
COMMENT ON COLUMN job_attempts.batch_id IS 'as results.batch_id';
COMMENT ON COLUMN job_attempts.custom_id IS 'as results.custom_id';
COMMENT ON COLUMN job_attempts.n IS 'starts so far that did not come back';
COMMENT ON COLUMN job_attempts.last_at IS 'when n last changed';
COMMENT ON COLUMN job_attempts.deaths IS 'deaths of a process by its own doing, with this job alone in it';
COMMENT ON COLUMN job_attempts.cause IS 'of the newest such death, alone or not: SIGSEGV, hang, memory, engine, ...';
COMMENT ON COLUMN job_attempts.process IS 'which process has it in flight; NULL: none that is known';
COMMENT ON COLUMN job_attempts.alone IS '1: started with nothing else in flight there';

CREATE TABLE parked (
    run             text COLLATE "C" NOT NULL,
    batch_id        text COLLATE "C" NOT NULL,
    custom_id       text COLLATE "C" NOT NULL,
    choice          integer NOT NULL,
    n               integer NOT NULL,
    state           bytea NOT NULL,
    config_revision text,
    worker          text,
    parked_at       timestamptz NOT NULL,
    PRIMARY KEY (run, batch_id, custom_id, choice)
);
COMMENT ON TABLE parked IS 'Sequences taken off an engine between two tokens; the next worker goes on with the same bytes.';
COMMENT ON COLUMN parked.run IS 'as results.run';
COMMENT ON COLUMN parked.batch_id IS 'as results.batch_id';
COMMENT ON COLUMN parked.custom_id IS 'as results.custom_id';
COMMENT ON COLUMN parked.choice IS 'number of the choice within the job';
COMMENT ON COLUMN parked.n IS 'ids generated so far';
COMMENT ON COLUMN parked.state IS 'ids and logprobs';
COMMENT ON COLUMN parked.config_revision IS 'what the sequence was begun under';
COMMENT ON COLUMN parked.worker IS 'who parked it';
COMMENT ON COLUMN parked.parked_at IS 'when it was parked';

CREATE TABLE partition_progress (
    run            text COLLATE "C" NOT NULL,
    consumer_group text COLLATE "C" NOT NULL,
    source         text NOT NULL,
    partition      integer NOT NULL,
    position       bigint NOT NULL,
    messages       bigint NOT NULL,
    updated_at     timestamptz NOT NULL,
    PRIMARY KEY (run, consumer_group, source, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE partition_progress IS 'How far each source has come: every message before `position` has its row. Written in the transaction of the rows.';
COMMENT ON COLUMN partition_progress.run IS 'as results.run';
COMMENT ON COLUMN partition_progress.consumer_group IS '''file'' for files';
COMMENT ON COLUMN partition_progress.source IS 'file name, or topic or stream';
COMMENT ON COLUMN partition_progress.partition IS 'of the topic; 0 for files and streams';
COMMENT ON COLUMN partition_progress.position IS 'byte offset, or offset behind the last such message';
COMMENT ON COLUMN partition_progress.messages IS 'messages before it in this run of the worker';
COMMENT ON COLUMN partition_progress.updated_at IS 'when position last changed';

CREATE TABLE lost_ranges (
    run            text COLLATE "C" NOT NULL,
    consumer_group text COLLATE "C" NOT NULL,
    source         text NOT NULL,
    partition      integer NOT NULL,
    from_position  bigint NOT NULL,
    to_position    bigint NOT NULL,
    reason         text NOT NULL,
    noticed_at     timestamptz NOT NULL,
    PRIMARY KEY (run, consumer_group, source, partition, from_position)
);
COMMENT ON TABLE lost_ranges IS 'Messages that a broker dropped before they were read: nobody can answer them any more.';
COMMENT ON COLUMN lost_ranges.run IS 'as results.run';
COMMENT ON COLUMN lost_ranges.consumer_group IS 'as partition_progress.consumer_group';
COMMENT ON COLUMN lost_ranges.source IS 'as partition_progress.source';
COMMENT ON COLUMN lost_ranges.partition IS 'as partition_progress.partition';
COMMENT ON COLUMN lost_ranges.from_position IS 'first position that is gone';
COMMENT ON COLUMN lost_ranges.to_position IS 'first one that is there again';
COMMENT ON COLUMN lost_ranges.reason IS 'retention, truncation, ...';
COMMENT ON COLUMN lost_ranges.noticed_at IS 'when a worker noticed';

CREATE TABLE cancellations (
    run          text COLLATE "C" NOT NULL,
    batch_id     text COLLATE "C" NOT NULL,
    custom_id    text COLLATE "C" NOT NULL DEFAULT '',
    reason       text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, batch_id, custom_id)
);
COMMENT ON TABLE cancellations IS 'Jobs that nobody wants any more. Insert a row; a job without a row in `results` becomes `cancelled`, also one that runs: workers look every few seconds.';
COMMENT ON COLUMN cancellations.run IS 'as results.run';
COMMENT ON COLUMN cancellations.batch_id IS 'as results.batch_id';
COMMENT ON COLUMN cancellations.custom_id IS ''''': the whole batch';
COMMENT ON COLUMN cancellations.reason IS 'for people';
COMMENT ON COLUMN cancellations.requested_at IS 'when the row was inserted';

CREATE TABLE schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE schema_migrations IS 'Which schema this file has.';
COMMENT ON COLUMN schema_migrations.version IS 'number of the migration';
COMMENT ON COLUMN schema_migrations.name IS 'its file';
COMMENT ON COLUMN schema_migrations.applied_at IS 'when it ran';

CREATE VIEW v_results AS
SELECT run, batch_id, custom_id, answer, reasoning, correct, finish_reason, prompt_tokens,
       completion_tokens, reasoning_tokens, cached_tokens, device_seconds, model, config_revision,
       seed, attempts, worker, queued_at, started_at, finished_at
FROM results WHERE status = 'ok';
COMMENT ON VIEW v_results IS 'Finished jobs, without the bulky columns.';

CREATE VIEW v_failures AS
SELECT run, batch_id, custom_id, status, error_code, error_detail, source, attempts, worker,
       finished_at
FROM results WHERE status <> 'ok';
COMMENT ON VIEW v_failures IS 'Jobs without an answer, and why.';

CREATE VIEW v_batches AS
SELECT run, batch_id, count(*) AS rows, count(*) FILTER (WHERE status = 'ok') AS ok,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       count(*) FILTER (WHERE status = 'invalid') AS invalid,
       avg(correct)::double precision AS accuracy, sum(prompt_tokens) AS prompt_tokens,
       sum(completion_tokens) AS completion_tokens, sum(device_seconds) AS device_seconds,
       min(started_at) AS first_start, max(finished_at) AS last_finish
FROM results GROUP BY run, batch_id;
COMMENT ON VIEW v_batches IS 'Batches with their counts, share correct and cost.';

CREATE VIEW v_throughput_1m AS
SELECT run, batch_id, date_trunc('minute', finished_at, 'UTC') AS minute, count(*) AS rows,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok, sum(prompt_tokens) AS prompt_tokens,
       sum(completion_tokens) AS completion_tokens
FROM results GROUP BY run, batch_id, minute;
COMMENT ON VIEW v_throughput_1m IS 'Rows and tokens by minute.';

CREATE VIEW v_progress AS
SELECT run, batch_id, total, rows_ok + rows_failed + rows_invalid + rows_expired + rows_cancelled +
       rows_dead AS rows, rows_ok, dead_letters, config_revision, outputs_sha256, created_at,
       updated_at
FROM batches;
COMMENT ON VIEW v_progress IS 'Batches as they go: counts kept up with each transaction, so cheap at any size.';

CREATE VIEW v_queue_age AS
SELECT run, batch_id, custom_id,
       extract(epoch FROM started_at - queued_at)::double precision AS queued_seconds,
       extract(epoch FROM finished_at - started_at)::double precision AS run_seconds
FROM results WHERE status = 'ok';
COMMENT ON VIEW v_queue_age IS 'Seconds from the queue to a slot, and from there to the end, of each finished job.';

CREATE VIEW v_accuracy AS
SELECT run, batch_id, config_revision, count(correct) AS judged, sum(correct) AS correct,
       avg(correct)::double precision AS accuracy
FROM results WHERE correct IS NOT NULL GROUP BY run, batch_id, config_revision;
COMMENT ON VIEW v_accuracy IS 'Share of right answers for each revision of model, template and defaults.';

CREATE VIEW v_dead_letters AS
SELECT source_key, run, batch_id, custom_id, reason, detail, attempts, first_seen, last_seen,
       copied_at, redriven_at
FROM dead_letters;
COMMENT ON VIEW v_dead_letters IS 'Dead letters without their payload.';

-- Through this view alone a worker may read a payload, and only until it is copied.
CREATE VIEW v_outbox AS
SELECT source_key, run, batch_id, custom_id, reason, detail, payload, sha256, source, attempts,
       first_seen, last_seen, worker, copied_at, queue, message_key
FROM dead_letters WHERE copied_at IS NULL;
COMMENT ON VIEW v_outbox IS 'Dead letters whose copy has not reached a dead-letter queue yet; for workers.';

-- A view's column that is a table's column says the same; the computed ones speak for themselves.
COMMENT ON COLUMN v_batches.rows IS 'rows of results';
COMMENT ON COLUMN v_batches.ok IS 'of these, answered';
COMMENT ON COLUMN v_batches.failed IS 'of these, status failed';
COMMENT ON COLUMN v_batches.invalid IS 'of these, status invalid';
COMMENT ON COLUMN v_batches.accuracy IS 'share of right answers among the judged; NULL: none was judged';
COMMENT ON COLUMN v_batches.prompt_tokens IS 'their sum';
COMMENT ON COLUMN v_batches.completion_tokens IS 'their sum';
COMMENT ON COLUMN v_batches.device_seconds IS 'their sum: what the batch cost';
COMMENT ON COLUMN v_batches.first_start IS 'earliest started_at';
COMMENT ON COLUMN v_batches.last_finish IS 'latest finished_at';
COMMENT ON COLUMN v_throughput_1m.minute IS 'in which the rows finished; its first second, UTC';
COMMENT ON COLUMN v_throughput_1m.rows IS 'rows of results';
COMMENT ON COLUMN v_throughput_1m.not_ok IS 'of these, without an answer';
COMMENT ON COLUMN v_throughput_1m.prompt_tokens IS 'their sum';
COMMENT ON COLUMN v_throughput_1m.completion_tokens IS 'their sum';
COMMENT ON COLUMN v_progress.rows IS 'rows of results so far, all statuses';
COMMENT ON COLUMN v_queue_age.queued_seconds IS 'from queued_at to started_at';
COMMENT ON COLUMN v_queue_age.run_seconds IS 'from started_at to finished_at';
COMMENT ON COLUMN v_accuracy.judged IS 'answers that had an expected one';
COMMENT ON COLUMN v_accuracy.correct IS 'of these, right';
COMMENT ON COLUMN v_accuracy.accuracy IS 'correct / judged';
DO $$
DECLARE c record;
BEGIN
    FOR c IN
        SELECT v.relname AS view, a.attname AS name,
               (SELECT col_description(t.oid, b.attnum)
                FROM pg_class t JOIN pg_attribute b ON b.attrelid = t.oid
                WHERE t.relkind = 'r' AND t.relnamespace = v.relnamespace AND b.attname = a.attname
                ORDER BY t.relname = CASE v.relname WHEN 'v_dead_letters' THEN 'dead_letters'
                                     WHEN 'v_outbox' THEN 'dead_letters'
                                     WHEN 'v_progress' THEN 'batches' ELSE 'results' END DESC
                LIMIT 1) AS text
        FROM pg_class v JOIN pg_attribute a ON a.attrelid = v.oid AND a.attnum > 0
        WHERE v.relkind = 'v' AND v.relnamespace = 'tranche'::regnamespace
          AND col_description(v.oid, a.attnum) IS NULL
    LOOP
        EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', c.view, c.name, c.text);
    END LOOP;
END $$;

-- lz4 packs large rows 2.6 times as fast as the default; a server built without it keeps the default.
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['answer', 'reasoning', 'logprobs', 'prompt_logprobs', 'choices', 'raw',
                                'request']
    LOOP
        EXECUTE format('ALTER TABLE results ALTER COLUMN %I SET COMPRESSION lz4', name);
    END LOOP;
    ALTER TABLE dead_letters ALTER COLUMN payload SET COMPRESSION lz4;
    ALTER TABLE parked ALTER COLUMN state SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR syntax_error THEN
    RAISE NOTICE 'this server has no lz4: big columns keep the default compression';
END $$;

-- Who may do what. A worker adds results and can neither change nor remove them.
REVOKE ALL ON SCHEMA tranche FROM PUBLIC;
GRANT USAGE ON SCHEMA tranche TO tranche_worker, tranche_analyst, tranche_redrive;

GRANT INSERT ON results TO tranche_worker;
GRANT SELECT (run, batch_id, custom_id, request_sha256) ON results TO tranche_worker;
GRANT INSERT ON dead_letters TO tranche_worker;
GRANT SELECT (source_key, last_seen, copied_at), UPDATE (last_seen, copied_at) ON dead_letters
    TO tranche_worker;
GRANT SELECT, UPDATE (copied_at) ON v_outbox TO tranche_worker;
GRANT SELECT, INSERT, UPDATE ON batches, partition_progress TO tranche_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON job_attempts, parked TO tranche_worker;
GRANT SELECT, INSERT ON lost_ranges TO tranche_worker;
GRANT SELECT ON cancellations, schema_migrations TO tranche_worker;

GRANT SELECT ON v_results, v_failures, v_batches, v_throughput_1m, v_progress, v_queue_age, v_accuracy,
    v_dead_letters TO tranche_analyst;

GRANT SELECT, UPDATE (redriven_at, copied_at) ON dead_letters TO tranche_redrive;
GRANT SELECT, INSERT, DELETE ON cancellations TO tranche_redrive;
GRANT SELECT, INSERT, UPDATE ON batches TO tranche_redrive;
GRANT SELECT, INSERT, UPDATE ON partition_progress TO tranche_redrive;
GRANT SELECT ON results, job_attempts, parked, lost_ranges, schema_migrations TO tranche_redrive;

INSERT INTO schema_migrations (version, name) VALUES (1, '001_init');
