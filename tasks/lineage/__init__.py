"""Lineage: digests, and the canonical record that joins data, code, parameters and models."""
