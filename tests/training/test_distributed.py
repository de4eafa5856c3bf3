"""Several processes compute what one computes with the whole batch, and stay equal."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ddp_math import CASES, backward, build, build_method, gradients, run_rank, whole_batch

from nnunetv2_vqseg.commands.rendezvous import leave_process_group
from nnunetv2_vqseg.report.training_records import read_training_record
from nnunetv2_vqseg.trainer.stopping import EXIT_INTERRUPTED
from nnunetv2_vqseg.trainer.trainer import MethodTrainer

EXIT_REFUSED = 2
Ranks = list[dict[str, Any]]

DRAW_PREVIEW = MethodTrainer._draw_preview  # which quick trainings leave out


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=[pytest.mark.slow, pytest.mark.nightly])])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What `run_rank` computed in each of 2 or 4 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process_with_the_whole_batch(ranks: Ranks, case: str) -> None:
    network = build(case)
    _, loss = backward(network, build_method(case, ddp=False), *whole_batch(len(ranks), seed=5))
    expected = gradients(network)
    losses = [rank[case][1] for rank in ranks]
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-5, atol=0)
    assert max(losses) - min(losses) > 0.01, "the processes must have had different images"
    for rank in ranks:
        found = rank[case][0]
        assert found.keys() == expected.keys() == dict(network.named_parameters()).keys()
        for name, gradient in expected.items():
            # Float sums in another order differ by 2e-6; the smallest mistake that was tried by 1e-4.
            error = (found[name] - gradient).abs().max() / gradient.abs().max()
            assert error < 2e-5, f"{name}: {error}"


def test_student_teacher_and_codebook_stay_identical_over_twenty_steps(ranks: Ranks) -> None:
    first = ranks[0]["trained"]
    assert first["restarted"] > 0
    assert first["codebook_moved"]
    for rank in ranks[1:]:
        trained = rank["trained"]
        assert not torch.equal(trained["generator"], first["generator"]), "the processes must have drawn differently"
        assert torch.equal(trained["bookkeeping"], first["bookkeeping"])
        for kind in ("student", "teacher"):
            for name, value in first[kind].items():
                assert torch.equal(trained[kind][name], value), f"{kind}: {name}"


# From here on with nnU-Net's trainer.


@pytest.fixture
def _no_training_outlives_its_test() -> Iterator[None]:
    yield
    from real_training import kill_all

    kill_all()


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
def test_ranks_of_a_training_draw_differently_and_agree_on_everything_else(home, results, tmp_path: Path) -> None:
    from real_training import finish, fold_folder, start_ranks, twenty_steps, write_plan

    arguments = write_plan(
        home,
        "RanksPlans",
        labeled_batch_size=None,
        batch_size_range=[3, 3],
        unlabeled_batch_size=4,
        iterations_per_epoch=30,
        restart_after=4,
        restart_every=1,
        qpm_strength=None,
    )
    processes = start_ranks(twenty_steps, str(tmp_path), *arguments, world=2, log=tmp_path / "log")
    assert finish(processes) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["batch_sizes"] == second["batch_sizes"] == [2, 2], "3 labelled images become 2 on each"
    assert not set(first["seen"]) & set(second["seen"])
    for network, state in first["state"].items():
        for name, value in state.items():
            assert torch.equal(second["state"][network][name], value), f"{network}: {name}"
    assert first["sums"] == second["sums"], "curves are means over ranks"
    assert {"loss", "gradient_norm", "confidence", "qpm_step"} <= first["sums"].keys()
    for rank in (first, second):
        assert rank["bad_steps"] == 2, "NaN or Inf on one rank skips the step on all"
        assert rank["unchanged"]
        assert rank["exit_code"] == EXIT_INTERRUPTED, "a signal to one rank stops all"
    saved = torch.load(fold_folder(home, "RanksPlans") / "checkpoint_latest.pth", weights_only=True)
    assert saved["current_epoch"] == 0
    assert saved["vqseg"]["step"] == 23


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
@pytest.mark.parametrize("rank_0", ["is slow", "fails", "dies"])
def test_other_ranks_wait_for_preprocessing_but_not_for_a_dead_rank(home, results, tmp_path: Path, rank_0: str) -> None:
    from real_training import finish, prepare, start_ranks, write_plan

    arguments = write_plan(home, "RanksPlans")
    log = tmp_path / "log"
    exit_codes = finish(start_ranks(prepare, rank_0.removeprefix("is "), *arguments, world=2, log=log), seconds=120)
    waiting = (tmp_path / "log.1").read_text(encoding="utf-8")
    if rank_0 == "is slow":
        assert exit_codes == [0, 0]
        assert "Rank 1 waits for rank 0: preprocessing the unlabelled cases" in waiting
        said = [
            line for rank in range(2) for line in (tmp_path / f"log.{rank}").read_text(encoding="utf-8").splitlines()
        ]
        prepared = [line for line in said if line.startswith("prepared")]
        assert len(prepared) == 2
        assert len(set(prepared)) == 1
    else:
        assert None not in exit_codes
        assert 0 not in exit_codes
        assert "Rank 0 failed or ended while preprocessing the unlabelled cases; its own output says why." in waiting


@pytest.mark.parametrize(
    ("total", "may_grow", "world", "batch"),
    [
        (8, False, 1, 8),
        (8, False, 4, 8),
        (9, True, 4, 12),
        (9, False, 4, None),
        (4, True, 4, 4),
        (3, True, 4, None),
        (3, False, 4, None),
    ],
)
@pytest.mark.slow
def test_batches_are_split_evenly_or_refused(total: int, may_grow: bool, world: int, batch) -> None:
    from nnunetv2_vqseg.core.errors import ConfigError
    from nnunetv2_vqseg.trainer.ranks import Ranks

    ranks = Ranks()
    ranks.world_size = world
    if batch is None:
        with pytest.raises(ConfigError, match=rf"{total} labelled .* over {world} processes; set vqseg.labeled_batch"):
            ranks.even_batch(total, may_grow, "labelled", "labeled_batch_size")
    else:
        assert ranks.even_batch(total, may_grow, "labelled", "labeled_batch_size") == batch


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
def test_more_processes_than_images_are_refused_with_a_sentence(home, results, tmp_path: Path) -> None:
    from real_training import distributed_train, finish, start_ranks, write_plan

    arguments = write_plan(home, "RanksPlans", unlabeled_batch_size=1)
    exit_codes = finish(start_ranks(distributed_train, *arguments, world=2, log=tmp_path / "log"))
    assert exit_codes == [EXIT_REFUSED, EXIT_REFUSED]
    assert (
        "ERROR: A batch of 1 unlabelled images cannot be split evenly over 2 processes; set "
        "vqseg.unlabeled_batch_size in the plan to a multiple of 2, or use fewer processes.\n"
    ) in (tmp_path / "log.0").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
def test_foundation_model_on_some_machines_only_is_refused(home, results, tmp_path: Path) -> None:
    from real_training import finish, start_ranks, weights_on_rank_0_only, write_plan

    arguments = write_plan(home, "RanksPlans")
    exit_codes = finish(start_ranks(weights_on_rank_0_only, *arguments, world=2, log=tmp_path / "log"), seconds=120)
    assert None not in exit_codes
    assert 0 not in exit_codes
    for rank in range(2):
        said = (tmp_path / f"log.{rank}").read_text(encoding="utf-8")
        assert "would train without the foundation model, rank 0 on" in said


def torchrun(*options: str, arguments: list[str], log: Path, prefix: tuple[str, ...] = (), **environment: str) -> Any:
    """A real torchrun with `-m nnunetv2_vqseg.train`, shortened."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, Path(__file__).with_name("real_training.py")]
    with log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            [*prefix, *map(str, command), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )


