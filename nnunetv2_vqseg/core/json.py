"""JSON files that people edit by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import DatasetError


def read_json(file: Path, remedy: str) -> Any:
    """What is in a JSON file.

    Args:
        remedy: what to do where it cannot be read, the end of the sentence.

    Raises:
        DatasetError: it is missing, cannot be opened or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({error.strerror}); {remedy}.") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not valid JSON ({error}); {remedy}.") from None
