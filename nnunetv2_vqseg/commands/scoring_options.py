"""The options that `nnUNetv2_vqseg_evaluate` and `nnUNetv2_vqseg_compare` share."""

from __future__ import annotations

import argparse
import os


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Unit, convention for empty masks and number of processes."""
    parser.add_argument(
        "--units", choices=("voxel", "mm"), default="voxel", help="unit of HD95 and ASD. Default: voxel"
    )
    parser.add_argument(
        "--empty-convention",
        choices=("protocol", "literature"),
        default="protocol",
        help="protocol: an empty prediction has no surface distance and is counted; literature: its HD95 and ASD "
        "are 0, one of several variants in published code, which rewards failure. Default: protocol",
    )
    parser.add_argument(
        "-np",
        type=int,
        default=min(int(os.environ.get("nnUNet_def_n_proc", 8)), os.cpu_count() or 1),
        help="number of processes; 0 or 1 works in this one. Default: nnUNet_def_n_proc or 8, at most one per core",
    )
