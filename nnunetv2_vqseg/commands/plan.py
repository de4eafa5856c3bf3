"""`nnUNetv2_vqseg_plan_and_preprocess`: nnU-Net's command of that name, with the unlabelled images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnunetv2_vqseg.core.errors import DatasetError, UserError
from nnunetv2_vqseg.core.folders import nnunet_folder


def build_parser() -> argparse.ArgumentParser:
    """Arguments as `nnUNetv2_plan_and_preprocess` has them."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_plan_and_preprocess",
        description="Fingerprint, plan and preprocess labelled images (imagesTr) and unlabelled ones (imagesUl, or the "
        "'unlabeled' list of a fold in splits_final.json) for VQ-Seg. Arguments are those of "
        "nnUNetv2_plan_and_preprocess.",
    )
    parser.add_argument("-d", nargs="+", type=int, required=True, help="dataset IDs, for example 27")
    parser.add_argument(
        "-fpe", default="DatasetFingerprintExtractor", help="fingerprint extractor class. Default: %(default)s"
    )
    parser.add_argument(
        "-npfp",
        type=int,
        default=8,
        help="processes for fingerprint extraction and for reading unlabelled images. Default: %(default)s",
    )
    parser.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="check labelled images, labels and unlabelled images first. Recommended once for each dataset",
    )
    parser.add_argument("--no_pp", action="store_true", help="fingerprint and plan only, no preprocessing")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="extract fingerprints again where there are some, and preprocess all unlabelled images again",
    )
    parser.add_argument(
        "-pl",
        default="ExperimentPlanner",
        help="experiment planner class, for example nnUNetPlannerResEncM, or nnUNetPlannerViT for a ViT instead of the "
        "U-Net. Default: %(default)s",
    )
    parser.add_argument(
        "-encoder", help="with -pl nnUNetPlannerViT: timm's name of the ViT. Default: vit_small_patch14_dinov2.lvd142m"
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        help="GPU memory of a VQ-Seg training in GB, unlabelled images included. Default: the planner's",
    )
    parser.add_argument("-preprocessor_name", default="DefaultPreprocessor", help="Default: %(default)s")
    parser.add_argument(
        "-overwrite_target_spacing", nargs="+", type=float, help="three numbers: a target spacing of your own, in mm"
    )
    parser.add_argument(
        "-overwrite_plans_name",
        help="name of the plan. Default: nnUNetVQSegPlans, with nnUNetPlannerViT nnUNetViTPlans",
    )
    parser.add_argument("-c", nargs="+", default=["2d"], help="configurations. Only 2d is supported")
    parser.add_argument("-np", nargs="+", type=int, help="processes for preprocessing. Default: 8")
    parser.add_argument("--verbose", action="store_true", help="print a lot")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bars")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit code 2 for arguments that cannot be used, 1 for data that cannot."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    unsupported = [name for name in args.c if name != "2d"]
    if unsupported:
        parser.error(f"VQ-Seg is implemented for the configuration 2d only, not for {', '.join(unsupported)}.")
    spacing = args.overwrite_target_spacing
    if spacing is not None and not (len(spacing) == 3 and all(0 < step < float("inf") for step in spacing)):
        parser.error("-overwrite_target_spacing takes three numbers above 0, in mm, for 2d too: slices first.")
    if args.encoder is not None and args.pl != "nnUNetPlannerViT":
        parser.error(f"-encoder is for -pl nnUNetPlannerViT only, not for {args.pl}.")
    if args.np is not None and len(args.np) != 1:
        parser.error("-np takes one number, because there is one configuration.")

    try:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
            nnunet_folder(variable)
    except DatasetError as error:
        parser.error(str(error))

    # After the arguments, because nnU-Net takes seconds to import.
    from nnunetv2_vqseg.planning.api import find_class, plan_and_preprocess_dataset
    from nnunetv2_vqseg.trainers import nnUNetTrainerVQSeg, nnUNetTrainerVQSegViT

    trainer = nnUNetTrainerVQSegViT if args.pl == "nnUNetPlannerViT" else nnUNetTrainerVQSeg

    try:
        for dataset_id in args.d:
            plan_and_preprocess_dataset(
                dataset_id,
                planner_class=find_class(args.pl),
                fingerprint_extractor_class=find_class(args.fpe),
                gpu_memory_target_in_gb=args.gpu_memory_target,
                preprocessor_name=args.preprocessor_name,
                overwrite_target_spacing=args.overwrite_target_spacing,
                plans_name=args.overwrite_plans_name,
                num_processes=args.np[0] if args.np else 8,
                num_processes_fingerprint=args.npfp,
                verify_dataset_integrity=args.verify_dataset_integrity,
                clean=args.clean,
                preprocess=not args.no_pp,
                verbose=args.verbose,
                show_progress=not args.no_pbar,
                encoder=args.encoder,
                images_a_label=lambda block: trainer.configured(block).images_a_label,
            )
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
