"""One script per question. Each prints a table and ends with one JSON line: `python -m benchmarks.<name>`.

Machines are shared and noisy: compared things are measured in turn inside one run, and ratios of medians are what counts.
"""
