"""Pseudo-labels on disk: read as written, changes are noticed, and the loader centres on their foreground."""

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from test_loader import prepare

from nnunetv2_vqseg.data.label_store import LabelStore, instability
from nnunetv2_vqseg.data.loader import build_unlabeled_loader
from nnunetv2_vqseg.data.unlabeled_dataset import UnlabeledDataset


@pytest.fixture
def labels() -> np.ndarray:
    made = np.zeros((1, 3, 20, 24), np.int16)
    made[0, 0, :2] = -1
    made[0, 1, 4:8, 5:9] = 2
    return made


def test_labels_are_read_as_written_and_have_one_hash(tmp_path, labels):
    store = LabelStore(tmp_path / "round_1")
    written = store.write("A", labels, [1, 2], (16, 16))
    store.files = {"A": written}
    assert np.array_equal(store.read("A"), labels)
    assert store.write("A", labels, [1, 2], (16, 16)) == written
    assert store.is_there()
    assert store.changed() == []
    assert sorted(path.name for path in store.folder.iterdir()) == ["A.pkl", "A_seg.b2nd"]


@pytest.mark.parametrize("name", ["A_seg.b2nd", "A.pkl"])
@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_changed_or_missing_file_is_noticed(tmp_path, labels, name, change):
    store = LabelStore(tmp_path)
    store.files = {case: store.write(case, labels, [1, 2], (16, 16)) for case in ("A", "B")}
    file = tmp_path / name
    if change == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert store.changed() == ["A"]
    assert store.is_there() == (change != "gone")


def test_instability_by_hand():
    before, after = np.array([0, 1, 1, 2, -1]), np.array([0, 1, 2, 0, 0])
    assert instability(before, after) == 2 / 2  # the third and the fourth differ; -1 is background
    assert instability(after, before) == 2 / 3
    assert instability(before, np.zeros(5, int)) == 3


def test_loader_gives_images_with_these_labels_and_looks_for_their_foreground(tmp_path, labels):
    folder = prepare(tmp_path / "images")
    image = nnUNetDatasetBlosc2(folder, ["U"]).load_case("U")[0]
    own = np.zeros((1, *image.shape[1:]), np.int16)
    own[0, -1, 3:5, 6:8] = 1
    LabelStore(tmp_path / "labels").write("U", own, [1], (16, 16))
    dataset = UnlabeledDataset(folder, ["U"], tmp_path / "labels", keep_bytes=10**9)
    data, seg, _, properties = dataset.load_case("U")
    assert np.array_equal(data[:], image[:])
    assert np.array_equal(seg[:], own)
    assert len(properties["class_locations"][1]) == 4
    loader = build_unlabeled_loader(dataset, 2, (16, 16), (16, 16), None, 0, False, oversample_foreground=1.0)
    for _ in range(5):
        assert (next(loader)["target"] == 1).any(), "every patch is centred on foreground"
