"""nnU-Net's own steps on the labelled cases, without opening the labels that a benchmark hides.

Where no fold of `splits_final.json` hides labels, these are exactly nnU-Net's functions. Otherwise the hidden cases are
taken out of what is handed to nnU-Net's classes; nnU-Net itself has no such option.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.core.pools import for_each_case
from nnunetv2_vqseg.data.cases import TrainingCase
from nnunetv2_vqseg.data.checks.dataset import CheckedDataset
from nnunetv2_vqseg.data.records import case_states, read_record, write_record
from nnunetv2_vqseg.data.roles import CaseRoles

FINGERPRINTED_FILE = "labeled_fingerprinted.json"
"""Of which files `dataset_fingerprint.json` is, where we had it extracted."""


def verify(dataset: CheckedDataset, num_processes: int) -> None:
    """nnU-Net's `--verify_dataset_integrity` on all cases whose labels may be opened.

    Raises:
        DatasetError: with what nnU-Net says.
    """
    with tempfile.TemporaryDirectory() as view:
        if dataset.roles.hidden:
            # nnU-Net takes relative paths for relative to the dataset's folder.
            cases = {
                case: TrainingCase(
                    images=[str(Path(file).absolute()) for file in entry["images"]],
                    label=str(Path(entry["label"]).absolute()),
                )
                for case, entry in dataset.roles.visible.items()
            }
            visible = {**dataset.dataset_json, "dataset": cases, "numTraining": len(cases)}
            (Path(view) / "dataset.json").write_text(json.dumps(visible), encoding="utf-8")
        try:
            verify_dataset_integrity(view if dataset.roles.hidden else str(dataset.raw), num_processes)
        except (RuntimeError, AssertionError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise DatasetError(
                f"nnU-Net's integrity check refuses {dataset.raw} ({said}); correct the dataset, or leave "
                f"--verify_dataset_integrity out."
            ) from error


def extract_fingerprint(
    dataset: CheckedDataset,
    extractor_class: type[DatasetFingerprintExtractor],
    num_processes: int,
    clean: bool,
    verbose: bool,
    show_progress: bool,
) -> None:
    """Write nnU-Net's `dataset_fingerprint.json` unless it is there and of these cases.

    Where folds list unlabelled cases, planning does not read it (see `labeled_fingerprint`), and it stays as it is.

    Raises:
        DatasetError: what is there is no fingerprint.
    """
    print("Fingerprint extraction...")
    file = dataset.preprocessed / "dataset_fingerprint.json"
    record, visible = file.with_name(FINGERPRINTED_FILE), dataset.roles.visible
    cases = {case: {"files": case_states([*entry["images"], entry["label"]])} for case, entry in visible.items()}
    if file.is_file() and not clean:
        same = _number_of_fingerprinted(file) == len(cases) and read_record(record) in ({}, cases)
        if not same and not dataset.roles.has_listed_cases:
            print(f"{file} is not of the labelled cases of now; extracting it again.")
            clean = True
    written = clean or not file.is_file()
    extractor = _extractor(extractor_class, dataset.name, visible, num_processes, show_progress)
    extractor.verbose = verbose
    extractor.run(overwrite_existing=clean)
    if written:
        write_record(record, cases)


def labeled_fingerprint(
    dataset_name: str,
    roles: CaseRoles,
    extractor_class: type[DatasetFingerprintExtractor],
    num_processes: int,
    show_progress: bool,
) -> dict:
    """The fingerprint of the cases that are labelled in every fold; nnU-Net's own file stays as it is."""
    extractor = _extractor(extractor_class, dataset_name, roles.labeled, num_processes, show_progress)
    with tempfile.TemporaryDirectory() as scratch:
        # It writes to nnUNet_preprocessed joined with this name, which an absolute path replaces.
        extractor.dataset_name = scratch
        extractor.run(overwrite_existing=True)
        return json.loads((Path(scratch) / "dataset_fingerprint.json").read_text(encoding="utf-8"))


def preprocess(
    dataset: CheckedDataset,
    plans_identifier: str,
    configuration: str,
    num_processes: int,
    verbose: bool,
    show_progress: bool,
) -> None:
    """nnU-Net's preprocessing of the labelled cases, and its copy of their labels for validation."""
    if not dataset.roles.hidden:
        number = convert_dataset_name_to_id(dataset.name)
        processes = [min(num_processes, len(dataset.roles.visible))]  # nnU-Net starts all, each imports everything
        preprocess_dataset(number, plans_identifier, [configuration], processes, verbose, show_progress)
        return
    base, visible = dataset.preprocessed, dataset.roles.visible
    plans_manager = PlansManager(str(base / f"{plans_identifier}.json"))
    configuration_manager = plans_manager.get_configuration(configuration)
    output, labels = base / configuration_manager.data_identifier, base / "gt_segmentations"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    labels.mkdir(exist_ok=True)
    plan = (plans_manager, configuration_manager, dataset.dataset_json)
    jobs = {case: (entry, str(output), plan, verbose) for case, entry in visible.items()}
    for_each_case(preprocess_case, jobs, num_processes, "Preprocessing cases", show_progress, lambda *_: None)
    for case, entry in visible.items():
        shutil.copy2(entry["label"], labels / (case + dataset.dataset_json["file_ending"]))


def _extractor(
    extractor_class: type[DatasetFingerprintExtractor],
    dataset_name: str,
    cases: Collection[str],
    num_processes: int,
    show_progress: bool,
) -> DatasetFingerprintExtractor:
    extractor = extractor_class(dataset_name, max(min(num_processes, len(cases)), 1))
    extractor.show_progress_bar = show_progress
    extractor.dataset = {case: extractor.dataset[case] for case in cases}
    return extractor


def _number_of_fingerprinted(file: Path) -> int:
    content = read_json(file, "add --clean to write it anew")
    keys = ("spacings", "shapes_after_crop", "foreground_intensity_properties_per_channel")
    if not isinstance(content, dict) or not all(content.get(key) for key in keys):
        raise DatasetError(f"{file} is no fingerprint of this version of nnU-Net; add --clean to write it anew.")
    return len(content["spacings"])


def preprocess_case(case: str, entry: TrainingCase, output: str, plan: tuple, verbose: bool) -> None:
    """nnU-Net's preprocessing of one labelled case; `plan` is what `run_case_save` wants beside the files."""
    _, configuration_manager, _ = plan
    preprocessor = configuration_manager.preprocessor_class(verbose=verbose)
    preprocessor.run_case_save(str(Path(output) / case), entry["images"], entry["label"], *plan)
