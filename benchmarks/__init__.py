"""What the guard costs, beside other servers: `python -m benchmarks --help`. Not installed with the guard."""
