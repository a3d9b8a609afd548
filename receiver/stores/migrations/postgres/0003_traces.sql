-- The trace of the request that made a job; whoever works on it later goes on with that.

ALTER TABLE jobs ADD COLUMN traceparent text COLLATE "C";
