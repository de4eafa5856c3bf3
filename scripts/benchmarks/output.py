"""Tables on the terminal, and the same rows with the machine and the command as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def print_table(rows: Sequence[Row], title: str) -> None:
    """Columns in the order of their first appearance; numbers with three significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    numeric = [any(isinstance(row.get(column), (int, float)) for row in rows) for column in columns]
    print(f"\n{title}")
    for line in (columns, *cells):
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(aligned).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write_json(file: Path, tables: Mapping[str, Sequence[Row]], device: torch.device) -> None:
    """Everything that is needed to make the numbers again, and the numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": shlex.join(["python", *sys.argv]), "machine": machine(device), "tables": dict(tables)}
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"\n{file}")


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, GPU, versions, commit and time of a measurement."""
    folder = Path(__file__).resolve().parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The processor's model."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
