-- GPU-seconds that the jobs of run 'main' without a row will cost: KEDA's postgresql trigger in
-- k8s/components/predicted-work, word for word (a test holds them together). Jobs that are left, from
-- the total that `tranche submit` registered; times what a job of that batch costs, the mean of its
-- `ok` rows among the first 1,000 by id (device_seconds: prompt and answer, its share of each step).
-- No such row yet: 0.03 s, what 1,024 tokens take on an H100 at full slots (docs/scaling.md).
-- At least 0.001 s a job, so that what is left never reads as nothing. A batch in which nothing
-- happened for a day is not counted: its last messages may be lost, and would start pods for ever.
-- Nor is a job that has a letter for good and no row: the database could not hold it (`unstorable`;
-- looked for among a batch's first 1,000 letters by id). Every other letter stands beside a row of
-- its key, of the job that was given up or of the request that had the id first: that row counts.
SELECT coalesce(sum((b.jobs - never.jobs) * greatest(coalesce(c.seconds, 0.03), 0.001)), 0)
       ::double precision
FROM (SELECT run, batch_id, dead_letters, total - rows_ok - rows_failed - rows_invalid
             - rows_expired - rows_cancelled - rows_dead AS jobs
      FROM tranche.batches
      WHERE run = 'main' AND updated_at > now() - interval '1 day') b
CROSS JOIN LATERAL (
    SELECT avg(device_seconds) FILTER (WHERE status = 'ok') AS seconds
    FROM (SELECT status, device_seconds FROM tranche.results r
          WHERE r.run = b.run AND r.batch_id = b.batch_id
          ORDER BY custom_id LIMIT 1000) first) c
CROSS JOIN LATERAL (
    SELECT count(DISTINCT custom_id) AS jobs
    FROM (SELECT custom_id, reason FROM tranche.dead_letters d
          WHERE b.dead_letters > 0 AND d.run = b.run AND d.batch_id = b.batch_id
          ORDER BY custom_id LIMIT 1000) first
    WHERE reason = 'unstorable'
      AND (SELECT r.status FROM tranche.results r WHERE r.run = b.run
           AND r.batch_id = b.batch_id AND r.custom_id = first.custom_id) IS NULL) never
WHERE b.jobs > never.jobs AND b.jobs > 0
