"""The client API: what a script is given, what it may keep, and what it is told when it does something wrong."""

import json
from pathlib import Path

import pytest
import torch
from scripts import BEGIN, BODY, outcome, script_job, threads

import roundelay as rd
import roundelay.client as fl
from roundelay.client.remembered import Remembered
from roundelay.errors import ClientError, ClientFailed, ConfigError

# ---- fl.state -------------------------------------------------------------------------------------------------------

KEEPS = """
fl.init()
number = fl.get_config()["partition"]["number"]
data = examples(10 + 2 * number, seed=number)
while fl.is_running():
    model = fl.receive()
    net = Awkward()
    net.load_state_dict(model.params)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for name, p in net.named_parameters():
        if name in fl.state:
            optimizer.state[p]["momentum_buffer"] = fl.state[name]
    torch.manual_seed(model.current_round)
    train(net, optimizer, data)
    for name, p in net.named_parameters():
        fl.state[name] = optimizer.state[p]["momentum_buffer"]
    fl.send(fl.FLModel(params=net.state_dict(), num_examples=len(data)))
"""


def check_state(root: Path) -> None:
    """The contract: what is in fl.state is there in the next round, whether or not the process is the same."""
    kept = script_job(root, KEEPS, threads(3), num_rounds=3).run()
    assert outcome(script_job(root, KEEPS, threads(3, keep_alive=1), num_rounds=3).run()) == outcome(kept)
    forgetful = KEEPS.replace("if name in fl.state", "if False")
    assert script_job(root, forgetful, threads(3), num_rounds=3).run().sha256 != kept.sha256


def test_the_state_lasts_whether_or_not_the_process_does(tmp_path: Path) -> None:
    check_state(tmp_path)


def test_the_check_of_the_state_catches_one_that_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Remembered.memory

    def forgetting(self: Remembered, client: str) -> rd.messages.Memory:
        return {k: v for k, v in memory(self, client).items() if not k.startswith("state ")}

    monkeypatch.setattr(Remembered, "memory", forgetting)
    with pytest.raises(AssertionError):
        check_state(tmp_path)


def test_tensors_and_numbers_come_back_as_what_they_were(tmp_path: Path) -> None:
    text = BODY.replace("    net.load_state_dict", """    kinds = {
        "count": 3, "large": 2**40, "rate": 0.1, "flag": True, "off": False, "none at all": float("inf"),
        "index": torch.arange(3), "half": torch.tensor([0.5], dtype=torch.float16), "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 2), "mask": torch.tensor([[True, False]]),
    }
    if model.current_round == 0:
        assert len(fl.state) == 0 and "count" not in fl.state
        fl.state.update(kinds, gone=1)
    else:
        assert set(fl.state) == set(kinds) if model.current_round > 1 else len(fl.state) == len(kinds) + 1
        for name, value in kinds.items():
            assert type(fl.state[name]) is type(value), name
            if isinstance(value, torch.Tensor):
                assert fl.state[name].dtype == value.dtype and torch.equal(fl.state[name], value), name
            else:
                assert fl.state[name] == value, name
        fl.state.pop("gone", None)
    net.load_state_dict""")  # fmt: skip
    assert [row["lost"] for row in script_job(tmp_path, text, threads(2, keep_alive=1), num_rounds=3).run().rows] == [
        0, 0, 0,
    ]  # fmt: skip


def test_a_refused_update_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    text = BODY.replace("    loss = train", "    fl.state['n'] = fl.state.get('n', 0) + 1\n    loss = train").replace(
        'metrics={"loss": loss}', 'metrics={"n": fl.state["n"]}'
    )
    bad = "    if number == 1 and model.current_round == 1:\n        net.first.bias.data.fill_(torch.nan)\n    fl.send"
    history = script_job(tmp_path, text.replace("    fl.send", bad), threads(2), num_rounds=3).run()
    told = {(row["round"], row["client"]): row for row in history.clients()}
    assert told[2, "site-2"]["status"] == "refused"
    assert "params" in told[2, "site-2"]["reason"]
    assert [told[n, "site-2"].get("train_n") for n in (1, 2, 3)] == [1, None, 2]
    assert [told[n, "site-1"]["train_n"] for n in (1, 2, 3)] == [1, 2, 3]


def test_a_resumed_run_brings_the_state_and_the_numbers_of_kept_rounds_back(tmp_path: Path) -> None:
    text = KEEPS.replace("    train(net", "    fl.log('round', model.current_round)\n    train(net")
    whole = script_job(tmp_path, text, threads(2), num_rounds=4).run()
    cut = script_job(tmp_path, text, threads(2), num_rounds=4)
    script = whole.run_folder / ".." / ".." / "script-1" / "client.py"  # the same file: a run is one of its script
    cut = rd.Job(**{**{f: getattr(cut, f) for f in cut.__slots__}, "script": script.resolve()})
    folder = tmp_path / "run-2" / "run"
    for finished in cut.rounds():
        if finished.number == 2:
            checkpoint = (folder / "checkpoint.pt").read_bytes()
        if finished.number == 3:
            break
    (folder / "checkpoint.pt").write_bytes(checkpoint)  # as a crash in the third round would have left it
    assert outcome(cut.run(resume=folder)) == outcome(whole)
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    wanted = [(n, client, n - 1.0) for n in (1, 2, 3, 4) for client in ("site-1", "site-2")]
    assert sorted((row["round"], row["client"], row["value"]) for row in rows) == wanted


