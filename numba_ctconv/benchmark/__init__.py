"""What `numba-ctconv bench`, `verify` and `info` do, and the table of problems that the tests use too."""
