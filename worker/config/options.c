/* options: the one table of commands and options. Order here is the order of --help and of
 * docs/config.md, which tests/lint/options.py keeps equal to this table. */
#include "worker/config/config.h"

#include <assert.h>

enum {
    RUN = COMMAND_RUN,
    EXPORT = COMMAND_EXPORT,
    TOKENIZE = COMMAND_TOKENIZE,
    DOCTOR = COMMAND_DOCTOR,
    BENCH = COMMAND_BENCH,
    WORKER = COMMAND_WORKER,
    INIT = COMMAND_INIT,
    SUBMIT = COMMAND_SUBMIT,
    QUEUE = WORKER | INIT | SUBMIT,
    WORK = RUN | WORKER,
    MIGRATE = COMMAND_MIGRATE,
    STATUS = COMMAND_STATUS,
    CANCEL = COMMAND_CANCEL,
    DLQ = COMMAND_DLQ,
    PRUNE = COMMAND_PRUNE,
    SEEK = COMMAND_SEEK,
    AUDIT = COMMAND_AUDIT,
    DIFF = COMMAND_DIFF,
    CACHE = COMMAND_CACHE,
    SMOKE = COMMAND_SMOKE,
    ROWS = EXPORT | DIFF,                  /* only read rows */
    GROUP = STATUS | SEEK | AUDIT | SMOKE, /* ask about a consumer group */
    BROKER = GROUP | DLQ,                  /* and these speak with a broker at all */
    CONSOLE = BROKER | CANCEL | PRUNE,     /* what an operator does */
    ENGINE = WORK | DOCTOR | BENCH,
    MODEL = ENGINE | TOKENIZE,
    ALL = MODEL | ROWS | QUEUE | MIGRATE | CONSOLE | CACHE,
};
#define KIB 1024.0
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