@pytest.mark.slow
# Rank 0 serves the store and writes the checkpoints.
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_training_whose_rank_is_killed_is_restarted_and_finished_by_torchrun(
    home, results, tmp_path: Path, rank: int
) -> None:
    from real_training import fold_folder, write_plan
    from test_reliability import STEPS, assert_complete

    arguments = write_plan(home, "RestartPlans", num_epochs=4)
    folder = fold_folder(home, "RestartPlans")
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(b"of an earlier training")
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    process = torchrun(*options, arguments=arguments, log=tmp_path / "log", KILL_AT=f"{rank}:2:1", PREVIEWS="1")
    assert process.wait(900) == 0, (tmp_path / "log").read_text(encoding="utf-8")[-3000:]
    assert_complete(folder, 4, steps=4 * STEPS)
    assert (folder / "preview.png").is_file(), "drawn by rank 0 while the other goes on"
    first, second = (log.read_text(encoding="utf-8") for log in sorted(folder.glob("training_log_*.txt")))
    assert ": Epoch 2 " in first
    assert ": Epoch 3 " not in first
    assert ": Epoch 1 " not in second, "the restart continues from the last checkpoint"
    assert ": Epoch 2 " in second


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_torchrun_that_is_asked_to_stop_saves_and_one_process_can_continue(
    home, results, tmp_path: Path, number: signal.Signals
) -> None:
    from real_training import finish, fold_folder, nnunet_train, start, write_plan
    from test_reliability import assert_complete, wait_for

    arguments = write_plan(home, "AskedPlans", num_epochs=3, iterations_per_epoch=20)
    log = tmp_path / "log"
    options = ("--standalone", "--nproc-per-node", "2", "--signals-to-handle", "SIGTERM,SIGUSR1")  # as in the README
    process = torchrun(*options, arguments=arguments, log=log)
    try:
        assert wait_for(": Epoch 1", log, SimpleNamespace(is_alive=lambda: process.poll() is None))
        process.send_signal(number)  # torchrun passes it on to the ranks
        assert process.wait(300) != 0
    finally:
        process.kill()
    said = log.read_text(encoding="utf-8")
    assert re.search(r"Stopped in epoch 1: saved \S+checkpoint_latest.pth. To continue, .* --c\.", said), said[-3000:]
    folder = fold_folder(home, "AskedPlans")
    saved = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    assert (saved["current_epoch"], saved["vqseg"]["step"] > 20) == (1, True)
    assert finish([start(nnunet_train, *arguments, "--c", log=tmp_path / "continued")]) == [0]
    assert_complete(folder, 3)


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
@pytest.mark.nightly
def test_num_gpus_of_nnunet_trains_as_torchrun_does(home, results, tmp_path: Path) -> None:
    from real_training import distributed_train, finish, fold_folder, nnunet_ddp, start_ranks, write_plan

    final = []
    for target, plan in ((nnunet_ddp, "NumGpusPlans"), (distributed_train, "TorchrunPlans")):
        arguments = write_plan(home, plan)
        exit_codes = finish(start_ranks(target, *arguments, world=2, log=tmp_path / plan))
        assert exit_codes == [0, 0], (tmp_path / f"{plan}.0").read_text(encoding="utf-8")[-3000:]
        final.append(torch.load(fold_folder(home, plan) / "checkpoint_final.pth", weights_only=True))
    one, other = final
    assert one["vqseg"]["runtime"]["processes"] == other["vqseg"]["runtime"]["processes"] == 2
    for kind in ("student", "teacher"):
        for name, value in one["vqseg"][kind].items():
            assert torch.equal(other["vqseg"][kind][name], value), f"{kind}: {name}"


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
def test_stock_nnunet_for_comparisons_trains_under_torchrun_on_cpus(home, results, tmp_path: Path) -> None:
    from real_training import DATASET, distributed_train, finish, start_ranks, write_plan

    arguments = write_plan(home, "StockPlans", num_epochs=1, labeled_batch_size=None, batch_size_range=[3, 3])
    file = home / "preprocessed" / DATASET / "StockPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"]["2d"]["batch_size"] = 3
    file.write_text(json.dumps(plans), encoding="utf-8")
    for trainer in ("nnUNetTrainerSupervised", "nnUNetTrainer"):
        arguments[arguments.index("-tr") + 1] = trainer
        ended = finish(start_ranks(distributed_train, *arguments, world=2, log=tmp_path / trainer))
        said = (tmp_path / f"{trainer}.0").read_text(encoding="utf-8")
        folder = home / "results" / DATASET / f"{trainer}__StockPlans__2d" / "fold_0"
        if trainer == "nnUNetTrainer":
            assert 0 not in ended
            assert (
                "ERROR: nnUNetTrainer trains on the GPUs of one machine only; use -tr nnUNetTrainerSupervised" in said
            )
            assert not folder.exists()
        else:
            assert ended == [0, 0], said[-3000:]
            record = read_training_record(folder / "checkpoint_final.pth")
            assert record.images_a_step == [4], "3 become 2 on each"
            assert record.runtime["processes"] == 2


