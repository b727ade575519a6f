"""Clients that are scripts: the same bits wherever they run, in surroundings that are a script's own."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from networks import Awkward, examples, small_job
from scripts import BEGIN, BODY, TURN, outcome, processes, script_job, threads, write
from torch import nn
from torch.utils.data import DataLoader

import roundelay as rd

MOMENTUM = BODY.replace("lr=0.1", "lr=0.1, momentum=0.9")
"""Its optimizer's buffers live in a variable from round to round."""


# ---- the same bits --------------------------------------------------------------------------------------------------


def test_processes_and_threads_come_to_the_same_bits_rows_and_tables(tmp_path: Path) -> None:
    modes = [threads(3), *(processes(3, max_concurrent=number) for number in (1, 2, 5))]
    came = [outcome(script_job(tmp_path, MOMENTUM, mode).run()) for mode in modes]
    assert all(one == came[0] for one in came[1:])
    assert len({row["train_loss"] for row in came[0][2]}) == 6  # nobody's draws are another's


def test_which_scripts_live_on_does_not_depend_on_how_many_train_at_once(tmp_path: Path) -> None:
    modes = [threads(3, keep_alive=1), *(processes(3, max_concurrent=number, keep_alive=1) for number in (1, 3))]
    came = [outcome(script_job(tmp_path, MOMENTUM, mode).run()) for mode in modes]
    assert all(one == came[0] for one in came[1:])
    assert came[0][0] != script_job(tmp_path, MOMENTUM, threads(3)).run().sha256  # the momentum was forgotten


UPLINKS = {
    "feedback": rd.Uplink(codec=rd.TopK(fraction=0.1), feedback="error"),
    "ef21 and silence": rd.Uplink(
        codec=rd.QSGD(bits=4), feedback="ef21", trigger=rd.SendOnDelta(threshold=0.5), on_silence="reuse"
    ),
}


@pytest.mark.parametrize("uplink", UPLINKS.values(), ids=UPLINKS)
def test_what_scripts_send_travels_encoded_and_they_know_nothing_of_it(uplink: rd.Uplink, tmp_path: Path) -> None:
    """In threads, in processes, and as a function that trains: one hash, and the same bytes."""
    parts = {f"site-{i + 1}": examples(10 + 2 * i, seed=i) for i in range(3)}
    learnt = small_job(
        data=rd.FederatedData.from_datasets(parts), learner=train, num_rounds=2, clients_per_round=3, uplink=uplink,
        downlink=rd.Downlink(codec=rd.FP16()), tracking=rd.Tracking(str(tmp_path), "learnt"),
    ).run()  # fmt: skip
    for mode in (threads(3), processes(3)):
        given = script_job(tmp_path, BODY, mode, uplink=uplink, downlink=rd.Downlink(codec=rd.FP16()))
        assert outcome(given.run()) == outcome(learnt)
    assert learnt.rows[0]["bytes_up"] < 1500 < script_job(tmp_path, BODY, threads(3)).run().rows[0]["bytes_up"]


class Wide(nn.Linear):
    """Large enough for its values to travel through shared memory."""

    def __init__(self) -> None:
        super().__init__(300, 300)


WORKFLOWS = {
    "many attempts": rd.Rounds(deadline_s=2.5, quorum=3, attempts=2),
    "buffered": rd.Buffered(buffer_size=2),
    "cyclic": rd.Cyclic(),
}


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_whatever_the_workflow_processes_and_threads_agree(workflow: rd.Rounds, tmp_path: Path) -> None:
    text = BEGIN.replace("Awkward()", "torch.nn.Linear(300, 300)").replace("number = ", "number = 0 * ") + """
while fl.is_running():
    model = fl.receive()
    net.load_state_dict(model.params)
    loss = net(torch.randn(4, 300)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    fl.send(fl.FLModel(params=net.state_dict(), metrics={"loss": loss}, num_examples=4))
"""  # fmt: skip
    modes = [mode(3, duration=lambda client, task: float(client[-1])) for mode in (threads, processes)]
    one, other = (
        outcome(script_job(tmp_path, text, mode, model=Wide, workflow=workflow, num_rounds=3).run()) for mode in modes
    )
    assert one == other
    assert len(one[1]) == 3


