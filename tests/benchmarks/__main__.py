"""All benchmarks, one after the other."""

from tests.benchmarks import accept

accept.main()
