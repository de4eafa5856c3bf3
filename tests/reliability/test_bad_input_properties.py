"""Any bytes, any JSON and any name: an answer, or the error that is made for it, and never another one."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import said_by, train
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tiny_raw_dataset import phantom, write_volume
from worlds import FOLDS, PLANS, World, write_json

from nnunetv2_vqseg.core import json as json_files
from nnunetv2_vqseg.core.errors import ConfigError, DatasetError, UserError
from nnunetv2_vqseg.data.cases import find_unlabeled_cases
from nnunetv2_vqseg.data.checks.dataset_json import check_dataset_json, declared_labels, number_of_channels
from nnunetv2_vqseg.data.checks.images import read_case
from nnunetv2_vqseg.data.manifest import Manifest, manifest_file
from nnunetv2_vqseg.data.splits_file import check_fold_entry, load_fold_entry
from nnunetv2_vqseg.methods.vqseg import VQSegConfig
from nnunetv2_vqseg.report.volumes import read_volume

# torch's launcher, which wants the real standard error.
pytestmark = pytest.mark.filterwarnings("ignore:Unable to enable fault handler")
# The same examples on every machine and in every run.
FIXED = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "block": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
READERS = {".nii.gz": SimpleITKIO, ".nii": NibabelIO, ".nrrd": SimpleITKIO, ".png": NaturalImage2DIO, ".tif": Tiff3DIO}

scalars = st.none() | st.booleans() | st.integers(-3, 40) | st.floats(-2, 50) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda name: not name.startswith(".") and not name.endswith("_seg")
)


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for every example."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def nifti() -> bytes:
    """A small image, not compressed."""
    with scratch() as folder:
        write_volume(folder / "valid.nii", phantom(1)[0][:12, :12])
        return (folder / "valid.nii").read_bytes()


def only(kind: type[Exception], action: Callable[[], Any], named: str = "") -> Any:
    """The result, or None if the action fails with this error and a line of text that names what is wrong."""
    try:
        return action()
    except kind as error:
        stop = error
    assert "\n" not in str(stop)
    assert str(stop).endswith(".")
    assert named in str(stop)
    return None


def read_anyhow(content: bytes, ending: str) -> None:
    with scratch() as folder:
        file = folder / f"U_0000{ending}"
        file.write_bytes(content)
        only(DatasetError, lambda: read_case("U", [str(file)], DATASET_JSON, READERS[ending]), str(file))
        only(UserError, lambda: read_volume(file, READERS[ending]), str(file))


@FIXED
@given(content=st.binary(max_size=400), ending=st.sampled_from(sorted(READERS)))
def test_any_bytes_as_an_image(content: bytes, ending: str) -> None:
    read_anyhow(content, ending)


@settings(FIXED, max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 360), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
    length=st.integers(0, 2000) | st.none(),
    ending=st.sampled_from([".nii", ".nii.gz"]),
)
def test_any_change_of_an_image(
    nifti: bytes, changes: list[tuple[int, bytes]], length: int | None, ending: str
) -> None:
    content = bytearray(nifti)
    for place, change in changes:
        content[place : place + len(change)] = change
    whole = bytes(content[:length])
    read_anyhow(gzip.compress(whole, mtime=0) if ending == ".nii.gz" else whole, ending)


@settings(FIXED, max_examples=400)
@given(key=st.sampled_from([item.name for item in fields(VQSegConfig)]), value=values)
@example(key="epsilon", value=float("nan"))
@example(key="initial_lr", value=10**400)
def test_any_value_of_any_hyper_parameter(key: str, value: Any) -> None:
    config = only(ConfigError, lambda: VQSegConfig().override({key: value}), f"vqseg.{key}")
    assert config is None or json.loads(json.dumps(config.as_dict()))[key] == value


@FIXED
@given(key=st.text(max_size=8), value=values)
def test_any_other_hyper_parameter(key: str, value: Any) -> None:
    assume(key not in VQSegConfig().as_dict())
    assert only(ConfigError, lambda: VQSegConfig().override({key: value}), repr(key)) is None


lists = st.lists(st.sampled_from("ABCZ"), max_size=3) | values
folds = st.fixed_dictionaries({}, optional={"train": lists, "val": lists, "unlabeled": lists})


@settings(FIXED, max_examples=300)
@given(content=st.lists(folds | values, max_size=3) | values, fold=st.sampled_from([0, 1, "all"]))
def test_any_json_as_a_split(content: Any, fold: int | str) -> None:
    with scratch() as folder:
        write_json(folder / "splits_final.json", content)
        entry = only(DatasetError, lambda: load_fold_entry(folder, fold))
        if entry is not None:
            for key in ("train", "val"):
                assert all(isinstance(case, str) for case in entry[key])
            unlabeled = only(DatasetError, lambda: check_fold_entry(entry, "ABC"))
            assert unlabeled is None or set(unlabeled) <= set("ABC") - {*entry["train"], *entry["val"]}


@FIXED
@given(content=st.binary(max_size=60))
def test_any_bytes_as_a_split(content: bytes) -> None:
    with scratch() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "SECONDS_BETWEEN_TRIES", 0)
        (folder / "splits_final.json").write_bytes(content)
        only(DatasetError, lambda: load_fold_entry(folder, 0))


labels = st.dictionaries(
    st.sampled_from(["background", "a", "b", "ignore"]), st.integers(0, 4) | st.lists(st.integers(0, 4)) | values
)


@settings(FIXED, max_examples=500)
@given(
    key=st.sampled_from([*DATASET_JSON, "regions_class_order", "modality", "dataset", "overwrite_image_reader_writer"]),
    value=values,
    labels=labels,
    order=st.lists(st.integers(0, 4), max_size=3) | st.none(),
)
def test_what_we_accept_as_dataset_json_nnunet_accepts(key: str, value: Any, labels: Any, order: Any) -> None:
    content = {**DATASET_JSON, "labels": {"background": 0, **labels}, "regions_class_order": order, key: value}
    if only(DatasetError, lambda: check_dataset_json(content, "dataset.json") or True):
        manager = LabelManager(content["labels"], content.get("regions_class_order"))
        assert declared_labels(content) == {*manager.all_labels} | (
            {manager.ignore_label} if manager.has_ignore_label else set()
        )
        assert manager.num_segmentation_heads > 0
        assert number_of_channels(content) > 0


@FIXED
@given(cases=st.sets(names, min_size=1, max_size=4))
def test_names_come_back_as_they_are(cases: set[str]) -> None:
    with scratch() as raw:
        for folder in ("imagesTr", "imagesUl"):
            (raw / folder).mkdir()
        try:
            for case in cases:
                (raw / "imagesUl" / f"{case}_0000.nii.gz").touch()
        except OSError:
            assume(False)  # too long in bytes for this file system
        assume(len(list((raw / "imagesUl").iterdir())) == len(cases))  # some file systems take two for one
        found = find_unlabeled_cases(raw, DATASET_JSON, None)
        assert {Path(file).name for files in found.files.values() for file in files} == {
            path.name for path in (raw / "imagesUl").iterdir()
        }
        assert set(found.files) == cases
        write_json(raw / "splits_final.json", [{"train": sorted(cases), "val": []}])
        entry = load_fold_entry(raw, 0)
        assert entry is not None
        assert entry["train"] == sorted(cases)


entries = st.dictionaries(
    st.sampled_from(["origin", "settings", "sources", "outputs"]),
    st.lists(st.dictionaries(st.sampled_from(["size", "mtime_ns", "content"]), scalars))
    | st.dictionaries(names, scalars)
    | values,
)


@settings(FIXED, max_examples=200)
@given(
    content=st.fixed_dictionaries(
        {"version": st.just(1)}, optional={"cases": st.dictionaries(st.just("U"), entries | values) | values}
    )
    | values
)
def test_a_manifest_that_is_none_counts_as_nothing_prepared(content: Any) -> None:
    with scratch() as folder:
        write_json(manifest_file(folder / "cases"), content)
        manifest = Manifest(folder / "cases")
        assert not manifest.is_complete("U")
        assert not manifest.is_current("U", [str(folder / "U_0000.nii.gz")], "settings")


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in nested dictionaries and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.fixture(scope="module")
def planned(templates: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    """A planned dataset, of which every example gets another plan."""
    world = World(tmp_path_factory.mktemp("plans") / "world")
    shutil.copytree(templates(train), world.root)
    return world


@settings(FIXED, max_examples=60)
@given(data=st.data())
def test_any_value_at_any_place_of_a_plan(planned: World, data: st.DataObject) -> None:
    file = planned.preprocessed / f"{PLANS}.json"
    original = json.loads(file.read_text(encoding="utf-8"))
    plans = copy.deepcopy(original)
    plans["configurations"].pop("3d_fullres")
    *path, key = data.draw(st.sampled_from(sorted(places(plans), key=str)))
    inner: Any = plans
    for step in path:
        inner = inner[step]
    inner[key] = data.draw(values)
    try:
        write_json(file, plans)
        said = said_by(train, planned)
        # A line for each image where it is the spacing that does not fit them.
        assert said.message is None or all(line.endswith(".") for line in said.message.splitlines())
        assert json.loads(file.read_text(encoding="utf-8")) == plans
    finally:
        write_json(file, original)
        write_json(planned.preprocessed / "splits_final.json", FOLDS)
