"""The line that a `.pth` file runs at interpreter start, tried in fresh interpreters."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINE = (ROOT / "nnunetv2_vqseg_register.pth").read_text(encoding="utf-8").strip()


def variable_after(
    line: str, site: Path, *words: str, variable: str = "nnUNet_extTrainer", **environment: str
) -> str | None:
    """What it holds after the line has run with `site` on the path and nothing of this project's installation.

    Args:
        words: further ones of the command.
    """
    ours = ("nnUNet_ext", "NNUNET_VQSEG", "OMP_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    code = f"import sys; sys.path.insert(0, {str(site)!r}); exec({line!r}); import os; "
    code += f"print(os.environ.get({variable!r}), end='')"
    output = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *words],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return output.stdout


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "nnunetv2_vqseg" / "shim").mkdir(parents=True)
    return tmp_path


def test_is_one_line_that_imports_only_os_and_sys():
    assert LINE.count("\n") == 0
    assert LINE.startswith("import os, sys;")
    assert LINE.count("import") == 1


def test_sets_the_variable_where_the_user_has_none(site: Path):
    assert variable_after(LINE, site) == str(site / "nnunetv2_vqseg" / "shim")


def test_keeps_the_users_own_directories_first_and_is_idempotent(site: Path):
    mine = str(site / "nnunetv2_vqseg" / "shim")
    once = variable_after(LINE, site, nnUNet_extTrainer=os.pathsep.join(["/my/trainers", "/more"]))
    assert once == os.pathsep.join(["/my/trainers", "/more", mine])
    assert variable_after(LINE, site, nnUNet_extTrainer=once) == once


def test_can_be_switched_off(site: Path):
    assert variable_after(LINE, site, NNUNET_VQSEG_NO_AUTOREGISTER="1") == "None"


def test_leaves_the_variable_alone_once_the_package_is_gone(site: Path):
    shutil.rmtree(site / "nnunetv2_vqseg")
    assert variable_after(LINE, site) == "None"


@pytest.mark.parametrize(
    ("command", "variables", "expected"),
    [
        ("/usr/bin/nnUNetv2_train 27 2d 0 -tr nnUNetTrainerVQSeg -device cpu --c", {}, "PASSIVE"),
        ("-m nnunetv2_vqseg.train 27 2d 0 -device=cpu", {}, "PASSIVE"),
        ("nnUNetv2_train 27 2d 0 -device cpu", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("nnUNetv2_train 27 2d 0 -device cpu", {"NNUNET_VQSEG_NO_AUTOREGISTER": "1"}, "None"),
        ("nnUNetv2_train 27 2d 0 -device cuda", {}, "None"),
        ("nnUNetv2_train 27 2d 0", {}, "None"),
        ("nnUNetv2_predict -i in -o out -device cpu", {}, "None"),
    ],
)
def test_threads_of_a_training_on_a_cpu_wait_passively(site: Path, command, variables, expected):
    assert variable_after(LINE, site, *command.split(), variable="OMP_WAIT_POLICY", **variables) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs torch with GNU's OpenMP")
@pytest.mark.parametrize(("device", "spins"), [("cpu", False), ("cuda", True)])
def test_the_line_comes_before_the_library_that_reads_the_variable(site: Path, device, spins):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    code = f"import sys; sys.path.append({str(site)!r}); exec({LINE!r}); import torch"
    words = ["nnUNetv2_train", "27", "2d", "0", "-device", device]
    run = [sys.executable, "-c", code, *words]
    shown = subprocess.run(run, env={**clean, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '" in shown.stderr
    assert ("GOMP_SPINCOUNT = '0'" in shown.stderr) != spins


def test_shim_directory_holds_nothing_but_the_shim():
    from nnunetv2_vqseg.commands.path import trainer_directory

    assert [file.name for file in trainer_directory().iterdir() if file.name != "__pycache__"] == ["vqseg_trainers.py"]


@pytest.mark.parametrize("searched", [None, "", "/my/trainers", "/my/trainers:OURS", "OURS"])
def test_the_command_fails_where_nnunet_does_not_look(searched, monkeypatch, capsys):
    from nnunetv2_vqseg.commands.path import main, trainer_directory

    ours = str(trainer_directory())
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    if searched is not None:
        monkeypatch.setenv("nnUNet_extTrainer", searched.replace(":", os.pathsep).replace("OURS", ours))
    if searched and "OURS" in searched:
        main()
        assert capsys.readouterr() == (f"{ours}\n", "")
        return
    with pytest.raises(SystemExit) as stopped:
        main()
    printed, warned = capsys.readouterr()
    assert stopped.value.code == 1
    assert printed == f"{ours}\n", "for $(nnUNetv2_vqseg_path)"
    monkeypatch.setenv("nnUNet_extTrainer", warned.strip().partition("nnUNet_extTrainer=")[2])
    main()
    assert os.environ["nnUNet_extTrainer"] == os.pathsep.join(([searched] if searched else []) + [ours])


def test_every_trainer_is_found_by_nnunet_and_pickled_as_the_same_class():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_vqseg import trainers

    for name in (*trainers.__all__, "nnUNetTrainerVQSeg_5epochs", "nnUNetTrainerVQSegQPM_1epoch"):
        found = recursive_find_trainer_class_by_name(name)
        assert found is getattr(trainers, name)
        assert pickle.loads(pickle.dumps(found)) is found


def test_users_own_trainer_directory_works_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    (tmp_path / "my_trainers.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerMine(nnUNetTrainer): pass\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), os.environ["nnUNet_extTrainer"]]))
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine").__name__ == "nnUNetTrainerMine"
    assert recursive_find_trainer_class_by_name("nnUNetTrainerVQSeg").__name__ == "nnUNetTrainerVQSeg"


def test_no_trainer_name_has_a_double_underscore():
    """nnU-Net splits folder names there."""
    from nnunetv2_vqseg import trainers

    assert not [name for name in trainers.__all__ if "__" in name]


def test_trainers_of_any_number_of_epochs_are_made_when_they_are_asked_for():
    from nnunetv2_vqseg import trainers
    from nnunetv2_vqseg.core.errors import ConfigError

    for name in trainers.__all__:
        made = getattr(trainers, f"{name}_7epochs")
        assert issubclass(made, getattr(trainers, name))
        assert made.default_config().num_epochs == 7
        assert made is getattr(trainers, f"{name}_7epochs")
        assert made.configured({"num_epochs": 8}).num_epochs == 8, "to go on; refused where a training starts"
        with pytest.raises(ConfigError, match=rf"_7epochs trains for 7 epochs.*num_epochs = 6: use -tr {name} "):
            made.configured({"num_epochs": 6})
    for wrong in (
        "nnUNetTrainerVQSeg_0epochs",
        "nnUNetTrainerX_5epochs",
        "nnUNetTrainerVQSeg_epochs",
        "nnUNetTrainerX",
    ):
        assert not hasattr(trainers, wrong)
    assert "nnUNetTrainerVQSeg_7epochs" not in trainers.__all__
