"""Lineage records of every released format, which every later version reads."""
