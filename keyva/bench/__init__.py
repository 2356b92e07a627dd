"""`keyva-bench`: workloads of the field over keyva and its peers, measured side by side. See docs/benchmarks.md."""
