"""Benchmarks: scripts that measure, and tests that hold their marks."""
