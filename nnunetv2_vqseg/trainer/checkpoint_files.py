"""Writing checkpoints so that a kill, a full disk or a resumed run cannot lose one."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_vqseg.core.errors import CheckpointError
from nnunetv2_vqseg.core.unpickling import numbers_of_numpy


def save_atomically(content: dict[str, Any], filename: str | Path) -> None:
    """Write a checkpoint to a temporary file in the same folder, flush it to disk, then rename it over the old one.

    Raises:
        OSError: disk full, folder not writable; the old file is untouched and the temporary one removed.
    """
    target = Path(filename)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # the latter is what torch's zip writer makes of a failed write
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or cause
        raise OSError(f"Could not write {target}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class BackgroundWriter:
    """Writes one file at a time from a thread, while training goes on; the file is whole or the one from before."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None

    def write(self, content: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        """Have `write` called with a copy of `content` as it is now; the write before must be over (`wait`)."""
        assert self._thread is None
        kept, event = copied_to_host(content)

        def run() -> None:
            try:
                if event is not None:
                    event.synchronize()
                write(kept)
            except Exception as error:  # a thread's own would go to the console alone
                self._problem = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def wait(self) -> Exception | None:
        """Until the write is over; what was wrong with it, once."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        problem, self._problem = self._problem, None
        return problem


def copied_to_host(content: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A copy with all tensors on the host, those that share memory still do; and the event after which they are there.

    The event is None where no tensor is on a GPU.
    """
    copies: dict[Any, torch.Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
            if place not in copies or not value.numel():
                on_gpu = value.device.type == "cuda"
                host = torch.empty_like(value, device="cpu", pin_memory=on_gpu)
                copies[place] = host.copy_(value.detach(), non_blocking=on_gpu)
            return copies[place]
        if isinstance(value, OrderedDict):  # a state_dict has metadata
            new = OrderedDict((key, copied(item)) for key, item in value.items())
            new.__dict__.update(value.__dict__)
            return new
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(copied, value))
        return value

    kept = copied(content)
    event = None
    if any(device.type == "cuda" for device, *_ in copies):
        event = torch.cuda.Event()
        event.record()
    return kept, event


def remove_leftovers(folder: str | Path) -> None:
    """Delete temporary files that a killed process left in `folder`."""
    for leftover in Path(folder).glob(".checkpoint_*.pth.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def read_checkpoint(filename: str | Path, device: torch.device | str, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint's content, tensors on `device`; code in the file is never run.

    Args:
        mmap: leave tensors on disk until they are read.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other objects than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals(numbers_of_numpy()):
            return torch.load(filename, map_location=device, weights_only=True, mmap=mmap)
    except OSError as error:
        raise CheckpointError(
            f"{filename} cannot be opened ({error.strerror}); give the path of a checkpoint."
        ) from error
    except Exception as error:  # pickle, zip and archive errors have no common class
        raise CheckpointError(
            f"{filename} cannot be read as a checkpoint of tensors and plain values; it is damaged or was written by "
            f"other software; move it away to use another one."
        ) from error


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of `folder` that was written last, None where there is none."""
    return max(_checkpoints(folder), key=lambda file: file.stat().st_mtime_ns, default=None)


def furthest_checkpoint(asked: Path) -> Path:
    """What to continue from in the folder of a checkpoint: the furthest of the training that wrote the newest file.

    Times alone may be those of a copy. Epochs know when they started, which tells trainings apart and how far each
    checkpoint has come; of two in the same epoch the one after more steps counts, then the one asked for.
    """
    newest = newest_checkpoint(asked.parent) or asked
    files = dict.fromkeys([asked, newest, *_checkpoints(asked.parent)])
    come = {file: _how_far(file) for file in files}
    begun = come[newest][0]
    if not begun:
        return newest
    same = [file for file in files if come[file][0][: len(begun)] == begun]
    return max(same, key=lambda file: (len(come[file][0]), come[file][1]))  # the first of equals


def to_continue_from(filename: str | os.PathLike[str], log: Callable[[str], None]) -> str:
    """The checkpoint that nnU-Net's `--c` asks for, or `furthest_checkpoint` where that is another one, and says so.

    nnU-Net takes final, else latest, else best. But a final checkpoint that is older than the others belongs to an
    earlier training in this folder, and a best one may be some epochs ahead of the latest.
    """
    asked = Path(filename)
    if asked.name == "checkpoint_best.pth" or not asked.is_file():
        return str(filename)
    furthest = furthest_checkpoint(asked)
    if furthest == asked:
        return str(filename)
    log(f"{asked.name} is outdated; continuing from {furthest.name}.")
    return str(furthest)


def _checkpoints(folder: str | Path) -> list[Path]:
    names = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
    return [Path(folder) / name for name in names if (Path(folder) / name).is_file()]


def _how_far(file: Path) -> tuple[list[float], int]:
    """When each epoch of a checkpoint's training started, and its steps where it counts them; nothing if unreadable."""
    try:
        content = read_checkpoint(file, "cpu", mmap=True)
        starts = [float(start) for start in content["logging"]["epoch_start_timestamps"]]
        return starts, int(content.get("vqseg", {}).get("step", 0))
    except (CheckpointError, KeyError, TypeError, ValueError):
        return [], 0


def to_plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python numbers and lists, so that `weights_only=True` can read them."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def random_states() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's global generators, loadable with `weights_only=True`."""
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 nnU-Net draws from this one
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned; CUDA states only where the number of devices is the same."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 nnU-Net draws from this one
    torch.manual_seed(seed)
