"""Metrics, evaluation and comparison reports."""
