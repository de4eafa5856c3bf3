"""Task06_Lung of the Medical Segmentation Decathlon, a public stand-in for the lung cancer dataset.

    python dataset_conversion/DatasetXXX_MSD_Lung.py -i Task06_Lung --labeled-percent 10

Its 63 annotated scans are split 70/10/20 by patient; the 32 scans of its unannotated test set join the unlabelled ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import fail
from DatasetXXX_LC import Scan, add_arguments, convert, entries, find_scans, stem

from nnunetv2_vqseg.core.errors import DatasetError


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-d", dest="dataset_id", type=int, default=6, metavar="ID", help="dataset ID (default: 6)")
    parser.add_argument("-i", dest="root", type=Path, required=True, metavar="DIR", help="the folder Task06_Lung")
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        scans = find_scans(args.root / "imagesTr", args.root / "labelsTr")
        if (args.root / "imagesTs").is_dir():
            scans |= {stem(path): Scan(path, None) for path in entries(args.root / "imagesTs")}
        convert(scans, "Lung", args, reference="http://medicaldecathlon.com", license="CC-BY-SA 4.0")
    except DatasetError as error:
        raise fail(error) from None


if __name__ == "__main__":
    main()