const struct command_info command_table[] = {
    {COMMAND_RUN, "run", "JOBS.jsonl", "run a file of prompts through a model, rows to a database",
     "JOBS.jsonl holds one job a line: an OpenAI batch line, or {\"id\", \"prompt\" | "
     "\"messages\",\n"
     "...}. \"-\" reads standard input (then --batch names the batch). Run it again after a stop:\n"
     "only what is missing is done.\n"
     "Exit: 0 done, 3 --strict and rows failed, 64 options or no such file, 65 model or schema,\n"
     "69 database, 70 engine, 130 Ctrl-C with work left, 143 SIGTERM with work left.",
     1},
    {COMMAND_WORKER, "worker", "", "run the prompts of a queue through a model, rows to a database",
     "Takes jobs from --source until it is stopped, or until --idle-exit finds nothing left. A\n"
     "message is acknowledged after its row has been committed, never before.\n"
     "Exit: 0 nothing left, 64 options, 65 model, schema or queue, 69 broker or database not\n"
     "reached in time, 70 engine, 130 Ctrl-C with work left, 143 SIGTERM with work left.",
     0},
    {COMMAND_INIT, "init", "", "make a topic or stream and its group, where they are missing",
     "What is there stays as it is, so that it may run before every start.\n"
     "Exit: 0 done, 64 options, 65 rights, 69 broker, or with --drop-group a group that is read,\n"
     "74 output.",
     0},
    {COMMAND_SUBMIT, "submit", "JOBS.jsonl", "send a file of prompts to a queue",
     "Every id is checked before the first message leaves. Jobs that name no batch get --batch.\n"
     "With --db the batch and its number of jobs are registered there, for `tranche status`.\n"
     "After a stop, run it again: it goes on where the broker had confirmed. \"-\" reads standard\n"
     "input (then --batch names the batch); a stop begins that anew.\n"
     "Exit: 0 done, 64 options or a job, 65 rights, schema or queue, 69 broker or database,\n"
     "74 output.",
     1},
    {COMMAND_SMOKE, "smoke", "", "one prompt into the queue, its row out of the database",
     "Sends a prompt of the batch `smoke` and waits for its row, or says which step on the way "
     "did\n"
     "not answer. The prompt expires with --timeout. The user of --db may be a member of\n"
     "tranche_redrive; that of --source has the rights that submit wants.\n"
     "Exit: 0 the row is ok, 3 it is not, or there was none in time, 64 options, 65 rights,\n"
     "schema or queue, 69 database or broker, 74 output.",
     0},
    {COMMAND_STATUS, "status", "[BATCH]",
     "batches as they go, what is under way, the queue's backlog",
     "Counts are those of the rows committed so far; `total` is known where `submit --db` said "
     "it.\n"
     "rows/s speaks of the last minute. With --source it asks the broker too. Reads only; the "
     "user\n"
     "of --db may be a member of tranche_redrive.\n"
     "Exit: 0 done, 64 options, 65 rights, schema or queue, 69 database or broker, 74 output.",
     1},
    {COMMAND_CANCEL, "cancel", "BATCH [ID...]", "jobs that nobody wants any more",
     "Without ids the whole batch, those of its jobs that are still to come included. A job that "
     "has\n"
     "a row keeps it; the others get one with status `cancelled` when a worker meets them.\n"
     "Exit: 0 done, 64 options, 65 rights or schema, 69 database, 74 output.",
     16},
    {COMMAND_DLQ, "dlq", "list|show KEY|redrive", "dead letters: look at them, send them again",
     "redrive sends each open letter of the filter to --source, in a run of its own: main~1, of a\n"
     "letter that dies there main~2, at most main~3; the first row of a key stays for ever.\n"
     "Exit: 0 done, 64 options, 65 rights, schema or queue, 69 database or broker, 74 output.",
     2},
    {COMMAND_SEEK, "seek", "", "move the stored position of a topic's group",
     "Stop the workers first. Messages that are skipped get no row; those that are read again "
     "have\n"
     "theirs. --dry-run shows what it would do.\n"
     "Exit: 0 done, 64 options, 65 rights, schema, queue or running workers, 69 database or\n"
     "broker, 74 output.",
     0},
    {COMMAND_AUDIT, "audit", "", "compare what the broker still has with the rows",
     "Lists acknowledged messages without a row, as after a database was restored from an older\n"
     "backup; --requeue sends them again. Give --run and --batch as the workers have them.\n"
     "Exit: 0 none, or all sent again; 3 some are missing; 64 options, 65 rights, schema or\n"
     "queue, 69 database or broker, 74 output.",
     0},
    {COMMAND_PRUNE, "prune", "", "remove rows by age",
     "Counts in `batches` stay as they are. A result that is gone no longer stops a message that\n"
     "comes again: keep results longer than the broker keeps messages. Needs tranche_owner.\n"
     "Exit: 0 done, 64 options, 65 rights or schema, 69 database, 74 output.",
     0},
    {COMMAND_EXPORT, "export", "", "write OpenAI batch output and error files from a database",
     "Rows of one batch, in the order of their input where it is known.\n"
     "Exit: 0 done, 64 options or no such batch, 65 rights, schema or damage, 69 database, 74 "
     "output.",
     0},
    {COMMAND_MIGRATE, "migrate", "", "bring a PostgreSQL database to this build's schema",
     "Makes schema, tables, views and the roles tranche_owner, tranche_worker, tranche_analyst "
     "and\n"
     "tranche_redrive; grant these to your users. Runs as a user who may create schemas and "
     "roles,\n"
     "over a direct connection; again and side by side is harmless. Workers only check the "
     "version.\n"
     "Exit: 0 done, 64 options, 65 rights or schema, 69 database, 74 output.",
     0},
    {COMMAND_DIFF, "diff", "RUN RUN", "two runs over the same jobs, row by row",
     "Pairs rows by batch and id and counts what differs from the first run to the second: rows\n"
     "without a partner, answers that failed, changed, grew longer or became wrong by `expected`,\n"
     "and the other way round. --list names the jobs. The user of --db may be a member of\n"
     "tranche_redrive.\n"
     "Exit: 0 done, 3 something of --fail-on was found, 64 options or a run without rows, 65 "
     "rights\n"
     "or schema, 69 database, 74 output.",
     2},
    {COMMAND_CACHE, "cache", "SOURCE DEST", "copy a model folder to a volume that workers read",
     "Copies what opening the folder SOURCE reads, by way of DEST.partial: a copy that was cut\n"
     "short goes on. Each file is read back from the volume and held against its SHA-256, which\n"
     "DEST/tranche-cache.json keeps; the whole is opened as a worker does, and named DEST last.\n"
     "Where DEST is there with the same content nothing is done; with another it stays as it is.\n"
     "Exit: 0 done or there already, 64 options, 65 SOURCE not whole or DEST of other content,\n"
     "74 DEST cannot be written, 130 Ctrl-C, 143 SIGTERM.",
     2},
    {COMMAND_TOKENIZE, "tokenize", "", "JSON strings on standard input to arrays of token ids",
     "Each input line is one JSON string; each output line is one JSON array of ids. --decode "
     "goes\n"
     "the other way. Needs only the tokenizer's files of the folder. Stops at the first bad line.\n"
     "Exit: 0 done, 64 options, 65 tokenizer or a line, 74 output.",
     0},
    {COMMAND_DOCTOR, "doctor", "", "what is wrong with folder, machine, queue, database; the mend",
     "Give it the options of the worker: only what is named is asked. It changes nothing.\n"
     "Exit: 0 all well, 1 warnings, 2 faults.",
     0},
    {COMMAND_BENCH, "bench", "", "measure this machine's ceilings and our share of them",
     "Ceilings and model are measured in the same run, so the shares hold on a busy machine too. "
     "On a\n"
     "GPU it makes its own random weights (3.6 GB below TMPDIR, removed at once) unless --model "
     "names\n"
     "a folder, and runs three workloads beside their roofline; docs/performance.md explains them.",
     0},
    {COMMAND_VERSION, "version", "", "print version, build, libraries and vector unit", "", 0},
    {COMMAND_HELP, "help", "[COMMAND]", "explain a command and its options", "", 1},
};
const size_t command_count = TR_COUNT(command_table);

