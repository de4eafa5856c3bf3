"""The error whose message is shown to the user as it is."""


class EvaluationError(ValueError):
    """One sentence: what is wrong, in which file, what to do next."""
