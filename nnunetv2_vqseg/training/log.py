"""nnU-Net's training log where the locale is not UTF-8."""

from __future__ import annotations

import locale
import sys

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def printable(value: object) -> str:
    """The text with escapes, such as \\xe4, for what the locale's files or the terminal cannot hold."""
    text = str(value)
    for encoding in (locale.getpreferredencoding(False), getattr(sys.stdout, "encoding", None) or "utf-8"):
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


class LoggingTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which otherwise stops at the first umlaut of a plan or case where the locale is ASCII."""

    def print_to_log_file(self, *args: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """nnU-Net's, with escapes for what cannot be written."""
        super().print_to_log_file(
            *map(printable, args), also_print_to_console=also_print_to_console, add_timestamp=add_timestamp
        )
