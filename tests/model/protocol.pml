/* protocol: two workers, three jobs, a broker, a database, and what may go wrong: a worker dies at
 * any step; a lease ends under a worker that sleeps or is cut off, which then goes on as a zombie; the
 * answer to a COMMIT is lost and all is sent again. tests/model/check.py runs it over every
 * interleaving, and each mutant below, which must fail.
 *
 * Kept of the code: the durable order (lookup, attempt, run, COMMIT of row and watermark, ack), a
 * key's first row stays, a watermark that a worker knows only from what it has seen itself since it
 * began at the stored one, acks without an owner check. Left out: what rows hold, batches, time.
 *
 * I1 one row a job, and in the end all have theirs (`whole`)
 * I2 no row of a job that was not sent: job 2 is sent late, by `producer`
 * I3 a row is what its job makes
 * I4 no ack without a row
 * I5 the group's offset (the prefix that its committer has settled) never exceeds the stored
 *    watermark, nor that the prefix of rows
 *
 * Mutants: ACK_FIRST (before the COMMIT), NO_CONFLICT (insert without ON CONFLICT), TWO_STEPS (the
 * watermark in a transaction ahead of the row's), PRESENT_AT_ONCE (a job whose row was there is
 * acknowledged without storing the watermark), LOOKUP_BLIND (no lookup, and rows written by UPSERT),
 * NO_REDELIVERY (what a dead worker held is nobody's). */
#define JOBS    3
#define WORKERS 2
#ifndef FAULTS
#define FAULTS 2 /* over the whole run */
#endif
#define ANSWER(j) ((j) + 10)

bool sent[JOBS];
byte holder[JOBS]; /* worker + 1; 0: nobody */
bool acked[JOBS];
byte rows[JOBS], content[JOBS];
byte watermark, offset;
byte faults;
bool dies[WORKERS];

inline store_watermark()
{
    k = 0;
    do
    :: k < JOBS && (k < from || seen[k]) -> k++
    :: else -> break
    od;
    if
    :: k > watermark -> watermark = k /* the statement's WHERE: never lowered */
    :: else
    fi;
    k = 0
}

inline commit_offset()
{
    k = 0;
    do
    :: k < JOBS && (k < from || settled[k]) -> k++
    :: else -> break
    od;
    if
    :: k > offset -> offset = k
    :: else
    fi;
    k = 0
}

/* A new life: what the worker knew is gone, what it held is free (its lease is over). */
inline reborn()
{
    k = 0;
    do
    :: k < JOBS ->
        seen[k] = false;
        settled[k] = false;
#ifndef NO_REDELIVERY
        if
        :: holder[k] == me + 1 -> holder[k] = 0
        :: else
        fi;
#endif
        k++
    :: else -> break
    od;
    k = 0;
    j = 0;
    from = watermark;
    dies[me] = false
}

proctype worker(byte me)
{
    byte j, k, from;
    bool seen[JOBS], settled[JOBS], there;
    /* `unless` looks before every step of what follows; a d_step is one. */
live:
    {
        do
        :: d_step { sent[0] && !acked[0] && holder[0] == 0 -> j = 0; holder[0] = me + 1 };
            goto claimed
        :: d_step { sent[1] && !acked[1] && holder[1] == 0 -> j = 1; holder[1] = me + 1 };
            goto claimed
        :: d_step { sent[2] && !acked[2] && holder[2] == 0 -> j = 2; holder[2] = me + 1 };
            goto claimed
        :: acked[0] && acked[1] && acked[2] -> goto finish
        od;
claimed:
        skip;
#ifdef LOOKUP_BLIND
        there = false;
#else
        there = rows[j] > 0;
#endif
        if
        :: there -> goto present
        :: !there
        fi;
        skip; /* the attempt is counted and the engine runs: neither is seen by anybody here */
#ifdef ACK_FIRST
        d_step { acked[j] = true; holder[j] = (holder[j] == me + 1 -> 0 : holder[j]) };
#endif
again:
        skip;
#ifdef TWO_STEPS
        d_step { seen[j] = true; store_watermark() };
#endif
        d_step {
#ifdef NO_CONFLICT
            rows[j]++;
            content[j] = ANSWER(j);
#else
#ifdef LOOKUP_BLIND
            rows[j]++;
            content[j] = ANSWER(j) + me;
#else
            if
            :: rows[j] == 0 -> rows[j] = 1; content[j] = ANSWER(j)
            :: else
            fi;
#endif
#endif
            seen[j] = true;
            store_watermark()
        };
        if
        :: d_step { faults < FAULTS -> faults++ }; goto again /* the answer was lost */
        :: goto acknowledge
        fi;
present:
        skip;
#ifdef PRESENT_AT_ONCE
        seen[j] = true;
#else
        d_step { seen[j] = true; store_watermark() };
#endif
acknowledge:
        skip;
        d_step {
            acked[j] = true;
            holder[j] = (holder[j] == me + 1 -> 0 : holder[j]);
            settled[j] = true;
            j = 0;
            commit_offset()
        };
        goto live
    } unless { d_step { dies[me] -> reborn() }; goto live };
finish:
    skip
}

/* A Kafka offset says that all before it are acknowledged: jobs are sent in order. */
proctype producer()
{
    sent[0] = true;
    sent[1] = true;
    sent[2] = true
}

/* A process dies; or a lease ends, and its holder does not know: it slept, or was cut off. */
proctype chaos()
{
    do
    :: d_step { faults < FAULTS && !dies[0] -> faults++; dies[0] = true }
    :: d_step { faults < FAULTS && !dies[1] -> faults++; dies[1] = true }
    :: d_step { faults < FAULTS && holder[0] > 0 -> faults++; holder[0] = 0 }
    :: d_step { faults < FAULTS && holder[1] > 0 -> faults++; holder[1] = 0 }
    :: d_step { faults < FAULTS && holder[2] > 0 -> faults++; holder[2] = 0 }
    :: faults == FAULTS || (acked[0] && acked[1] && acked[2]) -> break
    od
}

init
{
    atomic { run worker(0); run worker(1); run producer(); run chaos() }
}

#define I1(j)  (rows[j] <= 1)
#define I2(j)  (rows[j] == 0 || sent[j])
#define I3(j)  (rows[j] == 0 || content[j] == ANSWER(j))
#define I4(j)  (!acked[j] || rows[j] > 0)
#define SAFE(j) (I1(j) && I2(j) && I3(j) && I4(j))
#define ACKS_BELOW (offset <= watermark)
#define ROWS_BELOW                                                                                 \
    ((watermark < 1 || rows[0] > 0) && (watermark < 2 || rows[1] > 0) &&                           \
     (watermark < 3 || rows[2] > 0))
#define ALL_DONE (acked[0] && acked[1] && acked[2] && rows[0] == 1 && rows[1] == 1 && rows[2] == 1)

ltl safe { [] (SAFE(0) && SAFE(1) && SAFE(2) && ACKS_BELOW && ROWS_BELOW) }
ltl whole { <> ALL_DONE }
