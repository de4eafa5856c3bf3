"""nnU-Net's trainer with a log that any locale can hold and a record of memory, labelled cases and version."""

from __future__ import annotations

import locale
import sys

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_vqseg.core.versions import package


def printable(value: object) -> str:
    """The text with escapes, such as \\xe4, for what the locale's files or the terminal cannot hold."""
    text = str(value)
    for encoding in (locale.getpreferredencoding(False), getattr(sys.stdout, "encoding", None) or "utf-8"):
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Bytes: what torch has allocated on a GPU, and what this process, without its workers, has had in memory."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"peak_gpu_memory_bytes": gpu, "peak_resident_memory_bytes": _peak_resident_memory()}


def _peak_resident_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class LoggingTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which otherwise stops at the first umlaut of a plan or case where the locale is ASCII."""

    labeled_cases: int | None = None
    """Cases that the fold trains on, once they are known."""

    package: str | None = None
    """Version and commit of this package as this process began: of a training that was continued, the last one's."""

    def initialize(self) -> None:
        """nnU-Net's; peak memory is counted from here."""
        self.package = package()
        if self.device.type == "cuda":
            torch.cuda.init()  # without which there are no statistics to reset
            torch.cuda.reset_peak_memory_stats(self.device)
        super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, remembering the number of training cases."""
        train, val = super().do_split()
        self.labeled_cases = len(train)
        return train, val

    def runtime(self) -> dict[str, object]:
        """What a report tells about how the training ran: device, labelled cases, `peak_memory` and our version."""
        return {
            "device": str(self.device),
            "labeled_cases": self.labeled_cases,
            **peak_memory(self.device),
            "package": self.package,
        }

    def print_to_log_file(self, *args: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """nnU-Net's, with escapes for what cannot be written."""
        super().print_to_log_file(
            *map(printable, args), also_print_to_console=also_print_to_console, add_timestamp=add_timestamp
        )
