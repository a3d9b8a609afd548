-- Every claim of a poll and every answer writes its row again, and each of its indexes: the polls of a submission are found by its jobs.

DROP INDEX polls_by_submission;