# ---- what a script is told ------------------------------------------------------------------------------------------


def after_receive(line: str) -> str:
    return BODY.replace("    net.load_state_dict", f"    {line}\n    net.load_state_dict")


def instead_of_send(line: str) -> str:
    return BODY[: BODY.index("    fl.send")] + f"    {line}\n"


WRONG = {
    "forgets to send": (instead_of_send("pass"), r"'site-1': the model of round 1 was received, and nothing was sent"),
    "sends before it receives": (BEGIN + "fl.send(fl.FLModel(params={}))", r"'site-1': fl\.send\(\) answers a model"),
    "sends no model": (instead_of_send("fl.send(net.state_dict())"), r"'site-1': fl\.send\(\) takes an fl\.FLModel"),
    "sends no parameters": (instead_of_send("fl.send(fl.FLModel())"), r"'site-1': .*send fl\.FLModel\(params=net"),
    "sends a module": (
        instead_of_send("fl.send(fl.FLModel(params=net))"), r"'site-1': .*params that are a \w+; expected a state dict",
    ),
    "another shape": (
        instead_of_send("fl.send(fl.FLModel(params={**net.state_dict(), 'first.weight': torch.ones(2)}))"),
        r"tensor 'first\.weight' has shape \(2,\), the model has \(13, 7\)",
    ),
    "a tensor is missing": (
        instead_of_send("fl.send(fl.FLModel(params={'first.bias': net.first.bias}))"),
        r"tensor 'first\.weight' of shape \(13, 7\) is missing",
    ),
    "another model": (
        instead_of_send("fl.send(fl.FLModel(params=Plain().double().state_dict() | {'other': torch.ones(1)}))"),
        "tensor 'other' is not part of this model",
    ),
    "a metric that is text": (
        instead_of_send("fl.send(fl.FLModel(params=net.state_dict(), metrics={'best': 'x'}))"), "metric 'best' is 'x'",
    ),
    "a metric that is a vector": (
        instead_of_send("fl.send(fl.FLModel(params=net.state_dict(), metrics={'best': torch.ones(2)}))"),
        "metric 'best' has 2 elements",
    ),
    "a number that is text": (after_receive("fl.log('lr', 'high')"), "metric 'lr' is 'high'"),
    "text in the state": (after_receive("fl.state['mode'] = 'x'"), r"client 'site-1': fl\.state\['mode'\] is a str"),
    "a number that is too large": (after_receive("fl.state['n'] = 2**70"), r"client 'site-1': fl\.state\['n'\]"),
    "init twice": (BEGIN + "fl.init()", r"fl\.init\(\) was called twice"),
    "no init": ("fl.is_running()", r"call fl\.init\(\) first"),
    "nothing of ours": ("print('hello')", r"client 'site-1' was started and ended .* that it called fl\.init"),
    "no task is asked for": ("fl.init()", r"called fl\.init\(\) and ended .*; expected that it called fl\.is_running"),
    "ends in mid-training": (after_receive("break"), r"given the model of round 1 and ended .*called fl\.send"),
    "exit status 3": (after_receive("sys.exit(3)"), "the script ended itself with status 3"),
    "exit with words": (after_receive("sys.exit('no scans')"), "the script ended itself with status 'no scans'"),
    "no Python": ("def :", "SyntaxError"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_script_that_does_something_wrong_is_told_what(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ClientFailed, match=words):
        script_job(tmp_path, text, threads(2), num_rounds=1).run()


def test_a_second_answer_is_refused_and_the_first_one_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twice = BODY + "    if number == 1:\n        fl.send(fl.FLModel(params=net.state_dict()))\n"
    history = script_job(tmp_path, twice, threads(2), num_rounds=1).run()
    assert history.sha256 == script_job(tmp_path, BODY, threads(2), num_rounds=1).run().sha256
    assert "client 'site-2' failed after it had answered" in caplog.text
    assert "send called twice" in caplog.text


def test_what_was_sent_wrongly_may_be_sent_again(tmp_path: Path) -> None:
    text = BODY.replace("    fl.send", """    fl.state["name"] = "x"
    for params in ({}, net.state_dict()):
        try:
            fl.send(fl.FLModel(params=params))
        except (ValueError, RuntimeError) as error:
            note("refused", error)
    del fl.state["name"]
    fl.send""")  # fmt: skip
    mended, right = (script_job(tmp_path, one, threads(2)).run() for one in (text, BODY))
    assert outcome(mended) == outcome(right)
    assert len((mended.run_folder / "sites" / "site-1" / "refused").read_text().splitlines()) == 4


def test_a_difference_may_be_sent_instead_of_parameters(tmp_path: Path) -> None:
    text = BODY.replace("params=net.state_dict()", 'params=step, params_type="diff"').replace(
        "    fl.send", "    step = {n: v - model.params[n] for n, v in net.state_dict().items()}\n    fl.send"
    )
    steps, whole = (script_job(tmp_path, one, threads(2)).run() for one in (text, BODY))
    for name, value in whole.model.state_dict().items():  # x + (y - x) is y up to rounding
        torch.testing.assert_close(steps.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    partly = BODY.replace("params=net.state_dict()", 'params={"first.bias": torch.ones(13)}, params_type="DIFF"')
    moved = script_job(tmp_path, partly, threads(2), num_rounds=1).run().model.state_dict()
    start = script_job(tmp_path, BODY, threads(2)).prepared().work.initial_module().state_dict()
    for name, value in moved.items():
        torch.testing.assert_close(value, start[name] + 1 if name == "first.bias" else start[name])


def test_metrics_may_be_numbers_of_any_kind_and_nan(tmp_path: Path) -> None:
    text = BODY.replace('{"loss": loss}', '{"a": torch.tensor([2.0]), "b": data.inputs.numel(), "c": float("nan")}')
    row = script_job(tmp_path, text, threads(2), num_rounds=1).run().rows[0]
    assert row["train_a"] == 2.0
    assert row["train_b"] == pytest.approx((10 * 70 + 12 * 84) / 22)
    assert "train_c" not in row


def test_a_client_that_raises_in_one_round_is_lost_in_that_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = after_receive("if number == 1 and model.current_round == 1: raise OSError('scans/17.png is gone')")
    history = script_job(tmp_path, text, threads(2), num_rounds=3).run()
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(2, 0), (1, 1), (2, 0)]
    told = {(row["round"], row["client"]): row for row in history.clients()}
    assert told[2, "site-2"]["reason"] == "client 'site-2' failed 2 times: OSError: scans/17.png is gone"
    assert caplog.text.count("Traceback") == 1
    assert 'client.py", line' in caplog.text  # its own line, and no frame of ours
    assert "launch.py" not in caplog.text


# ---- num_examples ---------------------------------------------------------------------------------------------------


def test_clients_that_do_and_do_not_tell_their_weight_cannot_be_weighed_together(tmp_path: Path) -> None:
    text = BODY.replace("num_examples=len(data)", "num_examples=len(data) if number else None")
    with pytest.raises(ConfigError, match=r"client 'site-2' sends num_examples and client 'site-1' does not"):
        script_job(tmp_path, text, threads(2)).run()


def test_without_a_weight_all_weigh_the_same_and_one_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent, equal = (
        script_job(tmp_path, BODY.replace("num_examples=len(data)", one), threads(3)).run()
        for one in ("num_examples=None", "num_examples=1")
    )
    assert silent.sha256 == equal.sha256
    assert [record.levelname for record in caplog.records if "send no num_examples" in record.message] == ["WARNING"]


# ---- outside a federation -------------------------------------------------------------------------------------------


def test_a_script_that_is_run_by_hand_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fl.ADDRESS, raising=False)
    with pytest.raises(ClientError, match=r"nobody has started it as one; try: roundelay run --script"):
        fl.init()
    fl.init(rank=1)  # several processes to a client: only the first one talks
    with pytest.raises(ClientError, match=r"call fl\.init\(\) first"):
        fl.is_running()


def test_the_helpers_say_where_a_script_is(tmp_path: Path) -> None:
    text = after_receive("""assert fl.system_info() == {"site_name": f"site-{number + 1}", "job_id": fl.get_job_id()}
    assert fl.get_job_id() == "run" and fl.get_site_name() == fl.system_info()["site_name"]
    assert fl.is_train() and not fl.is_evaluate() and not fl.is_submit_model()
    assert (model.current_round, model.total_rounds, model.start_round) == (0, 1, 0)
    assert fl.get_config()["lr"] == 0.25 + number
    writer = fl.SummaryWriter()
    writer.add_scalar("lr", 0.5, 7)
    writer.add_scalars("loss", {"a": 1.0, "b": torch.tensor(2.0)})
    writer.flush(); writer.close()""")
    history = script_job(
        tmp_path, text, threads(2), num_rounds=1,
        client_config=lambda round, client: {"lr": 0.25 + int(client[-1]) - 1},
    ).run()  # fmt: skip
    assert history.rows[0]["lost"] == 0
    rows = [json.loads(line) for line in (history.run_folder / "scalars.jsonl").read_text().splitlines()]
    assert rows[:3] == [
        {"round": 1, "client": "site-1", "name": name, "value": value, "step": step}
        for name, value, step in (("lr", 0.5, 7), ("loss/a", 1.0, 0), ("loss/b", 2.0, 0))
    ]


def test_a_script_may_leave_early(tmp_path: Path) -> None:
    text = BODY + "    if number == 1:\n        fl.shutdown()\n"
    history = script_job(tmp_path, text, threads(2)).run()
    assert [row["admitted"] for row in history.rows] == [2, 2]  # asked again, it is started again
