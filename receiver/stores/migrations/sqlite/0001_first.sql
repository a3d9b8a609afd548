-- Times are integer microseconds since 1970. `claimed_by` is the node that works on a row; NULL: anybody may claim it.

CREATE TABLE nodes (
  id TEXT PRIMARY KEY,
  checks INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE submissions (
  id TEXT PRIMARY KEY,
  provider TEXT NOT NULL,
  operation TEXT NOT NULL,
  model TEXT,
  media TEXT,
  metadata TEXT NOT NULL,
  count INTEGER NOT NULL,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  next_attempt_at INTEGER NOT NULL,
  sent_at INTEGER,
  deadline_seconds REAL NOT NULL,
  created_at INTEGER NOT NULL,
  api_key_id TEXT NOT NULL,
  idempotency_key TEXT,
  body_hash TEXT NOT NULL,
  version INTEGER NOT NULL,
  claimed_by TEXT
) STRICT;
CREATE UNIQUE INDEX submissions_by_key ON submissions (api_key_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX submissions_waiting ON submissions (provider, next_attempt_at) WHERE state = 'waiting' AND claimed_by IS NULL;
CREATE INDEX submissions_lost ON submissions (sent_at) WHERE state = 'sent' AND claimed_by IS NULL;
CREATE INDEX submissions_claimed ON submissions (claimed_by) WHERE claimed_by IS NOT NULL;

-- Up to 1 MiB each and hardly ever changed: kept out of the rows that change often.
CREATE TABLE inputs (
  submission_id TEXT PRIMARY KEY,
  input TEXT NOT NULL
) STRICT;

CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  submission_id TEXT NOT NULL,
  provider TEXT NOT NULL,
  operation TEXT NOT NULL,
  model TEXT,
  media TEXT,
  status TEXT NOT NULL,
  remote_id TEXT,
  outputs TEXT NOT NULL,
  error TEXT,
  progress REAL,
  cost TEXT,
  metadata TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  submitted_at INTEGER,
  updated_at INTEGER NOT NULL,
  finished_at INTEGER,
  finished_by TEXT,
  deadline_at INTEGER NOT NULL,
  position INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  is_own_verdict INTEGER NOT NULL,
  polling_url TEXT,
  processing_event_at INTEGER,
  has_raw INTEGER NOT NULL DEFAULT 1,  -- bodies of its notices may still be there
  is_final INTEGER AS (status IN ('succeeded', 'failed', 'cancelled', 'expired')),
  ended_at INTEGER AS (CASE WHEN status IN ('succeeded', 'failed', 'cancelled', 'expired') THEN coalesce(finished_at, updated_at) END),
  is_lost INTEGER AS (
    remote_id IS NULL
    AND (status = 'unconfirmed' OR (is_own_verdict = 1 AND coalesce(json_extract(error, '$.code'), '') = 'submit_unknown'))
  )
) STRICT;
CREATE INDEX jobs_by_time ON jobs (created_at, id);
CREATE INDEX jobs_by_provider ON jobs (provider, created_at, id);
CREATE INDEX jobs_by_model ON jobs (model, created_at, id);
CREATE INDEX jobs_by_status ON jobs (status, created_at, id);
CREATE INDEX jobs_by_submission ON jobs (submission_id, position);
CREATE INDEX jobs_by_remote_id ON jobs (provider, remote_id) WHERE remote_id IS NOT NULL;
CREATE INDEX jobs_open ON jobs (provider, status, remote_id) WHERE is_final = 0;
CREATE INDEX jobs_overdeadline ON jobs (deadline_at) WHERE is_final = 0;
CREATE INDEX jobs_lost ON jobs (provider) WHERE is_lost = 1;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE is_final = 1;
CREATE INDEX jobs_with_raw ON jobs (ended_at) WHERE is_final = 1 AND has_raw = 1;

CREATE TABLE job_metadata (
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  job_id TEXT NOT NULL,
  PRIMARY KEY (key, value, created_at, job_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE notices (
  arrival INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  channel TEXT NOT NULL,
  provider TEXT NOT NULL,
  at INTEGER NOT NULL,
  submission_id TEXT,
  job_id TEXT,
  headers TEXT NOT NULL,
  body BLOB NOT NULL,
  http_status INTEGER,
  outcome TEXT,
  reason TEXT,
  status TEXT,
  repeats INTEGER NOT NULL,
  last_at INTEGER,
  tries INTEGER NOT NULL,
  claimed_by TEXT
) STRICT;
CREATE INDEX notices_unclaimed ON notices (arrival) WHERE outcome IS NULL AND claimed_by IS NULL;
CREATE INDEX notices_claimed ON notices (submission_id, claimed_by) WHERE outcome IS NULL AND claimed_by IS NOT NULL;
CREATE INDEX notices_by_submission ON notices (submission_id, job_id) WHERE submission_id IS NOT NULL;
CREATE INDEX notices_by_job ON notices (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX notices_set_aside ON notices (outcome, arrival)
  WHERE outcome IN ('unreadable', 'mismatched', 'waiting', 'refuted', 'orphan');
CREATE INDEX notices_orphaned ON notices (at) WHERE outcome = 'orphan';
CREATE INDEX notices_astray ON notices (at) WHERE submission_id IS NULL AND job_id IS NULL AND outcome IS NOT NULL;

-- What a submission's callbacks left with us, for the bound on it.
CREATE TABLE inboxes (
  submission_id TEXT PRIMARY KEY,
  callbacks INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  job_id TEXT,
  at INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  envelope TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX events_of_no_job ON events (at) WHERE job_id IS NULL;

-- stage: 0 held back by an earlier one, 1 not due yet, 2 ready to be claimed; NULL while running and afterwards.
CREATE TABLE deliveries (
  id TEXT PRIMARY KEY,
  event_id TEXT NOT NULL,
  event_type TEXT NOT NULL,
  job_id TEXT,
  handler TEXT NOT NULL,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  next_attempt_at INTEGER,
  last_error TEXT,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  is_ordered INTEGER NOT NULL,
  urgent_at INTEGER,
  stage INTEGER,
  claimed_by TEXT
) STRICT;
CREATE INDEX deliveries_ready ON deliveries (handler, urgent_at IS NULL, urgent_at, created_at) WHERE stage = 2;
CREATE INDEX deliveries_not_due ON deliveries (next_attempt_at) WHERE stage = 1;
CREATE INDEX deliveries_by_job ON deliveries (job_id, handler, sequence);
CREATE INDEX deliveries_by_time ON deliveries (created_at, id);
CREATE INDEX deliveries_by_handler ON deliveries (handler, created_at, id);
CREATE INDEX deliveries_not_done ON deliveries (state, created_at, id, handler) WHERE state <> 'done';
CREATE INDEX deliveries_claimed ON deliveries (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX deliveries_of_no_job ON deliveries (event_id) WHERE job_id IS NULL;

-- asked_at, asked_cancel: what was asked for while a node was polling; it counts when that node gives the poll back.
CREATE TABLE polls (
  job_id TEXT PRIMARY KEY,
  submission_id TEXT NOT NULL,
  provider TEXT NOT NULL,
  due_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  not_found INTEGER NOT NULL,
  cancel INTEGER NOT NULL,
  last_notice_id TEXT,
  last_hash TEXT,
  asked_at INTEGER,
  asked_cancel INTEGER NOT NULL DEFAULT 0,
  claimed_by TEXT
) STRICT;
CREATE INDEX polls_due ON polls (provider, due_at) WHERE claimed_by IS NULL;
CREATE INDEX polls_by_submission ON polls (submission_id);
CREATE INDEX polls_claimed ON polls (claimed_by) WHERE claimed_by IS NOT NULL;

CREATE TABLE calls (
  id TEXT PRIMARY KEY,
  submission_id TEXT NOT NULL,
  at INTEGER NOT NULL,
  http_status INTEGER,
  error TEXT
) STRICT;
CREATE INDEX calls_by_submission ON calls (submission_id, at);

CREATE TABLE leases (
  name TEXT PRIMARY KEY,
  node TEXT NOT NULL,
  ends_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE buckets (
  name TEXT PRIMARY KEY,
  full_at INTEGER NOT NULL  -- when all tokens that were given will have come back
) STRICT, WITHOUT ROWID;

CREATE TABLE breakers (
  provider TEXT PRIMARY KEY,
  failures INTEGER NOT NULL,
  open_until INTEGER,
  last_error TEXT,
  last_error_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE learned (
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  seconds TEXT NOT NULL,
  PRIMARY KEY (provider, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE counters (
  scope TEXT NOT NULL,
  name TEXT NOT NULL,
  count INTEGER NOT NULL,
  PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