@pytest.mark.slow
def test_a_preview_asks_no_other_process(make_trainer, monkeypatch, tmp_path: Path) -> None:
    """Rank 0 draws it while the others are in the next epoch: what it waited for would never come."""
    from nnunetv2_vqseg.modules.collectives import is_distributed
    from nnunetv2_vqseg.trainer.preview import PreviewSlices

    def other_rank(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a collective was called")

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        trainer = make_trainer()
        trainer.on_train_start()
        size = trainer.configuration_manager.patch_size
        trainer._preview = PreviewSlices(torch.randn(1, 1, *size), torch.zeros(1, *size, dtype=torch.long), ["a"])
        drawn = []
        monkeypatch.setattr(trainer.plots, "draw", lambda name, *others: drawn.append(name))
        for name in ("all_reduce", "broadcast", "all_gather"):
            monkeypatch.setattr(dist, name, other_rank)
        DRAW_PREVIEW(trainer)
        assert drawn == ["preview.png"]
        assert is_distributed(), "only for the preview"
        monkeypatch.undo()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_step_sends_the_gradients_once_and_little_else(make_trainer, monkeypatch, tmp_path: Path) -> None:
    from count_traffic import count  # of scripts/

    for name in ("all_reduce", "broadcast", "all_gather"):
        monkeypatch.setattr(dist, name, getattr(dist, name))  # put back what `count` replaces
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        trainer = make_trainer()
        trainer.initialize()
        traffic = count(trainer)
    finally:
        dist.destroy_process_group()
    gradients = 4 * sum(parameter.numel() for parameter in trainer.network.parameters())
    assert traffic.pop(("all_reduce", "step.py, gradients", gradients)) == 1
    codes = trainer.config.num_codes
    assert traffic.pop(("all_reduce", "entropy.py, _value_and_gradients", 4 * codes)) == 1
    assert traffic.pop(("all_reduce", "quantizer.py, observe", codes)) == 1
    assert sum(size * calls for (_, _, size), calls in traffic.items()) < 1024


def test_gloo_s_threads_can_finish_before_a_process_leaves(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    finished = threading.Event()
    threading.Timer(0.2, finished.set).start()  # one that needs the interpreter a little later
    leave_process_group()
    assert finished.is_set()
    assert not dist.is_initialized()


@pytest.mark.slow
def test_restart_continues_only_from_a_checkpoint_of_this_training(tmp_path: Path, monkeypatch) -> None:
    from nnunetv2_vqseg.commands import train

    arguments = argparse.Namespace(dataset_name_or_id="1", tr="T", p="P", configuration="2d", fold=0)
    monkeypatch.setattr(train, "get_output_folder", lambda *_: str(tmp_path / "fold_0"))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        checkpoint = tmp_path / "fold_0" / "checkpoint_final.pth"
        assert not train.has_checkpoint(arguments, restarted=False)
        assert not train.has_checkpoint(arguments, restarted=True), "there is none"
        checkpoint.write_bytes(b"")
        os.utime(checkpoint, (1, 1))
        assert not train.has_checkpoint(arguments, restarted=True), "of an earlier training"
        checkpoint.with_name("checkpoint_latest.pth").write_bytes(b"")
        assert train.has_checkpoint(arguments, restarted=True)
        assert not train.has_checkpoint(arguments, restarted=False), "begun anew without --c"
    finally:
        dist.destroy_process_group()


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces that see each other as 10.77.0.1 and 10.77.0.2 through veth0 and nothing else."""
    names = ("vqseg-host-a", "vqseg-host-b")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    if shutil.which("ip") is None:
        pytest.skip("needs the command ip")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may not make network namespaces: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.usefixtures("_no_training_outlives_its_test")
@pytest.mark.slow
@pytest.mark.nightly
def test_two_hosts_compute_what_two_processes_of_one_host_do(home, results, tmp_path: Path, two_hosts) -> None:
    from real_training import distributed_train, finish, fold_folder, start_ranks, write_plan

    arguments = write_plan(home, "OneHostPlans")
    assert finish(start_ranks(distributed_train, *arguments, world=2, log=tmp_path / "one")) == [0, 0]
    arguments = write_plan(home, "TwoHostsPlans")
    hosts = [
        torchrun(
            *("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1", "--master-addr", "10.77.0.1"),
            arguments=arguments,
            log=tmp_path / name,
            prefix=("ip", "netns", "exec", name),
            GLOO_SOCKET_IFNAME="veth0",
        )
        for number, name in enumerate(two_hosts)
    ]
    exit_codes = [host.wait(900) for host in hosts]
    logs = [f"{name}:\n{(tmp_path / name).read_text(encoding='utf-8')[-6000:]}" for name in two_hosts]
    assert exit_codes == [0, 0], "\n".join(logs)
    one, two = (
        torch.load(fold_folder(home, plan) / "checkpoint_final.pth", weights_only=True)
        for plan in ("OneHostPlans", "TwoHostsPlans")
    )
    for kind in ("student", "teacher"):
        for name, value in one["vqseg"][kind].items():
            assert torch.equal(two["vqseg"][kind][name], value), f"{kind}: {name}"
    assert two["logging"]["train_losses"] == one["logging"]["train_losses"]
