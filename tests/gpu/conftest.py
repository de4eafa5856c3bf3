"""Trainings on the tiny phantoms."""

from tiny_trainings import home, make_trainer, results, without_plots

__all__ = ["home", "make_trainer", "results", "without_plots"]
