# Sourced by the other scripts: makes (once) and activates a virtual environment with this package in it.
# VQSEG_VENV chooses where (default: .venv beside the project); PYTHON which interpreter (default: python3).
set -euo pipefail
VQSEG_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VQSEG_VENV="${VQSEG_VENV:-$VQSEG_ROOT/.venv}"

if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "This needs Python 3.10 or newer; set PYTHON to one, for example PYTHON=python3.12 bash $0" >&2
    exit 1
fi
if [ ! -f "$VQSEG_VENV/bin/activate" ]; then # written last: without it an earlier run was interrupted
    echo "Making a virtual environment in $VQSEG_VENV"
    "${PYTHON:-python3}" -m venv "$VQSEG_VENV"
fi
# shellcheck disable=SC1091
source "$VQSEG_VENV/bin/activate"

# install_package EXTRAS: the package in editable mode, e.g. install_package '[dev]'
install_package() {
    echo "Installing nnunetv2_vqseg and what it needs (the first time: several GB for PyTorch)"
    # uv is several times faster than pip with packages of this size; without it pip does the same.
    python -m pip install --quiet --disable-pip-version-check uv &&
        python -m uv pip install --quiet --python "$(command -v python)" -e "$VQSEG_ROOT${1:-}" ||
        python -m pip install --quiet --disable-pip-version-check -e "$VQSEG_ROOT${1:-}"
}
