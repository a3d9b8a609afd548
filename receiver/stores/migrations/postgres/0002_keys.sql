-- Keys that were made here: of each only its hash. Revoked ones stay, so that their ids go on naming who submitted what.

CREATE TABLE api_keys (
  id text COLLATE "C" PRIMARY KEY,
  name text COLLATE "C" NOT NULL,
  scopes text COLLATE "C" NOT NULL,
  digest text COLLATE "C" NOT NULL UNIQUE,
  created_at bigint NOT NULL,
  revoked_at bigint
);
CREATE UNIQUE INDEX api_keys_by_name ON api_keys (name) WHERE revoked_at IS NULL;
