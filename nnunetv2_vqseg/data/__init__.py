"""Unlabelled cases: finding, checking, preprocessing, loading and splitting."""
