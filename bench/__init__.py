"""Benchmarks against peers: run on purpose (`python -m bench`), never by the tests."""
