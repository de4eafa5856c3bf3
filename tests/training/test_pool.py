"""Methods that predict the unlabelled cases and leave some out, inside nnU-Net."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_vqseg.data.unlabeled_dataset import UnlabeledDataset

pytestmark = pytest.mark.slow

NAME = "nnUNetTrainerNNFilterMatch"
SETTINGS = {"filter_at": [0.5, 1.0], "warm_up": 0.0, "num_epochs": 2, "iterations_per_epoch": 1, "filter_share": 0.9}


@pytest.fixture
def started(make_trainer):
    """A trainer before its first epoch; workers are stopped."""
    trainer = make_trainer(NAME, **SETTINGS)
    trainer.on_train_start()
    yield trainer
    trainer.stop_loaders()


def drawn(trainer, number: int = 24) -> set[str]:
    return {key for _ in range(number) for key in next(trainer.dataloader_unlabeled)["keys"]}


def test_logits_are_those_of_nnunet_s_prediction(started, home):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    network = started.network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
    logits = {}
    answers = started.pool.predict(lambda case, values: logits.update({case: values.clone()}) or 0.0)
    assert answers.keys() == logits.keys() == set(started.pool.names)
    assert len(logits) == 4
    assert network.training
    assert isinstance(network(torch.zeros(1, 1, 32, 32)), list), "deep supervision is on again"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002

    folder = Path(started.output_folder)
    started.save_checkpoint(str(folder / "checkpoint_final.pth"))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,), "checkpoint_final.pth")
    for case, values in logits.items():
        image = nnUNetDatasetBlosc2(started.cases.unlabeled_folder, [case]).load_case(case)[0][:]
        expected = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image))
        assert values.shape[1:] == image.shape[1:]
        torch.testing.assert_close(values, expected, rtol=0, atol=0)


def test_cases_left_out_are_drawn_no_more_also_when_continued(started, make_trainer):
    assert drawn(started) == set(started.pool.found)
    assert len(started.pool.found) == 4
    started.current_epoch = 1
    started.on_train_epoch_start()
    (kept,) = started.pool.names
    assert drawn(started) == {kept}
    loader = started.dataloader_unlabeled
    started.on_train_epoch_start()
    assert started.dataloader_unlabeled is loader, "an unchanged list needs no new loader"
    assert started.save_unfinished_epoch(f"{started.output_folder}/checkpoint_latest.pth")

    resumed = make_trainer(NAME, continue_training=True, **SETTINGS)
    resumed.load_checkpoint(f"{started.output_folder}/checkpoint_latest.pth")
    assert resumed.method.filtered == 1
    resumed.on_train_start()
    assert resumed.pool.names == [kept]
    assert drawn(resumed) == {kept}
    asked = []
    resumed.pool.predict = asked.append
    resumed.on_train_epoch_start()
    assert asked == []


@pytest.mark.parametrize(("workers", "readers"), [("0", 1), ("1", 1), ("8", 4)])
def test_loading_processes_share_the_memory_and_the_log_says_what_is_kept(started, monkeypatch, workers, readers):
    from nnunetv2_vqseg.trainer import pool

    everything = UnlabeledDataset(started.cases.unlabeled_folder, started.pool.names)
    room = sum(everything.image(case)[:].nbytes for case in everything.identifiers[:3])
    monkeypatch.setattr(pool, "usable_memory", lambda: 10 * readers * (room + 1))  # a tenth of it is the default
    monkeypatch.setattr(pool, "get_allowed_n_proc_DA", lambda: int(workers))
    monkeypatch.setattr(pool, "build_unlabeled_loader", lambda dataset, *_, **__: dataset)
    lines = []
    monkeypatch.setattr(started, "print_to_log_file", lines.append)
    dataset = started.pool.loader()
    assert dataset.kept == set(everything.identifiers[:3])
    assert lines[-1:] == [
        f"3 of 4 unlabelled cases stay decompressed in memory once they are read, {room / 2**20:.1f} MiB in each of "
        f"{readers} process(es) that load them."
    ]
    monkeypatch.setattr(started.ranks, "on_this_machine", 3)
    assert started.pool.loader().kept_bytes <= room / 3
    monkeypatch.setattr(started, "config", started.config.override({"unlabeled_memory_share": 0.0}))
    assert started.pool.loader().kept == set()


def test_a_stop_while_cases_are_predicted_saves_and_predicts_them_again(started, make_trainer):
    from nnunetv2_vqseg.trainer.stopping import StopRequest

    started.stop_request = StopRequest()
    started.current_epoch = 1
    measure, seen = started.method.entropy, []

    def measure_and_ask(case, logits):
        seen.append(case)
        started.stop_request.received = signal.SIGTERM
        return measure(case, logits)

    started.method.entropy = measure_and_ask
    with pytest.raises(SystemExit) as stop:
        started.on_train_epoch_start()
    assert stop.value.code == 75
    assert len(seen) == 1
    resumed = make_trainer(NAME, continue_training=True, **SETTINGS)
    resumed.load_checkpoint(f"{started.output_folder}/checkpoint_latest.pth")
    assert resumed.method.filtered == 0
    resumed.on_train_start()
    assert len(resumed.pool.names) == 4
    resumed.on_train_epoch_start()
    assert len(resumed.pool.names) == 1


def test_cases_that_are_all_left_out_are_a_sentence(make_trainer):
    from nnunetv2_vqseg.core.errors import DatasetError

    trainer = make_trainer(NAME)
    trainer.pool.load_state({"dropped": ["A", "B"]})
    trainer.pool.fill(["A", "C"])
    assert trainer.pool.names == trainer.unlabeled_identifiers == ["C"]
    with pytest.raises(DatasetError, match="left out all of the 2 unlabelled cases"):
        trainer.pool.fill(["A", "B"])
