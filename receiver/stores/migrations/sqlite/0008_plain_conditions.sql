-- SQLite makes a table of an IN list, and in a generated column or the condition of an index it makes that table again for every row.

DROP INDEX jobs_open;
DROP INDEX jobs_overdeadline;
DROP INDEX jobs_ended;
DROP INDEX jobs_with_raw;
ALTER TABLE jobs DROP COLUMN ended_at;
ALTER TABLE jobs DROP COLUMN is_final;
ALTER TABLE jobs ADD COLUMN is_final INTEGER
  AS (status = 'succeeded' OR status = 'failed' OR status = 'cancelled' OR status = 'expired');
ALTER TABLE jobs ADD COLUMN ended_at INTEGER AS (CASE WHEN is_final THEN coalesce(finished_at, updated_at) END);
CREATE INDEX jobs_open ON jobs (provider, status, remote_id) WHERE is_final = 0;
CREATE INDEX jobs_overdeadline ON jobs (deadline_at) WHERE is_final = 0;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE is_final = 1;
CREATE INDEX jobs_with_raw ON jobs (ended_at) WHERE is_final = 1 AND has_raw = 1;

DROP INDEX notices_set_aside;
CREATE INDEX notices_set_aside ON notices (outcome, arrival)
  WHERE (outcome = 'unreadable' OR outcome = 'mismatched' OR outcome = 'waiting' OR outcome = 'refuted' OR outcome = 'orphan');
