"""The error whose message is shown to the user as it is."""

REPLACE = "replace the file or remove the case"
"""What to do about a file that cannot be used."""


class DatasetError(ValueError):
    """One sentence (one line per file where several are wrong): which file, what is wrong with it, what to do next."""
