-- What was said stands apart from what becomes of it: a claim and a settlement write a short row again, not the page of a body.

ALTER TABLE notices RENAME TO whole_notices;
CREATE TABLE notices (
  arrival INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  channel TEXT NOT NULL,
  provider TEXT NOT NULL,
  at INTEGER NOT NULL,
  submission_id TEXT,
  job_id TEXT,
  headers TEXT NOT NULL,
  http_status INTEGER,
  outcome TEXT,
  reason TEXT,
  status TEXT,
  repeats INTEGER NOT NULL,
  last_at INTEGER,
  tries INTEGER NOT NULL,
  remote_id TEXT,
  claimed_by TEXT
) STRICT;
CREATE TABLE bodies (
  arrival INTEGER PRIMARY KEY,  -- of its notice; one without a row here is empty
  body BLOB NOT NULL
) STRICT;
INSERT INTO notices
  SELECT arrival, id, channel, provider, at, submission_id, job_id, headers, http_status, outcome, reason, status, repeats, last_at, tries,
    remote_id, claimed_by
  FROM whole_notices ORDER BY arrival;
INSERT INTO bodies SELECT arrival, body FROM whole_notices WHERE length(body) > 0 ORDER BY arrival;
DROP TABLE whole_notices;

CREATE INDEX notices_unclaimed ON notices (arrival) WHERE outcome IS NULL AND claimed_by IS NULL;
CREATE INDEX notices_claimed ON notices (submission_id, claimed_by) WHERE outcome IS NULL AND claimed_by IS NOT NULL;
CREATE INDEX notices_of_no_job ON notices (submission_id) WHERE job_id IS NULL AND submission_id IS NOT NULL;
CREATE INDEX notices_by_job ON notices (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX notices_set_aside ON notices (outcome, arrival)
  WHERE outcome IN ('unreadable', 'mismatched', 'waiting', 'refuted', 'orphan');
CREATE INDEX notices_orphans_by_id ON notices (provider, remote_id)
  WHERE outcome = 'orphan' AND submission_id IS NULL AND remote_id IS NOT NULL;
CREATE INDEX notices_orphaned ON notices (at) WHERE outcome = 'orphan';
CREATE INDEX notices_astray ON notices (at) WHERE submission_id IS NULL AND job_id IS NULL AND outcome IS NOT NULL;
