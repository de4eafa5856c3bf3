#!/usr/bin/env bash
# The whole path on a small dataset: data, plan, stock nnU-Net and VQ-Seg with the same budget, prediction, report.
#   bash scripts/demo.sh                  # synthetic cardiac phantoms, in demo_output/
#   bash scripts/demo.sh --data ACDC_DIR  # the same on an ACDC folder
# Other options: python scripts/demo.py --help
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_package
exec python "$VQSEG_ROOT/scripts/demo.py" "$@"
