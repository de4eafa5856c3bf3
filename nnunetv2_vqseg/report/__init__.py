"""Scores, comparisons and their report."""
