-- A callback for the whole account names its job by the provider's id; one that finds no job yet waits under that id.

ALTER TABLE notices ADD COLUMN remote_id TEXT;
CREATE INDEX notices_orphans_by_id ON notices (provider, remote_id)
  WHERE outcome = 'orphan' AND submission_id IS NULL AND remote_id IS NOT NULL;
