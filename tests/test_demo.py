"""What the demo promises about its arguments; the trainings themselves are not run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import demo  # noqa: E402

from nnunetv2_vqseg.methods.vqseg import VQSegConfig  # noqa: E402
from nnunetv2_vqseg.report.training_records import TrainingRecord  # noqa: E402


def arguments(out: Path, *more: str) -> demo.argparse.Namespace:
    return demo.parse(["--out", str(out), *more])


def block(*more: str, has_gpu: bool = False) -> VQSegConfig:
    pairs = (item.partition("=") for item in demo.settings(demo.parse([*more]), has_gpu))
    values = {key: int(value) if value.isdigit() else value for key, _, value in pairs}
    return VQSegConfig().override(values)


@pytest.mark.parametrize(("asked", "trained"), [("400", 400), ("405", 400), ("406", 410), ("10", 10), ("14", 10)])
def test_number_of_steps_that_is_told_is_the_number_trained(asked, trained, capsys):
    assert demo.parse(["--steps", asked]).steps == trained
    config = block("--steps", asked)
    assert config.num_epochs * config.iterations_per_epoch == trained
    assert (f"training {trained} steps" in capsys.readouterr().out) == (asked != str(trained))


@pytest.mark.parametrize(("bytes_there", "processes"), [(1 << 26, 1), (1 << 33, 2), (None, 2)])
def test_the_report_works_alone_where_docker_has_its_default_shared_memory(
    bytes_there, processes, monkeypatch, tmp_path
):
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda folder: SimpleNamespace(total=bytes_there))
    assert demo.workers(tmp_path if bytes_there else tmp_path / "none") == processes


@pytest.mark.nightly
def test_the_demo_runs_to_its_report(tmp_path):
    """`python scripts/demo.py` as it stands, with 10 steps a method, on a CPU."""
    command = [sys.executable, str(SCRIPTS / "demo.py"), "--out", str(tmp_path / "out"), "--steps", "10"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "nnUNet_n_proc_DA": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for step in range(1, 5):
        assert f"=== {step}/4 " in done.stdout
    summary = json.loads((tmp_path / "out" / "report" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["methods"]) == list(demo.TRAINERS)
    for method in summary["methods"].values():
        assert [fold["steps"] for fold in method["training"]["folds"].values()] == [10]
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_foundation_model_stays_out_and_the_page_says_so():
    assert block().foundation_policy == block(has_gpu=True).foundation_policy == "off"
    assert demo.WITHOUT_PFA in demo.facts({})


def test_steps_and_labelled_volumes_are_those_of_the_checkpoints():
    records = {
        "A": TrainingRecord(epochs=10, iterations_per_epoch=40, runtime={"labeled_cases": 6}),
        "B": TrainingRecord(runtime={"steps": 390, "labeled_cases": 14}),
    }
    assert "A 400 steps on 6 labelled volumes; B 390 steps on 14 labelled volumes." in demo.facts(records)[0]


def test_a_run_with_the_same_arguments_goes_on(tmp_path):
    demo.claim(tmp_path / "out", arguments(tmp_path / "out"), "cpu")
    (tmp_path / "out" / "nnUNet_raw" / "Dataset901_Phantom").mkdir(parents=True)
    before = (tmp_path / "out" / demo.STAMP).read_bytes()
    demo.claim(tmp_path / "out", arguments(tmp_path / "out", "--steps", "2001"), "cpu")  # 2000, as before
    assert (tmp_path / "out" / demo.STAMP).read_bytes() == before


@pytest.mark.parametrize(
    ("more", "device", "difference"),
    [
        (["--steps", "800"], "cpu", "--steps 2000, not 800"),
        (["--labeled", "7"], "cpu", "--labeled 1, not 7"),
        (["--seed", "1"], "cpu", "--seed 0, not 1"),
        (["--data", "/acdc"], "cpu", "--data none, not /acdc"),
        ([], "cuda", "the device cpu, not cuda"),
    ],
)
def test_a_run_with_other_arguments_stops_and_names_the_one_that_differs(tmp_path, more, device, difference):
    demo.claim(tmp_path, arguments(tmp_path), "cpu")
    (tmp_path / "nnUNet_raw" / "Dataset901_Phantom").mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"{difference}; give another --out, or delete the folder"):
        demo.claim(tmp_path, arguments(tmp_path, *more), device)
    assert json.loads((tmp_path / demo.STAMP).read_text(encoding="utf-8"))["steps"] == 2000


def test_a_dataset_of_unknown_origin_is_left_alone(tmp_path):
    (tmp_path / "nnUNet_raw" / "Dataset901_Phantom").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"no demo\.json that says what it was made with"):
        demo.claim(tmp_path, arguments(tmp_path), "cpu")
    assert not (tmp_path / demo.STAMP).exists()


def test_a_run_that_was_refused_its_data_may_be_corrected(tmp_path):
    demo.claim(tmp_path, arguments(tmp_path, "--data", "/wrong"), "cpu")
    (tmp_path / "nnUNet_raw").mkdir()
    demo.claim(tmp_path, arguments(tmp_path, "--data", "/right"), "cpu")
    (tmp_path / "nnUNet_results" / "Dataset027_ACDC").mkdir(parents=True)
    with pytest.raises(SystemExit, match="was made with --data /right, not /wrong"):
        demo.claim(tmp_path, arguments(tmp_path, "--data", "/wrong"), "cpu")


def test_progress_is_read_from_the_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("importing\n", encoding="utf-8")
    assert demo.progress(log) == "starting"
    log.write_text("2026: Epoch 0 \n2026: Epoch 1 \n", encoding="utf-8")
    assert demo.progress(log) == f"epoch 2 of {demo.EPOCHS}"
    log.write_text("2026: Epoch 9 \n2026: Training done.\n", encoding="utf-8")
    assert demo.progress(log) == "final validation"


def test_a_failed_training_is_shown_and_the_other_one_told_to_save(tmp_path, monkeypatch):
    program = {
        "A": "print('what went wrong'); raise SystemExit(3)",
        "B": "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(600)",
    }
    started = {}

    def start(dataset_id, trainer, device, again, log):
        with log.open("ab") as output:
            started[trainer] = subprocess.Popen([sys.executable, "-c", program[trainer]], stdout=output)
        return started[trainer]

    monkeypatch.setattr(demo, "TRAINERS", {"first": "A", "second": "B"})
    monkeypatch.setattr(demo, "start_training", start)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    with pytest.raises(SystemExit, match=r"the training of first failed; see .*A\.txt"):
        demo.train_all(901, "cpu", tmp_path / "logs")
    assert started["B"].returncode is not None, "nothing goes on in the background"


def test_a_training_of_an_earlier_run_is_not_repeated(tmp_path, monkeypatch, capsys):
    for trainer in demo.TRAINERS.values():
        folder = tmp_path / "Dataset901_Phantom" / f"{trainer}__{demo.PLANS}__2d" / "fold_0" / "validation"
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr(demo, "start_training", lambda *arguments: pytest.fail("trained again"))
    demo.train_all(901, "cpu", tmp_path / "logs")
    assert capsys.readouterr().out.count("trained by an earlier run") == 2
