"""`pip install` and `pip uninstall` in an environment of its own, where nnU-Net comes from this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LOOK = """
import multiprocessing, os, pickle

def found():
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerVQSeg")
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    own = recursive_find_trainer_class_by_name("nnUNetTrainerOfTheUser")
    return trainer.__module__, own.__name__

if __name__ == "__main__":
    import nnunetv2, nnunetv2_vqseg
    print("look:", os.path.dirname(nnunetv2.__file__))
    print("look:", os.path.dirname(nnunetv2_vqseg.__file__))
    print("look:", *found())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("look:", *pool.apply(found))
"""
USERS_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerOfTheUser(nnUNetTrainer):
    pass
"""


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def contents(folder: Path) -> set[str]:
    """Files of an environment, without what Python compiled."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize(
    ("editable", "nnunet_editable"),
    [
        (False, False),
        pytest.param(False, True, marks=pytest.mark.nightly),
        pytest.param(True, False, marks=pytest.mark.nightly),
    ],
)
def test_trainers_are_found_once_installed_and_nothing_is_left_once_not(
    wheel: Path, tmp_path: Path, editable: bool, nnunet_editable: bool
):
    environment, script, users = tmp_path / "env", tmp_path / "look.py", tmp_path / "users"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    here = Path(sysconfig.get_path("purelib"))
    site = environment / here.relative_to(sys.prefix)
    paths = [str(here)]
    if nnunet_editable:  # a line in a .pth file that names a checkout
        shutil.copytree(here / "nnunetv2", tmp_path / "checkout" / "nnunetv2")
        paths.insert(0, str(tmp_path / "checkout"))
    (site / "nnunet.pth").write_text("\n".join(paths), encoding="utf-8")
    users.mkdir()
    (users / "own.py").write_text(USERS_TRAINER, encoding="utf-8")
    script.write_text(LOOK, encoding="utf-8")
    before = contents(environment)

    pip("--python", python, "install", "--no-deps", *(["-e", ROOT] if editable else [wheel]))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet", "PYTHON", "NNUNET"))}
    output = subprocess.run(
        [python, script], env=clean | {"nnUNet_extTrainer": str(users)}, capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr
    said = [line.removeprefix("look: ") for line in output.stdout.splitlines() if line.startswith("look: ")]
    nnunet, ours, trainer, in_worker = said
    assert Path(nnunet) == (tmp_path / "checkout" if nnunet_editable else here) / "nnunetv2"
    assert Path(ours) == (ROOT if editable else site) / "nnunetv2_vqseg"
    assert trainer == in_worker
    assert trainer.endswith(" nnUNetTrainerOfTheUser")

    pip("--python", python, "uninstall", "-y", "nnunetv2-vqseg")
    assert contents(environment) == before
    variable = [python, "-c", "import os; print(os.environ.get('nnUNet_extTrainer'))"]
    assert subprocess.run(variable, env=clean, capture_output=True, text=True, check=True).stdout.strip() == "None"


def interpreter(version: str) -> str | None:
    """Python of this version, on the path or pyenv's."""
    known = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    return shutil.which(f"python{version}") if not known else str(known[-1])


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_it_installs_is_found_and_trains_an_epoch(wheel: Path, tmp_path: Path, version: str):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    environment = tmp_path / "env"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet", "PYTHON", "NNUNET"))}
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    few = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "nnUNet_compile": "f"}
    path = f"{environment / 'bin'}{os.pathsep}{clean['PATH']}"

    def run(*words: str | Path) -> str:
        done = subprocess.run(
            list(map(str, words)),
            env=clean | folders | few | {"PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    for folder in folders.values():
        Path(folder).mkdir()
    run(python, "-m", "venv", environment)
    run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert f" {version}." in run("python", "-V")
    sizes = ["--labeled", "2", "--unlabeled", "2", "--val", "1", "--test", "1", "--size", "48", "56"]
    run("python", ROOT / "scripts" / "make_phantoms.py", *sizes)
    run("nnUNetv2_vqseg_plan_and_preprocess", "-d", "901", "-np", "1", "-npfp", "1")
    small = ["--patch", "32", "--features", "8", "--max-features", "16"]
    keys = ["iterations_per_epoch=2", "val_iterations_per_epoch=1", "num_codes=64", "labeled_batch_size=2"]
    run("python", ROOT / "scripts" / "small_plan.py", "-d", "901", *small, "--set", *keys, "unlabeled_batch_size=2")
    model = ["-tr", "nnUNetTrainerVQSeg_1epoch", "-p", "nnUNetVQSegPlans", "-device", "cpu"]
    run("nnUNetv2_train", "901", "2d", "0", *model)
    images = tmp_path / "raw" / "Dataset901_Phantom" / "imagesTs"
    run("nnUNetv2_predict", "-i", images, "-o", "out", "-d", "901", "-c", "2d", "-f", "0", *model)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == len(list(images.iterdir())) > 0
    shutil.rmtree(environment)  # several GB each
