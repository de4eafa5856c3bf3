"""What a training writes down about itself, in any locale."""

from __future__ import annotations

import locale
import sys

import torch


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


def reset_peak_memory(device: torch.device) -> None:
    """Count the GPU's peak from here."""
    if device.type == "cuda":
        torch.cuda.init()  # without which there are no statistics to reset
        torch.cuda.reset_peak_memory_stats(device)


def _peak_resident_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
