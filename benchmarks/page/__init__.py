"""What the chat page costs a browser: `python -m benchmarks.page [PART ...] [--save | --out FILE]`."""
