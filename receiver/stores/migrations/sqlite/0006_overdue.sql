-- How many jobs are asked about because no news came: counted among those, not among all that are open.

CREATE INDEX polls_overdue ON polls (provider, job_id) WHERE attempts > 0;
