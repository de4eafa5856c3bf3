"""Trainings on the tiny phantoms."""

from tiny_trainings import home, make_trainer, plan_dataset, results, trained, without_plots

__all__ = ["home", "make_trainer", "plan_dataset", "results", "trained", "without_plots"]
