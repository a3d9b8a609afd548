-- Listings by two fields: the few failed jobs of an account are found without a look at the millions that succeeded.

CREATE INDEX jobs_by_provider_and_model ON jobs (provider, model, created_at, id);
CREATE INDEX jobs_by_provider_and_status ON jobs (provider, status, created_at, id);
CREATE INDEX jobs_by_model_and_status ON jobs (model, status, created_at, id);