const struct option option_table[] = {
    {"model", MODEL, OPTION_TEXT, NULL, 0, 0, NULL, "DIR", "Model",
     "Hugging Face model folder: as downloaded, a hub cache, or a ModelScope folder"},
    {"chat-template", ENGINE, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Model",
     "Jinja chat template to use in place of the folder's own"},

    {"source", QUEUE | BROKER | DOCTOR, OPTION_TEXT, NULL, 0, 0, NULL, "URL", "Queue",
     "where jobs come from: kafka://HOST[:PORT][,HOST...]/TOPIC, redis://HOST[:PORT]/STREAM "
     "(rediss:// with TLS), redis-sentinel://HOST[,HOST...]/STREAM (rediss-sentinel:// with TLS), "
     "or file://PATH"},
    {"group", WORKER | INIT | GROUP | DOCTOR, OPTION_TEXT, "tranche", 0, 0, NULL, "NAME", "Queue",
     "consumer group: workers of one group share the messages"},
    {"broker-config", QUEUE | BROKER | DOCTOR, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Queue",
     "file of `name = value` lines for the broker's client: TLS, SASL; NAME.file reads a secret"},
    {"allow-insecure", RUN | ROWS | DOCTOR | MIGRATE | QUEUE | CONSOLE, OPTION_FLAG, "false", 0, 0,
     NULL, NULL, "Queue",
     "let jobs and rows travel unverified or in plain text to another machine"},
    {"dead-letters-to", WORKER, OPTION_TEXT, NULL, 0, 0, NULL, "URL", "Queue",
     "copy this queue's dead letters to another one, named as --source is; default: the rows are "
     "all there is"},
    {"dead-letters-config", WORKER, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Queue",
     "as --broker-config, for --dead-letters-to; default: --broker-config"},
    {"partition", WORKER | SEEK | AUDIT, OPTION_INT, "-1", -1, 255, NULL, "N", "Queue",
     "only this partition (Kafka); a worker reads it up to the end that it has at start and leaves "
     "with 0; -1: what the group assigns, or all"},
    {"idle-exit", WORKER, OPTION_DURATION, "0s", 0, 86400, NULL, "TIME", "Queue",
     "leave with 0 once nothing was left to do for this long; 0s: never"},
    {"tombstone-cancels", WORKER | AUDIT, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Queue",
     "a Kafka message without a value cancels the jobs of its partition that have its key; else it "
     "is a bad line"},
    {"partitions", INIT, OPTION_INT, "12", 1, 256, NULL, "N", "Queue",
     "partitions of a new topic: as many workers can share it"},
    {"replicas", INIT, OPTION_INT, "-1", -1, 32, NULL, "N", "Queue",
     "replicas of a new topic; -1: the broker's default"},
    {"from-end", INIT, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Queue",
     "a new group starts at the end of the topic, not at its first message"},
    {"drop-group", INIT, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Queue",
     "make nothing: remove a Redis stream's group that nobody reads any more, which would keep the "
     "stream from being trimmed"},
    {"connect-timeout", RUN | ROWS | DOCTOR | MIGRATE | QUEUE | CONSOLE, OPTION_DURATION, "60s", 0,
     86400, NULL, "TIME", "Queue",
     "how long the start waits for a broker or database that does not answer"},

    {"engine", WORK | DOCTOR, OPTION_CHOICE, "model", 0, 0, "model|sim", "NAME", "Engine",
     "model: runs the model; sim: simulated completions, for tests of everything around it"},
    {"device", ENGINE, OPTION_TEXT, "auto", 0, 0, NULL, "cpu|cuda:N,...", "Engine",
     "what the model runs on; auto: the first GPU where this build and the model fit it, else the "
     "CPU; cuda:0,cuda:1: an engine on each, fed from one intake"},
    {"slots", ENGINE, OPTION_INT, "0", 0, 4096, NULL, "N", "Engine",
     "sequences that run at once; 0: chosen"},
    {"max-model-len", ENGINE, OPTION_INT, "0", 0, 1 << 24, NULL, "TOKENS", "Engine",
     "longest prompt and output together; 0: the model's, cut to what memory holds"},
    {"kv-bytes", ENGINE, OPTION_SIZE, "0", 0, 64 * TIB, NULL, "SIZE", "Engine",
     "memory for keys and values; 0: chosen from what is free"},
    {"step-tokens", ENGINE, OPTION_INT, "0", 0, 1 << 20, NULL, "TOKENS", "Engine",
     "tokens that one step computes at most (a GPU: 32768); 0: chosen"},
    {"chunk-tokens", ENGINE, OPTION_INT, "0", 0, 1 << 20, NULL, "TOKENS", "Engine",
     "longest piece of one prompt in a step; 0: the step's budget"},
    {"prefix-sharing", ENGINE, OPTION_FLAG, "true", 0, 0, NULL, NULL, "Engine",
     "compute and store a prefix that prompts share once; changes no byte of output"},
    {"graphs", ENGINE, OPTION_FLAG, "true", 0, 0, NULL, NULL, "Engine",
     "launch a GPU's step as one CUDA graph; changes no byte of output"},
    {"threads", ENGINE, OPTION_INT, "0", 0, 1024, NULL, "N", "Engine",
     "compute threads; 0: the CPUs this process may run on, as far as its control group grants "
     "them"},
    {"isa", ENGINE, OPTION_CHOICE, "auto", 0, 0, "auto|scalar|avx2|avx512", "NAME", "Engine",
     "vector unit; auto: the best that this CPU has"},

    {"db", WORK | SUBMIT | ROWS | DOCTOR | MIGRATE | CONSOLE, OPTION_TEXT, "tranche.db", 0, 0, NULL,
     "FILE|URL", "Rows",
     "SQLite file, made where it does not exist; or postgres://user@host/database"},
    {"db-password-file", WORK | SUBMIT | ROWS | DOCTOR | MIGRATE | CONSOLE, OPTION_TEXT, NULL, 0, 0,
     NULL, "FILE", "Rows", "file with the password for --db; read again at each connect"},
    {"run", WORK | SUBMIT | EXPORT | CONSOLE, OPTION_TEXT, "main", 0, 0, NULL, "NAME", "Rows",
     "name of the run: another model or parameter set runs beside it under its own name (status, "
     "dlq, prune: every run unless named)"},
    {"batch", WORK | ROWS | SUBMIT | PRUNE | AUDIT, OPTION_TEXT, NULL, 0, 0, NULL, "NAME", "Rows",
     "batch of jobs that name none; default: the file's name without its suffix, or the topic"},
    {"flush-rows", WORK, OPTION_INT, "512", 1, 65536, NULL, "N", "Rows",
     "rows that one transaction writes at most"},
    {"flush-interval", WORK, OPTION_DURATION, "5s", 0.01, 3600, NULL, "TIME", "Rows",
     "longest wait of a finished row for its transaction"},
    {"spool-dir", WORK | DOCTOR, OPTION_TEXT, NULL, 0, 0, NULL, "DIR", "Rows",
     "keep finished rows in this folder while the database is away, also over a restart; one "
     "folder "
     "a worker; default: they wait in memory"},
    {"spool-bytes", WORK | DOCTOR, OPTION_SIZE, "1GiB", MIB, TIB, NULL, "SIZE", "Rows",
     "what --spool-dir may hold; when it is full, no new sequence is begun"},
    {"show", RUN, OPTION_INT, "0", 0, 1000, NULL, "N", "Rows",
     "at the end print the first N rows, the counts and what to try next"},

    {"timeout", SMOKE, OPTION_DURATION, "5m", 1, 86400, NULL, "TIME", "Operator",
     "how long the prompt may take to its row, the start of a worker from nothing included"},
    {"filter", DLQ, OPTION_TEXT, NULL, 0, 0, NULL, "NAME=VALUE,..", "Operator",
     "which dead letters: run, batch, id, reason, key; state=open|redriven|any"},
    {"limit", DLQ | AUDIT | DIFF, OPTION_INT, "100", 0, 1e9, NULL, "N", "Operator",
     "list at most so many; 0: all"},
    {"cluster", DOCTOR, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Operator",
     "look at `kubectl get pods,events,pvc,resourcequota,configmaps -o json` in place of this "
     "machine; \"-\": "
     "standard input"},
    {"list", DIFF, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Operator",
     "the jobs that differ too, in order of batch and id"},
    {"longer-than", DIFF, OPTION_REAL, "1.5", 1, 1e6, NULL, "TIMES", "Operator",
     "an answer with more than so many times the tokens counts as longer"},
    {"fail-on", DIFF, OPTION_TEXT, "missing,failed,wrong", 0, 0, NULL, "NAME,..", "Operator",
     "what makes the exit code 3: missing, extra, request, failed, mended, changed, longer, wrong, "
     "right; none: nothing does"},
    {"ids", CANCEL, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Operator",
     "file with an id a line; \"-\": standard input"},
    {"reason", CANCEL, OPTION_TEXT, NULL, 0, 0, NULL, "TEXT", "Operator",
     "kept with the cancellation, for people"},
    {"undo", CANCEL, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Operator",
     "take the cancellation back; rows that it caused stay"},
    {"to", SEEK, OPTION_TEXT, NULL, 0, 0, NULL, "WHERE", "Operator",
     "earliest, end, an offset, or a time such as 2026-01-31T12:00:00Z"},
    {"range", AUDIT, OPTION_TEXT, NULL, 0, 0, NULL, "FROM..TO", "Operator",
     "offsets or times; either may be left out; default: all that is acknowledged"},
    {"requeue", AUDIT, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Operator",
     "send what is missing again"},
    {"older-than", PRUNE, OPTION_DURATION, NULL, 0, 1e9, NULL, "TIME", "Operator",
     "age from which rows go: 30d"},
    {"tables", PRUNE, OPTION_TEXT, "results,dead_letters,parked,attempts", 0, 0, NULL, "NAME,..",
     "Operator", "of which tables; cancellations is one too"},
    {"chunk-rows", PRUNE, OPTION_INT, "2000", 1, 1000000, NULL, "N", "Operator",
     "rows that one transaction removes at most"},
    {"uncopied", PRUNE, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Operator",
     "dead letters too whose copy to a queue is still owed: where no worker has --dead-letters-to"},
    {"dry-run", DLQ | SEEK | PRUNE, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Operator",
     "say what would be done, and do nothing"},

    {"default-max-tokens", WORK, OPTION_INT, "2048", 1, 1 << 24, NULL, "TOKENS", "Jobs",
     "max_tokens of chat jobs that name none; max_new_tokens of generation_config.json comes "
     "first"},
    {"canary", WORK | AUDIT, OPTION_REAL, "100", 0.001, 100, NULL, "PERCENT", "Jobs",
     "take only this share of the jobs, by the hash of their id, and acknowledge the rest without "
     "a "
     "row: for a run and a group of their own beside another"},
    {"job-config", WORK, OPTION_TEXT, NULL, 0, 0, NULL, "DIR", "Jobs",
     "defaults.json, chat_template.jinja, system.txt and system.BATCH.txt, as a ConfigMap is "
     "mounted; read again when they change, without a restart"},
    {"plain-content", WORK, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Jobs",
     "encode message contents as plain text, so that no special token in them is obeyed; the "
     "default gives Hugging Face's ids"},
    {"generation-config", WORK, OPTION_FLAG, "true", 0, 0, NULL, NULL, "Jobs",
     "the folder's generation_config.json stands in where a job names no sampling parameter"},
    {"claim-rows", WORK, OPTION_INT, "16384", 1, 1 << 24, NULL, "N", "Jobs",
     "jobs held in memory at once"},
    {"claim-bytes", WORK, OPTION_SIZE, "256MiB", 64 * KIB, TIB, NULL, "SIZE", "Jobs",
     "their bytes"},
    {"worker-name", WORK, OPTION_TEXT, NULL, 0, 0, NULL, "NAME", "Jobs",
     "what rows say of who ran them; default: host:pid"},
    {"prepare-threads", WORK, OPTION_INT, "0", 0, 256, NULL, "N", "Jobs",
     "threads that render templates and tokenize; 0: chosen"},
    {"grace", WORK | DOCTOR, OPTION_DURATION, "30s", 0, 86400, NULL, "TIME", "Jobs",
     "after Ctrl-C or SIGTERM, be gone by then: three quarters for what runs to finish, then the "
     "rest is "
     "parked"},
    {"strict", RUN, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Jobs",
     "exit 3 when a row failed or was invalid"},
    {"http", WORK, OPTION_TEXT, NULL, 0, 0, NULL, "HOST:PORT", "Jobs",
     "answer /healthz, /readyz, /metrics and a status page there; default: nowhere"},
    {"progress", WORK, OPTION_CHOICE, "auto", 0, 0, "auto|live|plain|off", "KIND", "Jobs",
     "auto: a live line on a terminal, else plain lines"},

    {"supervise", WORK, OPTION_FLAG, "true", 0, 0, NULL, NULL, "Crashes",
     "a small parent process starts the worker again when it dies, and records why"},
    {"watchdog", WORK, OPTION_DURATION, "5m", 0, 86400, NULL, "TIME", "Crashes",
     "a step of an engine that takes longer is a hang: the worker is killed; 0s: never"},
    {"memory-limit", WORK | DOCTOR, OPTION_SIZE, "0", 0, 64 * TIB, NULL, "SIZE", "Crashes",
     "a worker with more resident memory is killed; set it below the container's limit, which "
     "leaves nobody to record why; 0: none"},
    {"restarts", WORK, OPTION_INT, "20", 0, 1 << 20, NULL, "N", "Crashes",
     "new starts in a row without a row written before it gives up; 0: never start again"},
    {"breaker", WORKER, OPTION_REAL, "0.2", 0.01, 1, NULL, "SHARE", "Crashes",
     "intake stops when more than this share of the last 200 jobs failed in the engine, and one is "
     "tried at a time; 1: never"},

    {"sim-step", WORK, OPTION_DURATION, "0s", 0, 60, NULL, "TIME", "Simulated engine",
     "time that a step takes"},
    {"sim-tokens", WORK, OPTION_INT, "32", 1, 65536, NULL, "N", "Simulated engine",
     "mean length of a completion"},
    {"sim-fail-share", WORK, OPTION_REAL, "0", 0, 1, NULL, "SHARE", "Simulated engine",
     "share of requests that fail"},
    {"sim-poison-id", WORK, OPTION_INT, "-1", -1, 1 << 24, NULL, "ID", "Simulated engine",
     "a prompt with this token id ends the process; -1: none"},
    {"sim-poison", WORK, OPTION_CHOICE, "abort", 0, 0, "abort|segfault|hang|memory|each", "KIND",
     "Simulated engine", "how it does; each: the id aborts, the ones behind it do the others"},
    {"sim-crash-after", WORK, OPTION_INT, "0", 0, 1e15, NULL, "STEPS", "Simulated engine",
     "the process kills itself at this step; 0: never"},
    {"sim-fault-after", WORK, OPTION_INT, "0", 0, 1e15, NULL, "STEPS", "Simulated engine",
     "the first of --device's engines is lost at this step, as a GPU is; 0: never"},

    {"output", EXPORT, OPTION_TEXT, "-", 0, 0, NULL, "FILE", "Files",
     "batch output file; \"-\": standard output"},
    {"errors", EXPORT, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Files",
     "batch error file; default: the output's name with .errors.jsonl, made when there is one"},

    {"decode", TOKENIZE, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Tokens",
     "arrays of ids in, JSON strings out"},
    {"add-special", TOKENIZE, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Tokens",
     "add what the tokenizer puts around a text (bos, eos)"},
    {"plain-text", TOKENIZE, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Tokens",
     "special tokens written in the text are plain text"},
    {"skip-special", TOKENIZE, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Tokens",
     "with --decode: leave special tokens out"},

    {"compare", BENCH, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Measuring",
     "earlier --json output: print each figure beside it"},
    {"workloads", BENCH, OPTION_TEXT, "W1,W2,W3,one,steps", 0, 0, NULL, "LIST", "Measuring",
     "what is run on a GPU: W1, W2, W3 (whole runs), one (a sequence alone), steps (steps by op, "
     "products, decode attention, a sweep of slots)"},
    {"scale", BENCH, OPTION_REAL, "1", 0.001, 100, NULL, "SHARE", "Measuring",
     "share of the requests of W1, W2 and W3 (15,000, 5,000, 25,000)"},
    {"greedy", BENCH, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Measuring",
     "W1, W2 and W3 at temperature 0; default: 0.6, top_p 0.95"},
    {"text", BENCH, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Measuring",
     "text for the tokenizer; default: words of its own vocabulary, common ones more often"},
    {"measure", BENCH, OPTION_DURATION, "2s", 0.05, 600, NULL, "TIME", "Measuring",
     "time spent on each figure at least"},

    {"json", DOCTOR | BENCH | COMMAND_VERSION | STATUS | DLQ | DIFF | SMOKE, OPTION_FLAG, "false",
     0, 0, NULL, NULL, "Output", "one JSON document on standard output"},
    {"markdown", COMMAND_HELP, OPTION_FLAG, "false", 0, 0, NULL, NULL, "Output",
     "all commands and options as Markdown: docs/config.md"},
    {"config", ALL, OPTION_TEXT, NULL, 0, 0, NULL, "FILE", "Output",
     "file of `name = value` lines; # starts a comment line"},
    {"log-level", ALL, OPTION_CHOICE, "info", 0, 0, "debug|info|warn|error|off", "LEVEL", "Output",
     "lowest level that is logged on standard error"},
    {"log-format", ALL, OPTION_CHOICE, "logfmt", 0, 0, "logfmt|json", "FORMAT", "Output",
     "form of the log lines"},
};
const size_t option_count = TR_COUNT(option_table);
static_assert(TR_COUNT(option_table) <= CONFIG_OPTIONS_MAX, "CONFIG_OPTIONS_MAX");
