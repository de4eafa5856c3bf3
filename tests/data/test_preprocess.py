"""Only what is missing or out of date is preprocessed, half a case is never trusted, and labels stay closed."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tiny_raw_dataset import add_case, make_dataset, phantom, tiny_plans, write_volume

from nnunetv2_vqseg.core import locks
from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data import preprocess, preprocess_case
from nnunetv2_vqseg.data.cases import find_unlabeled_cases, labeled_as_unlabeled
from nnunetv2_vqseg.data.manifest import Manifest
from nnunetv2_vqseg.data.preprocess import load_prepared_identifiers, prepare_unlabeled_cases, unlabeled_folder

FOLD = {"train": ["A"], "val": ["B"], "unlabeled": ["C"]}


class Tiny:
    """A raw dataset with labelled A, B, unlabelled C (by the split) and U, V, and where they are preprocessed to."""

    def __init__(self, root: Path):
        self.raw = make_dataset(root, labeled="ABC", unlabeled="UV")
        self.folder = unlabeled_folder(str(root / "nnUNet_preprocessed" / self.raw.name / "nnUNetVQSegPlans_2d"))
        self.dataset_json = json.loads((self.raw / "dataset.json").read_text(encoding="utf-8"))
        self.plans = tiny_plans()
        self.fold_entry: dict | None = FOLD

    def prepare(self, num_processes: int = 0, log: Callable[[str], None] = print) -> list[str]:
        plans_manager = PlansManager(json.loads(json.dumps(self.plans)))
        return prepare_unlabeled_cases(
            find_unlabeled_cases(self.raw, self.dataset_json, self.fold_entry),
            plans_manager,
            plans_manager.get_configuration("2d"),
            self.dataset_json,
            self.folder,
            num_processes,
            log,
            show_progress=False,
        )

    def written(self) -> dict[str, int]:
        """Case -> time at which its properties, the last of its files, were written."""
        return {path.stem: path.stat().st_mtime_ns for path in Path(self.folder).glob("*.pkl")}

    def redone_by(self, change: Callable[[], object] = lambda: None) -> set[str]:
        before = self.written()
        change()
        self.prepare()
        after = self.written()
        return {case for case in after if after[case] != before.get(case)}

    def leftovers(self) -> list[str]:
        return [path.name for path in Path(self.folder).parent.iterdir() if "tmp" in path.name]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture
def prepared(tiny: Tiny) -> Tiny:
    assert tiny.prepare() == ["C", "U", "V"]
    return tiny


def test_cases_are_what_nnunets_preprocessor_makes_of_them(prepared: Tiny):
    plans_manager = PlansManager(prepared.plans)
    expected, expected_seg, expected_properties = DefaultPreprocessor(verbose=False).run_case(
        [str(prepared.raw / "imagesUl" / "U_0000.nii.gz")],
        None,
        plans_manager,
        plans_manager.get_configuration("2d"),
        prepared.dataset_json,
    )
    data, seg, _, properties = nnUNetDatasetBlosc2(prepared.folder, ["U"]).load_case("U")
    np.testing.assert_array_equal(data[:], expected)
    np.testing.assert_array_equal(seg[:], expected_seg)
    assert (data.dtype, seg.dtype) == (np.float32, np.int16)
    assert properties["class_locations"] == {}
    assert properties["spacing"] == expected_properties["spacing"]


@pytest.mark.parametrize("mask", [True, False])
def test_files_are_those_that_nnunet_writes(tiny: Tiny, tmp_path: Path, mask: bool):
    """Value by value and in the same pieces, although the filter of a constant segmentation is not tried out.

    Not byte by byte: with several threads blosc2 writes the same chunks in another order.
    """
    volume = phantom(3)[0]
    volume[:6] = 0
    volume[12:14, 12:14] = 0
    write_volume(tiny.raw / "imagesUl" / "U_0000.nii.gz", volume)
    tiny.plans = tiny_plans(mask=mask)
    tiny.prepare()
    plans_manager = PlansManager(tiny.plans)
    for case in ("U", "V"):
        DefaultPreprocessor(verbose=False).run_case_save(
            str(tmp_path / case),
            [str(tiny.raw / "imagesUl" / f"{case}_0000.nii.gz")],
            None,  # type: ignore[arg-type]
            plans_manager,
            plans_manager.get_configuration("2d"),
            tiny.dataset_json,
        )
        for name in (f"{case}.b2nd", f"{case}_seg.b2nd"):
            ours, theirs = (blosc2.open(str(folder / name), mode="r") for folder in (Path(tiny.folder), tmp_path))
            assert (ours.shape, ours.dtype, ours.chunks, ours.blocks) == (
                theirs.shape,
                theirs.dtype,
                theirs.chunks,
                theirs.blocks,
            )
            assert np.array_equal(ours[:], theirs[:])
            used = ours.schunk.cparams.filters, theirs.schunk.cparams.filters
            assert used[0] == used[1] or np.ptp(ours[:]) == 0
            assert abs(ours.schunk.cbytes - theirs.schunk.cbytes) <= 0.01 * theirs.schunk.cbytes


def test_each_image_is_decoded_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []
    read = SimpleITKIO.read_images

    def counted(self: SimpleITKIO, files: list[str]):
        decoded.extend(Path(file).name for file in files)
        return read(self, files)

    monkeypatch.setattr(SimpleITKIO, "read_images", counted)
    tiny.prepare()
    assert decoded == ["C_0000.nii.gz", "U_0000.nii.gz", "V_0000.nii.gz"]


def test_a_preprocessor_of_the_users_reads_in_its_own_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    class Doubled(DefaultPreprocessor):
        def run_case(self, *arguments: object):
            data, seg, properties = super().run_case(*arguments)  # type: ignore[arg-type]
            return 2 * data, seg, properties

    tiny.prepare()
    once = nnUNetDatasetBlosc2(tiny.folder, ["U"]).load_case("U")[0][:]
    shutil.rmtree(tiny.folder)
    monkeypatch.setattr(ConfigurationManager, "preprocessor_class", Doubled)
    tiny.prepare()
    np.testing.assert_allclose(nnUNetDatasetBlosc2(tiny.folder, ["U"]).load_case("U")[0][:], 2 * once)


def test_the_folder_is_a_sibling_with_nothing_but_cases(prepared: Tiny):
    assert Path(prepared.folder).name == "nnUNetVQSegPlans_2d_unlabeled"
    names = {path.name for path in Path(prepared.folder).iterdir()}
    assert names == {case + suffix for case in "CUV" for suffix in (".b2nd", "_seg.b2nd", ".pkl")}
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(prepared.folder)) == ["C", "U", "V"]
    assert prepared.leftovers() == []


def test_labels_are_never_opened(tiny: Tiny):
    for label in (tiny.raw / "labelsTr").iterdir():
        label.write_text("garbage", encoding="utf-8")
    opened: list[str] = []
    recording = [True]  # an audit hook cannot be taken out again
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if recording and event == "open" else None)
    tiny.prepare()
    recording.clear()
    assert any("C_0000.nii.gz" in name for name in opened)
    assert not any("labelsTr" in name for name in opened)
    _, seg, _, _ = nnUNetDatasetBlosc2(tiny.folder, ["C"]).load_case("C")
    assert set(np.unique(seg[:])) <= {-1, 0}


def test_a_second_run_does_nothing(prepared: Tiny):
    messages: list[str] = []
    before = prepared.written()
    assert prepared.prepare(log=messages.append) == ["C", "U", "V"]
    assert prepared.written() == before
    assert messages == []


def test_only_a_new_case_is_added(prepared: Tiny):
    assert prepared.redone_by(lambda: add_case(prepared.raw, "imagesUl", "W")) == {"W"}
    assert prepared.prepare() == ["C", "U", "V", "W"]


def test_only_a_changed_image_is_redone(prepared: Tiny):
    assert prepared.redone_by(lambda: add_case(prepared.raw, "imagesUl", "U", seed=77)) == {"U"}
    data, *_ = nnUNetDatasetBlosc2(prepared.folder, ["U"]).load_case("U")
    image = np.transpose(phantom(77)[0])
    np.testing.assert_allclose(data[0], (image - image.mean()) / image.std(), atol=1e-4)


def test_a_changed_image_of_the_same_size_is_redone(prepared: Tiny):
    file = prepared.raw / "imagesUl" / "U_0000.nii.gz"
    voxels = bytearray(gzip.decompress(file.read_bytes()))
    file.write_bytes(gzip.compress(voxels, compresslevel=0))
    prepared.prepare()
    voxels[-8:-4] = np.float32(100.0).tobytes()
    size = file.stat().st_size
    assert prepared.redone_by(lambda: file.write_bytes(gzip.compress(voxels, compresslevel=0))) == {"U"}
    assert file.stat().st_size == size


def test_a_copied_or_touched_image_is_the_same_image(prepared: Tiny):
    assert prepared.redone_by(lambda: os.utime(prepared.raw / "imagesUl" / "U_0000.nii.gz", (1, 1))) == set()


def _set(plans: dict, value: object, *path: str) -> None:
    for key in path[:-1]:
        plans = plans[key]
    plans[path[-1]] = value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([3.0, 3.0], ("configurations", "2d", "spacing")),
        (["NoNormalization"], ("configurations", "2d", "normalization_schemes")),
        ([True], ("configurations", "2d", "use_mask_for_norm")),
        (1, ("configurations", "2d", "resampling_fn_data_kwargs", "order")),
        ([0, 2, 1], ("transpose_forward",)),
        (2.0, ("foreground_intensity_properties_per_channel", "0", "mean")),
        ("NibabelIO", ("image_reader_writer",)),
    ],
)
def test_everything_is_redone_for_another_plan(prepared: Tiny, value: object, path: tuple[str, ...]):
    assert prepared.redone_by(lambda: _set(prepared.plans, value, *path)) == {"C", "U", "V"}
    assert prepared.redone_by() == set()


@pytest.mark.parametrize(("value", "key"), [([8, 8], "patch_size"), (12, "batch_size"), ({"epsilon": 0.1}, "vqseg")])
def test_what_does_not_change_images_redoes_nothing(prepared: Tiny, value: object, key: str):
    assert prepared.redone_by(lambda: _set(prepared.plans, value, "configurations", "2d", key)) == set()


@pytest.mark.parametrize("suffix", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_missing_or_truncated_output_is_redone(prepared: Tiny, suffix: str, spoil: Callable[[Path], object]):
    spoil(Path(prepared.folder) / f"U{suffix}")
    prepared.prepare()
    nnUNetDatasetBlosc2(prepared.folder, ["U"]).load_case("U")
    assert prepared.redone_by() == set()


def test_a_manifest_nobody_can_read_counts_as_none(prepared: Tiny):
    assert prepared.redone_by(lambda: Path(f"{prepared.folder}.json").write_text("{", encoding="utf-8")) == {
        "C",
        "U",
        "V",
    }


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}, {data!r}]
from pathlib import Path
import nnunetv2_vqseg.data.preprocess_case as worker
from test_preprocess import Tiny

calls = 0
replace = Path.replace

def replace_until(self, target):
    global calls
    if self.suffix in (".b2nd", ".pkl"):
        calls += 1
        if calls == {calls}:
            os._exit(9)
    return replace(self, target)

Path.replace = replace_until
tiny = Tiny.__new__(Tiny)
tiny.__dict__.update(__import__("pickle").loads(bytes.fromhex({state!r})))
tiny.prepare()
"""


