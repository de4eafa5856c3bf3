"""Plans that were edited by hand, or come from another version of nnU-Net."""

from __future__ import annotations

from typing import Any

from cases import AGAIN, PLANS_FILE, Case, Refused, arch, block, in_2d, nnunet_1_plan, nothing, plans
from commands import train
from worlds import World, configuration, edit, truncate, write_json


def _old_plan(world: World) -> None:
    """As nnU-Net 2.0 to 2.3 wrote it: the network's arguments lie in the configuration."""

    def change(plan: dict[str, Any]) -> None:
        del plan["label_manager"]
        plan["foreground_intensity_properties_by_modality"] = plan.pop("foreground_intensity_properties_per_channel")
        inner = configuration(plan)
        network = inner.pop("architecture")["arch_kwargs"]
        inner.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=network["n_conv_per_stage"],
            n_conv_per_stage_decoder=network["n_conv_per_stage_decoder"],
            num_pool_per_axis=[3, 3],
            pool_op_kernel_sizes=network["strides"],
            conv_kernel_sizes=network["kernel_sizes"],
        )

    edit(world.preprocessed / "nnUNetVQSegPlans.json", change)


PLAN_FILES = [
    Case(
        "plan: missing",
        train,
        lambda world: (world.preprocessed / PLANS_FILE).unlink(),
        Refused(PLANS_FILE, "does not exist", "run nnUNetv2_vqseg_plan_and_preprocess"),
    ),
    Case(
        "plan: half a file",
        train,
        lambda world: truncate(world.preprocessed / PLANS_FILE),
        Refused(PLANS_FILE, "is not valid JSON", "delete it and plan again"),
        quotes=True,
    ),
    Case(
        "plan: a list",
        train,
        lambda world: write_json(world.preprocessed / PLANS_FILE, []),
        Refused(PLANS_FILE, "is no plan of nnU-Net 2", "delete it and plan again"),
    ),
    Case("plan: of nnU-Net 2.0 to 2.3", train, _old_plan),
    Case(
        "plan: of nnU-Net 2.0 to 2.3, incomplete",
        train,
        lambda world: (_old_plan(world), in_2d(conv_kernel_sizes=None)(world)),
        Refused(PLANS_FILE, "was written by another version of nnU-Net or is incomplete", AGAIN),
        quotes=True,
    ),
    Case(
        "plan: of nnU-Net 1",
        train,
        nnunet_1_plan,
        Refused(PLANS_FILE, "is no plan of nnU-Net 2", "delete it and plan again"),
    ),
    *(
        Case(f"plan: {what}", train, damage, Refused(PLANS_FILE, problem, AGAIN), quotes="does not work" in problem)
        for what, damage, problem in (
            (
                "a network of a later version",
                in_2d(
                    architecture={
                        "network_class_name": "dynamic_network_architectures.architectures.unet.UNet2030",
                        "arch_kwargs": {"strides": [[1, 1], [2, 2]]},
                        "_kw_requires_import": [],
                    }
                ),
                "does not work for a patch of 32 x 32",
            ),
            (
                "a resampling function of a later version",
                in_2d(resampling_fn_data="resample_2030"),
                "2d.resampling_fn_data = 'resample_2030' does not work",
            ),
            (
                "a normalisation of a later version",
                in_2d(normalization_schemes=["Norm2030"]),
                "2d.normalization_schemes = ['Norm2030'] does not work",
            ),
            (
                "a preprocessor of a later version",
                in_2d(preprocessor_name="Preprocessor2030"),
                "2d.preprocessor_name = 'Preprocessor2030' does not work",
            ),
            (
                "a reader of a later version",
                plans(image_reader_writer="Reader2030"),
                "image_reader_writer = 'Reader2030' does not work",
            ),
            ("no patch_size", in_2d(patch_size=None), "has no 2d.patch_size"),
            ("no transpose_forward", plans(transpose_forward=None), "has no transpose_forward"),
            ("batch_size in quotes", in_2d(batch_size="8"), "2d.batch_size = '8' does not work"),
            ("batch_size with a point", in_2d(batch_size=8.0), "2d.batch_size = 8.0 does not work"),
            ("patch_size as a number", in_2d(patch_size=32), "2d.patch_size = 32 does not work"),
            ("patch_size of one number", in_2d(patch_size=[32]), "2d.patch_size = [32] does not work"),
            ("spacing in quotes", in_2d(spacing=["1.5", "1.5"]), "2d.spacing = ['1.5', '1.5'] does not work"),
            ("spacing of 0", in_2d(spacing=[0, 1.5]), "2d.spacing = [0, 1.5] does not work"),
            ("spacing of three numbers", in_2d(spacing=[10, 1.5, 1.5]), "has 3 entries instead of 2"),
            (
                "normalization_schemes as a text",
                in_2d(normalization_schemes="ZScoreNormalization"),
                "has 19 entries instead of 1",
            ),
            (
                "normalization_schemes for two channels",
                in_2d(normalization_schemes=["ZScoreNormalization"] * 2),
                "has 2 entries instead of 1",
            ),
            (
                "use_mask_for_norm in quotes",
                in_2d(use_mask_for_norm=["false"]),
                "2d.use_mask_for_norm = ['false'] does not work",
            ),
            (
                "intensity statistics in words",
                lambda world: (
                    in_2d(normalization_schemes=["CTNormalization"])(world),
                    plans(foreground_intensity_properties_per_channel={"0": {"mean": "one"}})(world),
                ),
                "2d.normalization_schemes = ['CTNormalization'] does not work",
            ),
            (
                "transpose_forward of two axes",
                plans(transpose_forward=[0, 1]),
                "transpose_forward = [0, 1] does not work",
            ),
            ("an order of resampling in words", in_2d(resampling_fn_data_kwargs={"order": "cubic"}), "does not work"),
            (
                "features_per_stage in quotes",
                arch(features_per_stage=["4", "8", "8", "8"]),
                "does not work for a patch",
            ),
            ("more stages than strides", arch(n_stages=6), "does not work for a patch of 32 x 32"),
            (
                "patch_size that the strides do not divide",
                in_2d(patch_size=[36, 36]),
                "does not work for a patch of 36 x 36",
            ),
            ("patch_size too small for the strides", in_2d(patch_size=[8, 8]), "does not work for a patch of 8 x 8"),
            ("data_identifier as a number", in_2d(data_identifier=2), "2d.data_identifier = 2 does not work"),
        )
    ),
    Case("plan: patch_size larger than every image", train, in_2d(patch_size=[64, 64])),
    Case(
        "plan: a configuration that inherits from itself",
        train,
        in_2d(inherits_from="2d"),
        Refused(PLANS_FILE, "2d -> 2d inherit from each other", "correct 'inherits_from'"),
    ),
    Case(
        "plan: a configuration that is missing",
        train,
        nothing,
        Refused(PLANS_FILE, "has no configuration '2d_mine'", "it has 2d"),
        options=("901", "2d_mine", "0", "-device", "cpu"),
    ),
    Case(
        "vqseg block: a list",
        train,
        in_2d(vqseg=[1]),
        Refused(PLANS_FILE, "'vqseg' of the configuration '2d' is [1]", "write it as a dictionary"),
    ),
    Case(
        "vqseg block: a key with a typing error",
        train,
        block(epsilom=0.5),
        Refused("'epsilom'", "Unknown key", "did you mean 'epsilon'?"),
    ),
    Case(
        "vqseg block: a number in quotes",
        train,
        block(epsilon="0.5"),
        Refused("vqseg.epsilon", "'0.5' is not valid", "must be number in [0, 1]"),
    ),
    Case(
        "vqseg block: a number out of range",
        train,
        block(num_codes=1),
        Refused("vqseg.num_codes", "1 is not valid", "must be integer in [2, 1048576]"),
    ),
    Case(
        "vqseg block: a stage that the plan does not have",
        train,
        block(vq_stage=9),
        Refused("vqseg.vq_stage", "9 is not valid", "this plan has stages 0 to 3"),
    ),
]
