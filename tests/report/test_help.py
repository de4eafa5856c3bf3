"""The options are shown at once."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_options_are_shown_without_importing_what_takes_long(command):
    asked = (
        f"import sys\nfrom nnunetv2_vqseg.commands.{command} import main\n"
        "try:\n    main(['-h'])\nexcept SystemExit:\n"
        "    print({'numpy', 'pandas', 'matplotlib', 'torch', 'nnunetv2'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert "--empty-convention" in done.stdout
    assert done.stderr.strip() == "set()"