@pytest.mark.slow
@pytest.mark.parametrize("calls", [2, *(pytest.param(calls, marks=pytest.mark.nightly) for calls in (1, 3, 5))])
def test_a_killed_run_leaves_nothing_that_is_trusted(tiny: Tiny, calls: int):
    """Killed before the n-th of the nine moves into place, also while it replaces an outdated case."""

    def kill() -> None:
        tests = Path(__file__).parents[1]
        script = KILLED.format(
            tests=str(tests), data=str(tests / "data"), calls=calls, state=pickle.dumps(tiny.__dict__).hex()
        )
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9

    kill()
    with pytest.raises(DatasetError):
        load_prepared_identifiers(tiny.folder, None, FOLD)
    assert tiny.redone_by() >= {"U", "V"}
    tiny.plans["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    kill()
    tiny.prepare()
    for case in "CUV":
        data, seg, _, properties = nnUNetDatasetBlosc2(tiny.folder, [case]).load_case(case)
        assert data.shape == (1, 3, 16, 16)
        assert seg.shape == (1, 3, 16, 16)
        assert properties["shape_before_cropping"] == (3, 32, 32)
    assert tiny.leftovers() == []
    assert tiny.redone_by() == set()


def test_a_case_that_is_being_replaced_is_not_trusted(prepared: Tiny, monkeypatch: pytest.MonkeyPatch):
    """The old entry goes before the first of the files does."""
    seen: list[bool] = []

    def look(case: str, *_: object) -> None:
        seen.append(Manifest(prepared.folder).is_complete(case))
        raise DatasetError("stop here.")

    monkeypatch.setattr(preprocess, "prepare_case", look)
    prepared.plans["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    with pytest.raises(DatasetError):
        prepared.prepare()
    assert seen == [False, False, False]


def test_broken_images_are_named_and_the_others_are_done(tiny: Tiny):
    broken = [tiny.raw / "imagesUl" / f"{case}_0000.nii.gz" for case in "XY"]
    for file in broken:
        file.write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        tiny.prepare()
    assert [str(file) in line for file, line in zip(broken, str(error.value).splitlines(), strict=True)] == [True, True]
    assert set(tiny.written()) == {"C", "U", "V"}
    for file in broken:
        file.unlink()
    assert tiny.redone_by() == set()
    assert tiny.prepare() == ["C", "U", "V"]


@pytest.mark.parametrize("spacing", [(1500.0, 1500.0, 10.0), (0.0015, 0.0015, 10.0)])
def test_a_wrong_unit_is_refused_before_it_fills_the_memory(tiny: Tiny, spacing: tuple[float, float, float]):
    write_volume(tiny.raw / "imagesUl" / "X_0000.nii.gz", phantom(1)[0], spacing)
    with pytest.raises(DatasetError, match=r"X_0000\.nii\.gz has a spacing of"):
        tiny.prepare()


def test_a_large_slice_distance_is_no_wrong_unit(tiny: Tiny):
    write_volume(tiny.raw / "imagesUl" / "X_0000.nii.gz", phantom(1)[0], (1.5, 1.5, 1500.0))
    assert "X" in tiny.prepare()


def test_images_smaller_than_the_patch_and_single_slices_work(tiny: Tiny):
    write_volume(tiny.raw / "imagesUl" / "small_0000.nii.gz", phantom(1)[0][10:13, 10:13])
    write_volume(tiny.raw / "imagesUl" / "slice_0000.nii.gz", phantom(1)[0][..., :1])
    assert {"small", "slice"} <= set(tiny.prepare())


def test_a_crash_names_the_case(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    def crash(*_: object) -> None:
        raise IndexError("boom")

    monkeypatch.setattr(DefaultPreprocessor, "run_case_npy", crash)
    with pytest.raises(RuntimeError, match=r"C_0000\.nii\.gz.*boom"):
        tiny.prepare()


def test_folds_share_the_folder_but_not_their_cases(prepared: Tiny):
    prepared.fold_entry = {"train": ["C"], "val": ["A"], "unlabeled": ["B"]}
    assert prepared.redone_by() == {"B"}
    assert prepared.prepare() == ["B", "U", "V"]
    assert load_prepared_identifiers(prepared.folder, None, prepared.fold_entry) == ["B", "U", "V"]
    assert load_prepared_identifiers(prepared.folder, None, FOLD) == ["C", "U", "V"]
    assert load_prepared_identifiers(prepared.folder, None, None) == ["U", "V"]


def test_a_removed_image_is_forgotten(prepared: Tiny):
    (prepared.raw / "imagesUl" / "U_0000.nii.gz").unlink()
    assert prepared.prepare() == ["C", "V"]
    assert load_prepared_identifiers(prepared.folder, None, FOLD) == ["C", "V"]


def test_training_goes_on_without_the_raw_images(prepared: Tiny):
    cases = find_unlabeled_cases(prepared.raw, prepared.dataset_json, FOLD)
    shutil.rmtree(prepared.raw)
    plans_manager = PlansManager(prepared.plans)
    configuration = plans_manager.get_configuration("2d")
    assert load_prepared_identifiers(prepared.folder, None, FOLD, plans_manager, configuration) == ["C", "U", "V"]
    assert load_prepared_identifiers(prepared.folder, cases) == ["C", "U", "V"]
    with pytest.raises(DatasetError, match="nnUNet_raw"):
        load_prepared_identifiers(prepared.folder, None, {"unlabeled": ["D"]})
    assert load_prepared_identifiers(prepared.folder, None, FOLD, labeled=["A"]) == ["C", "U", "V"], "there are others"

    prepared.plans["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    other = PlansManager(json.loads(json.dumps(prepared.plans)))
    with pytest.raises(DatasetError, match="another plan"):
        load_prepared_identifiers(prepared.folder, None, FOLD, other, other.get_configuration("2d"))
    (Path(prepared.folder) / "V.pkl").unlink()
    with pytest.raises(DatasetError, match="case V is missing or incomplete"):
        load_prepared_identifiers(prepared.folder, None, FOLD)
    shutil.rmtree(Path(prepared.folder).parent)
    with pytest.raises(DatasetError, match="nnUNet_raw"):
        load_prepared_identifiers(prepared.folder, None, FOLD)


def test_a_complete_folder_may_be_read_only(prepared: Tiny, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", prepared.folder)

    monkeypatch.setattr(preprocess, "exclusive", refuse)
    assert prepared.prepare() == ["C", "U", "V"]
    prepared.fold_entry = {"train": ["C"], "val": ["A"], "unlabeled": ["B"]}
    with pytest.raises(DatasetError, match="Read-only file system"):
        prepared.prepare()


def test_a_transductive_case_is_logged(tiny: Tiny):
    add_case(tiny.raw, "imagesTs", "U")
    messages: list[str] = []
    tiny.prepare(log=messages.append)
    assert any("transductive" in message for message in messages)


def test_a_second_run_waits_for_the_first(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    original = preprocess_case.prepare_case
    done: list[str] = []
    started = threading.Event()

    def slow(case: str, *arguments: object):
        done.append(case)
        started.set()
        time.sleep(0.3)
        return original(case, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocess, "prepare_case", slow)
    first = threading.Thread(target=tiny.prepare)
    first.start()
    started.wait()
    messages: list[str] = []
    assert tiny.prepare(log=messages.append) == ["C", "U", "V"]
    first.join()
    assert sorted(done) == ["C", "U", "V"]
    assert messages == ["Another run is preparing the unlabelled cases; waiting for it."]


def test_runs_without_locks_do_not_break_each_other(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "fcntl", None)
    runs = [threading.Thread(target=tiny.prepare) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert tiny.prepare() == ["C", "U", "V"]
    for case in "CUV":
        nnUNetDatasetBlosc2(tiny.folder, [case]).load_case(case)
    assert tiny.redone_by() == set()


@pytest.mark.slow
def test_a_pool_of_spawned_workers_gives_the_same(tiny: Tiny, tmp_path: Path):
    (tiny.raw / "imagesUl" / "X_0000.nii.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"X_0000\.nii\.gz has zero bytes"):
        tiny.prepare(num_processes=2)
    (tiny.raw / "imagesUl" / "X_0000.nii.gz").unlink()
    assert tiny.prepare(num_processes=2) == ["C", "U", "V"]
    arrays = {case: nnUNetDatasetBlosc2(tiny.folder, [case]).load_case(case)[0][:] for case in "CUV"}
    shutil.rmtree(tiny.folder)
    tiny.prepare()
    for case, array in arrays.items():
        np.testing.assert_array_equal(nnUNetDatasetBlosc2(tiny.folder, [case]).load_case(case)[0][:], array)
    assert multiprocessing.active_children() == []


def test_properties_can_be_unpickled_by_nnunet(prepared: Tiny):
    properties = load_pickle(str(Path(prepared.folder) / "C.pkl"))
    assert properties["shape_after_cropping_and_before_resampling"] == (3, 32, 32)


def test_labelled_images_serve_as_unlabelled_ones_without_the_raw_images_too(tiny: Tiny):
    shutil.rmtree(tiny.raw / "imagesUl")
    plans_manager = PlansManager(tiny.plans)
    configuration = plans_manager.get_configuration("2d")
    cases = labeled_as_unlabeled(tiny.raw, tiny.dataset_json, ["A", "B"])
    prepare_unlabeled_cases(cases, plans_manager, configuration, tiny.dataset_json, tiny.folder, 0)
    shutil.rmtree(tiny.raw)
    with pytest.raises(DatasetError, match="no unlabelled case for this fold"):
        load_prepared_identifiers(tiny.folder, None, {"train": ["A", "B"], "val": ["C"]})
    assert load_prepared_identifiers(tiny.folder, None, None, plans_manager, configuration, ["A", "B"]) == ["A", "B"]
    with pytest.raises(DatasetError, match="case C is missing or incomplete"):
        load_prepared_identifiers(tiny.folder, None, None, labeled=["A", "C"])
