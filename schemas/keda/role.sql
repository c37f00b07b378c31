-- Who may run predicted_work.sql and read nothing else: counts and costs, no prompt, no answer, no
-- name of a model. Run it once as the database's owner; then
--   CREATE ROLE keda LOGIN PASSWORD '..' CONNECTION LIMIT 4 IN ROLE tranche_keda;
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'tranche_keda') THEN
        CREATE ROLE tranche_keda NOLOGIN;
    END IF;
END $$;
GRANT USAGE ON SCHEMA tranche TO tranche_keda;
GRANT SELECT (run, batch_id, total, rows_ok, rows_failed, rows_invalid, rows_expired, rows_cancelled,
              rows_dead, dead_letters, updated_at) ON tranche.batches TO tranche_keda;
GRANT SELECT (run, batch_id, custom_id, status, device_seconds) ON tranche.results TO tranche_keda;
GRANT SELECT (run, batch_id, custom_id, reason) ON tranche.dead_letters TO tranche_keda;
