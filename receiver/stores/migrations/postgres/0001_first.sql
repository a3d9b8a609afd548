-- Times are integer microseconds since 1970 by the database's clock. `claimed_by` is the node that works on a row; NULL: anybody may claim it.

CREATE TABLE nodes (
  id text COLLATE "C" PRIMARY KEY,
  seen_at bigint NOT NULL,
  checks bigint NOT NULL DEFAULT 0
);

-- Grows after commits; who has no LISTEN looks at it.
CREATE SEQUENCE changes;

-- An event's position is base + (its transaction's id << 20) + its number within the transaction.
CREATE TABLE positions (
  base bigint NOT NULL
);
INSERT INTO positions (base) VALUES (0);

CREATE TABLE submissions (
  id text COLLATE "C" PRIMARY KEY,
  provider text COLLATE "C" NOT NULL,
  operation text COLLATE "C" NOT NULL,
  model text COLLATE "C",
  media text COLLATE "C",
  metadata text COLLATE "C" NOT NULL,
  count bigint NOT NULL,
  state text COLLATE "C" NOT NULL,
  attempts bigint NOT NULL,
  next_attempt_at bigint NOT NULL,
  sent_at bigint,
  deadline_seconds double precision NOT NULL,
  created_at bigint NOT NULL,
  api_key_id text COLLATE "C" NOT NULL,
  idempotency_key text COLLATE "C",
  body_hash text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  claimed_by text COLLATE "C"
);
CREATE UNIQUE INDEX submissions_by_key ON submissions (api_key_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX submissions_waiting ON submissions (provider, next_attempt_at, id) WHERE state = 'waiting' AND claimed_by IS NULL;
CREATE INDEX submissions_lost ON submissions (sent_at) WHERE state = 'sent' AND claimed_by IS NULL;
CREATE INDEX submissions_claimed ON submissions (claimed_by) WHERE claimed_by IS NOT NULL;

-- Up to 1 MiB each and hardly ever changed: kept out of the rows that change often.
CREATE TABLE inputs (
  submission_id text COLLATE "C" PRIMARY KEY,
  input text COLLATE "C" NOT NULL
);

CREATE TABLE jobs (
  id text COLLATE "C" PRIMARY KEY,
  submission_id text COLLATE "C" NOT NULL,
  provider text COLLATE "C" NOT NULL,
  operation text COLLATE "C" NOT NULL,
  model text COLLATE "C",
  media text COLLATE "C",
  status text COLLATE "C" NOT NULL,
  remote_id text COLLATE "C",
  outputs text COLLATE "C" NOT NULL,
  error text COLLATE "C",
  progress double precision,
  cost text COLLATE "C",
  metadata text COLLATE "C" NOT NULL,
  created_at bigint NOT NULL,
  submitted_at bigint,
  updated_at bigint NOT NULL,
  finished_at bigint,
  finished_by text COLLATE "C",
  deadline_at bigint NOT NULL,
  position bigint NOT NULL,
  sequence bigint NOT NULL,
  is_own_verdict boolean NOT NULL,
  polling_url text COLLATE "C",
  processing_event_at bigint,
  has_raw boolean NOT NULL DEFAULT true,  -- bodies of its notices may still be there
  is_final boolean GENERATED ALWAYS AS (status IN ('succeeded', 'failed', 'cancelled', 'expired')) STORED,
  ended_at bigint GENERATED ALWAYS AS (
    CASE WHEN status IN ('succeeded', 'failed', 'cancelled', 'expired') THEN coalesce(finished_at, updated_at) END
  ) STORED,
  is_lost boolean GENERATED ALWAYS AS (
    remote_id IS NULL AND (status = 'unconfirmed' OR (is_own_verdict AND coalesce(error::json ->> 'code', '') = 'submit_unknown'))
  ) STORED
);
CREATE INDEX jobs_by_time ON jobs (created_at, id);
CREATE INDEX jobs_by_provider ON jobs (provider, created_at, id);
CREATE INDEX jobs_by_model ON jobs (model, created_at, id);
CREATE INDEX jobs_by_status ON jobs (status, created_at, id);
CREATE INDEX jobs_by_submission ON jobs (submission_id, position);
CREATE INDEX jobs_by_remote_id ON jobs (provider, remote_id) WHERE remote_id IS NOT NULL;
CREATE INDEX jobs_open ON jobs (provider, status, remote_id) WHERE NOT is_final;
CREATE INDEX jobs_overdeadline ON jobs (deadline_at) WHERE NOT is_final;
CREATE INDEX jobs_lost ON jobs (provider) WHERE is_lost;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE is_final;
CREATE INDEX jobs_with_raw ON jobs (ended_at) WHERE is_final AND has_raw;

CREATE TABLE job_metadata (
  key text COLLATE "C" NOT NULL,
  value text COLLATE "C" NOT NULL,
  created_at bigint NOT NULL,
  job_id text COLLATE "C" NOT NULL,
  PRIMARY KEY (key, value, created_at, job_id)
);

CREATE TABLE notices (
  arrival bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id text COLLATE "C" NOT NULL UNIQUE,
  channel text COLLATE "C" NOT NULL,
  provider text COLLATE "C" NOT NULL,
  at bigint NOT NULL,
  submission_id text COLLATE "C",
  job_id text COLLATE "C",
  headers text COLLATE "C" NOT NULL,
  body bytea NOT NULL,
  http_status bigint,
  outcome text COLLATE "C",
  reason text COLLATE "C",
  status text COLLATE "C",
  repeats bigint NOT NULL,
  last_at bigint,
  tries bigint NOT NULL,
  remote_id text COLLATE "C",
  claimed_by text COLLATE "C"
);
CREATE INDEX notices_unclaimed ON notices (arrival) WHERE outcome IS NULL AND claimed_by IS NULL;
CREATE INDEX notices_claimed ON notices (submission_id, claimed_by) WHERE outcome IS NULL AND claimed_by IS NOT NULL;
CREATE INDEX notices_by_submission ON notices (submission_id, job_id) WHERE submission_id IS NOT NULL;
CREATE INDEX notices_by_job ON notices (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX notices_set_aside ON notices (outcome, arrival)
  WHERE outcome IN ('unreadable', 'mismatched', 'waiting', 'refuted', 'orphan');
CREATE INDEX notices_orphans_by_id ON notices (provider, remote_id)
  WHERE outcome = 'orphan' AND submission_id IS NULL AND remote_id IS NOT NULL;
CREATE INDEX notices_orphaned ON notices (at) WHERE outcome = 'orphan';
CREATE INDEX notices_astray ON notices (at) WHERE submission_id IS NULL AND job_id IS NULL AND outcome IS NOT NULL;

-- What a submission's callbacks left with us, for the bound on it.
CREATE TABLE inboxes (
  submission_id text COLLATE "C" PRIMARY KEY,
  callbacks bigint NOT NULL,
  bytes bigint NOT NULL
);

CREATE TABLE events (
  position bigint PRIMARY KEY,
  id text COLLATE "C" NOT NULL UNIQUE,
  job_id text COLLATE "C",
  at bigint NOT NULL,
  depth bigint NOT NULL,
  envelope text COLLATE "C" NOT NULL
);
CREATE INDEX events_by_job ON events (job_id, position) WHERE job_id IS NOT NULL;
CREATE INDEX events_of_no_job ON events (at) WHERE job_id IS NULL;

-- stage: 0 held back by an earlier one, 1 not due yet, 2 ready to be claimed; NULL while running and afterwards.
CREATE TABLE deliveries (
  id text COLLATE "C" PRIMARY KEY,
  event_id text COLLATE "C" NOT NULL,
  event_type text COLLATE "C" NOT NULL,
  job_id text COLLATE "C",
  handler text COLLATE "C" NOT NULL,
  state text COLLATE "C" NOT NULL,
  attempts bigint NOT NULL,
  next_attempt_at bigint,
  last_error text COLLATE "C",
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  sequence bigint NOT NULL,
  is_ordered boolean NOT NULL,
  urgent_at bigint,
  stage smallint,
  claimed_by text COLLATE "C"
);
CREATE INDEX deliveries_ready ON deliveries (handler, urgent_at, created_at, id) WHERE stage = 2;
CREATE INDEX deliveries_not_due ON deliveries (next_attempt_at) WHERE stage = 1;
CREATE INDEX deliveries_by_job ON deliveries (job_id, handler, sequence);
CREATE INDEX deliveries_by_time ON deliveries (created_at, id);
CREATE INDEX deliveries_by_handler ON deliveries (handler, created_at, id);
CREATE INDEX deliveries_not_done ON deliveries (state, created_at, id, handler) WHERE state <> 'done';
CREATE INDEX deliveries_claimed ON deliveries (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX deliveries_of_no_job ON deliveries (event_id) WHERE job_id IS NULL;

-- asked_at, asked_cancel: what was asked for while a node was polling; it counts when that node gives the poll back.
CREATE TABLE polls (
  job_id text COLLATE "C" PRIMARY KEY,
  submission_id text COLLATE "C" NOT NULL,
  provider text COLLATE "C" NOT NULL,
  due_at bigint NOT NULL,
  attempts bigint NOT NULL,
  failures bigint NOT NULL,
  not_found bigint NOT NULL,
  cancel boolean NOT NULL,
  last_notice_id text COLLATE "C",
  last_hash text COLLATE "C",
  asked_at bigint,
  asked_cancel boolean NOT NULL DEFAULT false,
  claimed_by text COLLATE "C"
);
CREATE INDEX polls_due ON polls (provider, due_at, job_id) WHERE claimed_by IS NULL;
CREATE INDEX polls_by_submission ON polls (submission_id);
CREATE INDEX polls_claimed ON polls (claimed_by) WHERE claimed_by IS NOT NULL;

CREATE TABLE calls (
  id text COLLATE "C" PRIMARY KEY,
  submission_id text COLLATE "C" NOT NULL,
  at bigint NOT NULL,
  http_status bigint,
  error text COLLATE "C"
);
CREATE INDEX calls_by_submission ON calls (submission_id, at);

CREATE TABLE leases (
  name text COLLATE "C" PRIMARY KEY,
  node text COLLATE "C" NOT NULL,
  ends_at bigint NOT NULL
);

CREATE TABLE buckets (
  name text COLLATE "C" PRIMARY KEY,
  full_at bigint NOT NULL  -- when all tokens that were given will have come back
);

CREATE TABLE breakers (
  provider text COLLATE "C" PRIMARY KEY,
  failures bigint NOT NULL,
  open_until bigint,
  last_error text COLLATE "C",
  last_error_at bigint
);

-- Only ever added to while jobs end, so that nodes do not wait for each other; pruning leaves the last ones.
CREATE TABLE durations (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  provider text COLLATE "C" NOT NULL,
  model text COLLATE "C" NOT NULL,
  seconds double precision NOT NULL
);
CREATE INDEX durations_by_model ON durations (provider, model, number);

CREATE TABLE counters (
  scope text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  count bigint NOT NULL,
  PRIMARY KEY (scope, name)
);
