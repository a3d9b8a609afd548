"""Exit codes."""

DONE = 0
JOB_FAILED = 1
MISUSED = 2  # usage or configuration
NOT_REACHABLE = 3
OUR_MISTAKE = 70  # a bug, with its traceback; 1 would say that the job failed
INTERRUPTED = 130
