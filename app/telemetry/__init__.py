"""Counting, logging and tracing."""
