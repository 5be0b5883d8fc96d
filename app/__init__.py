"""The server: asyncio only, never torch.

Each folder imports those before it (tests/test_layers.py): settings, http, telemetry, requests, admission,
answers, routes, processes.
"""
