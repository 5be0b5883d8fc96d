"""What the HTTP layer costs, and what it holds: `python -m benchmarks.http [PART ...] [--save]`."""
