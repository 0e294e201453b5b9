"""One question a file, asked of runs that a benchmark left or of a variant of one."""