def test_a_number_that_is_logged_before_a_model_is_received_is_of_that_round(tmp_path: Path) -> None:
    text = BEGIN + "fl.log('begins', 1.0)\n" + TURN
    history = script_job(tmp_path, text, threads(1)).run()
    rows = [json.loads(line) for line in (history.run_folder / "scalars.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]


def train(net: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    """What the script does, as a function."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for inputs, targets in DataLoader(data, batch_size=4, shuffle=True):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return len(data), {"loss": sum(losses) / len(losses)}


def check_function(root: Path) -> None:
    """The contract: a script's draws between ``receive`` and ``send`` are those of a learner."""
    parts = {f"site-{i + 1}": examples(10 + 2 * i, seed=i) for i in range(3)}
    learnt = small_job(
        data=rd.FederatedData.from_datasets(parts), learner=train, num_rounds=2, clients_per_round=3,
        tracking=rd.Tracking(str(root), "learnt"),
    ).run()  # fmt: skip
    assert outcome(script_job(root, BODY, threads(3)).run()) == outcome(learnt)


def test_a_script_comes_to_the_bits_of_a_function_that_trains(tmp_path: Path) -> None:
    check_function(tmp_path)


def test_the_check_of_functions_catches_a_session_that_does_not_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseeding = types.SimpleNamespace(seed_globals=lambda value: None)
    monkeypatch.setattr("roundelay.client.session.seeds", unseeding)
    with pytest.raises(AssertionError):
        check_function(tmp_path)


def test_a_script_in_a_thread_leaves_the_callers_draws_and_surroundings_as_they_were(tmp_path: Path) -> None:
    def surroundings() -> list[object]:
        return [sys.argv, list(sys.path), sys.modules["__main__"], os.getcwd(), torch.get_num_threads()]

    before, state = surroundings(), torch.get_rng_state()
    script_job(tmp_path, BODY, threads(2)).run()
    assert surroundings() == before
    assert torch.equal(torch.get_rng_state(), state)


# ---- a script's surroundings ----------------------------------------------------------------------------------------

STARTS = "note('starts', 'x')\n"


def starts(history: rd.History) -> list[int]:
    sites = sorted((history.run_folder / "sites").iterdir())
    return [len((site / "starts").read_text().split()) for site in sites]


@pytest.mark.parametrize("mode", [threads, processes])
def test_a_script_without_the_loop_is_started_for_each_task_and_comes_to_the_same_bits(
    mode: object, tmp_path: Path
) -> None:
    looped = script_job(tmp_path, STARTS + BODY, threads(2)).run()
    straight = script_job(tmp_path, STARTS + BEGIN + TURN, mode(2)).run()
    assert outcome(straight) == outcome(looped)
    assert starts(looped) == [1, 1]
    assert starts(straight) == [2, 2]


LOOKS = """
import json
import beside_{name}
if __name__ == "__main__":
    seen = {{"argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "beside": beside_{name}.VALUE,
            "main": sys.modules["__main__"].__file__}}
    note("seen.json", json.dumps(seen))
"""


@pytest.mark.parametrize("mode", [threads, processes])
def test_a_script_finds_what_a_script_finds(mode: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a user's folder"
    write(folder, "VALUE = 17", f"beside_{mode.__name__}.py", head="")
    script = write(folder, LOOKS.format(name=mode.__name__) + BODY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    history = rd.Job(
        model=Awkward, script="../a user's folder/client.py", script_args="--lr 0.5 --name 'two words'", num_rounds=1,
        simulation=mode(2), tracking=rd.Tracking(str(tmp_path), "run"),
    ).run()  # fmt: skip
    assert history.rows[0]["admitted"] == 2
    for site in ("site-1", "site-2"):
        seen = json.loads((tmp_path / "run" / "sites" / site / "seen.json").read_text())
        assert seen["argv"] == [str(script), "--lr", "0.5", "--name", "two words"]
        assert (seen["path"], seen["main"], seen["beside"]) == (str(folder), str(script), 17)
        assert seen["cwd"] == str(tmp_path / "run" / "sites" / site)


def test_what_a_script_prints_is_in_its_folder(tmp_path: Path) -> None:
    text = BODY + "    print('trained', fl.get_site_name(), model.current_round, model.total_rounds)\n"
    history = script_job(tmp_path, text, processes(2)).run()
    for site in ("site-1", "site-2"):
        printed = (history.run_folder / "sites" / site / "output.log").read_text()
        assert printed == f"trained {site} 0 2\ntrained {site} 1 2\n"


@pytest.mark.parametrize("mode", [threads, processes])
def test_a_script_may_go_on_after_the_last_round(mode: object, tmp_path: Path) -> None:
    after = "torch.save(net.state_dict(), 'mine.pt')\nnote('end', fl.receive() is None)\n"
    history = script_job(tmp_path, BODY + after, mode(2), num_rounds=1).run()
    for site in ("site-1", "site-2"):
        folder = history.run_folder / "sites" / site
        assert (folder / "mine.pt").exists()
        assert (folder / "end").read_text() == "True\n"


@pytest.mark.parametrize("mode", [threads, processes])
def test_what_a_script_logs_after_its_last_answer_is_kept(mode: object, tmp_path: Path) -> None:
    text = BODY + "    fl.log('after', 1.0)\nfl.log('at the end', 2.0)\n"
    history = script_job(tmp_path, text, mode(2)).run()
    rows = [json.loads(line) for line in (history.run_folder / "scalars.jsonl").read_text().splitlines()]
    of_one = [(row["round"], row["name"]) for row in rows if row["client"] == "site-1"]
    assert of_one == [(1, "after"), (2, "after"), (2, "at the end")]


def test_a_data_loader_may_have_workers(tmp_path: Path) -> None:
    helped = BODY.replace("train(net, optimizer, data)", "train(net, optimizer, data, num_workers=1)")
    alone = script_job(tmp_path, BODY, threads(2), num_rounds=1).run()
    assert outcome(script_job(tmp_path, helped, processes(2), num_rounds=1).run()) == outcome(alone)
