"""What can be wrong with the input, and what each command says to it: the tables in docs/reliability.md."""

from other_cases import CONVERT, EVALUATE, SPLIT
from plan_file_cases import PLAN_FILES
from planning_cases import CHANNELS, DESCRIPTION, FILES, GEOMETRY, NAMES, OTHER_KINDS, PLANNED_BEFORE, VOXELS
from training_cases import START, STOCK, WEIGHTS

SECTIONS = {
    "Planning: files (`nnUNetv2_vqseg_plan_and_preprocess`)": FILES,
    "Planning: voxels": VOXELS,
    "Planning: files that are no NIfTI": OTHER_KINDS,
    "Planning: geometry": GEOMETRY,
    "Planning: channels": CHANNELS,
    "Planning: names and folders": NAMES,
    "Planning: `dataset.json`": DESCRIPTION,
    "Planning: what is there already": PLANNED_BEFORE,
    "Start of training: the plan (`python -m nnunetv2_vqseg.train`)": PLAN_FILES,
    "Start of training: data": START,
    "Start of training: weights, checkpoints, options": WEIGHTS,
    "Start of training with `nnUNetv2_train`": STOCK,
    "`nnUNetv2_vqseg_split`": SPLIT,
    "`nnUNetv2_vqseg_evaluate`": EVALUATE,
    "Conversion (`dataset_conversion/Dataset027_ACDC.py`)": CONVERT,
}
CASES = [case for cases in SECTIONS.values() for case in cases]
