"""What benchmarks share: rows, budgets, comparisons, baselines, and the tables of docs/benchmarks.md."""
