"""What the documentation shows is run as it is shown."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from forked import Forked, ran

import roundelay as rd
from roundelay import config

ROOT = Path(__file__).parents[2]
ROUNDELAY = str(Path(sys.executable).with_name("roundelay"))


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["model", "dataset", "training", "aggregation"])
def test_the_custom_examples_run_learn_and_stay_short(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "examples" / "custom" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    history = loaded(path).main(4)
    losses = [row["loss"] for row in history.rows]
    assert losses[-1] < losses[0]
    assert (history.run_folder / "last.pt").exists()


def test_the_readme_example_runs_as_printed_as_a_script_without_a_main_guard(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 1
    (tmp_path / "readme.py").write_text(blocks[0])
    assert [line.split()[0] for line in ran(tmp_path, "readme.py").splitlines()] == ["1", "2", "3", "4", "5"]


def test_the_page_on_privacy_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="the accountant comes with the extra 'privacy'")
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "privacy.md").read_text(), flags=re.S)
    (tmp_path / "page.py").write_text(script)
    epsilons = [float(line.split()[2]) for line in ran(tmp_path, "page.py").splitlines()]
    assert epsilons == sorted(epsilons)
    assert epsilons[0] > 0


def test_the_page_on_robustness_is_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "robustness.md").read_text()
    (script,), (tables,) = (re.findall(rf"```{kind}\n(.*?)```", page, flags=re.S) for kind in ("python", "toml"))
    (tmp_path / "page.py").write_text(script)
    ran(tmp_path, "page.py")
    job = (ROOT / "examples" / "digits" / "job.toml").read_text()
    (tmp_path / "job.toml").write_text(job + tables)
    loaded_job = config.load(tmp_path / "job.toml", attacked=re.findall(r'--attack "(.*?)"', page))
    assert loaded_job.aggregator == rd.NormBounding(then=rd.TrimmedMean(f=2))
    assert [type(attack).__name__ for attack in loaded_job.attacks] == ["ALIE", "ALIE", "Drop"]
    rules, strikes = (part.split("\n\n")[1] for part in re.split(r"^## (?:Rules|Attacks).*$", page, flags=re.M)[1:3])
    for table, module, without in ((rules, rd.aggregators, {"mean"}), (strikes, rd.attacks, set())):
        column = 1 if module is rd.aggregators else 0
        cells = [line.strip("| ").split("|")[column] for line in table.splitlines()[2:]]
        named = {name.replace("_", "") for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        assert named == {name.lower() for name in module.__all__} - without


def test_the_page_on_workflows_is_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "workflows.md").read_text()
    by_hand, median = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    printed = []
    for number, script in enumerate((by_hand, median)):
        (tmp_path / f"page{number}.py").write_text(script)
        printed.append(ran(tmp_path, f"page{number}.py").splitlines())
    own, built_in = (line.split()[-1] for line in printed[0])
    assert own == built_in
    assert float(printed[1][0]) > 0.2
    known = {name.lower(): fields(getattr(rd.workflows, name)) for name in rd.workflows.__all__}
    named = dict(re.findall(r"^\| `(?!use`)(\w+)` \| (.*?) \|", page, flags=re.M))
    shown_settings = {name.replace("_", ""): re.findall(r"`(\w+)`", cell) for name, cell in named.items()}
    assert shown_settings.keys() == known.keys()
    for name, settings in shown_settings.items():
        assert settings[: len(known[name])] == [field.name for field in known[name]]
    (table,) = re.findall(r"```toml\n(\[workflow\].*?)```", page, flags=re.S)
    (tmp_path / "my_module.py").write_text(by_hand.split("def run")[0])
    job = (ROOT / "examples" / "digits" / "job.toml").read_text()
    (tmp_path / "job.toml").write_text(job + table)
    assert config.load(tmp_path / "job.toml").workflow.__name__ == "fedavg"
    (table,) = re.findall(r"```toml\n(\[evaluation\].*?)```", page, flags=re.S)
    head = re.sub(r"\[tracking\][^\[]*", "", job)
    (tmp_path / "job.toml").write_text(head + table)
    patient = config.load(
        tmp_path / "job.toml",
        ["num_rounds=2", "clients_per_round=6", "simulation.executor=serial", f"tracking.root={tmp_path / 'runs'}",
         "simulation.load={use = 'busy', share = 0.4}"],
    )  # fmt: skip
    assert patient.workflow == rd.Rounds(
        readiness=rd.Readiness(cpu_percent=40.0, first_wait_s=3.0, longest_wait_s=10.0)
    )
    history = patient.run()
    assert history.run_folder is not None
    assert (history.run_folder / "best.pt").exists()
    assert all(row["ready"] > 3 and row["client_accuracy"] > 0 for row in history.rows)
    shown = dict(re.findall(r"^\| .*? \| `(\w+) = (.*?)` \|$", page, flags=re.M))
    usual = {field.name: field.default for field in fields(rd.Readiness)}
    assert {name: str(value) for name, value in usual.items()} == {
        "give_up_s": "None", **{name: text.strip('"') if '"' in text else str(type(usual[name])(text))
                                for name, text in shown.items()},
    }  # fmt: skip


def before_and_after(diff: str) -> tuple[str, str]:
    """Return the two texts of a whole-file diff."""
    lines = diff.splitlines()
    before, after = ("\n".join(line[1:] for line in lines if line[:1] != skipped) for skipped in "+-")
    return before, after


def test_the_page_on_scripts_runs_as_printed_before_and_after_the_five_lines(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scripts.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    (diff,) = re.findall(r"```diff\n(.*?)```", page, flags=re.S)
    before, after = before_and_after(diff)
    (tmp_path / "plain.py").write_text(before)
    (tmp_path / "client.py").write_text(after)
    losses = [float(line.split()[1]) for line in ran(tmp_path, "plain.py").splitlines()]
    assert losses[-1] < losses[0]
    (command,) = re.findall(r"^roundelay (run .*)$", page, flags=re.M)
    assert "sha256: " in ran(tmp_path, "roundelay", *command.split())
    losses = [float(line.split()[1]) for line in ran(tmp_path, "job.py").splitlines()[:4]]
    assert losses[-1] < losses[0]
    hashes = dict(line.split() for line in ran(tmp_path, "algorithms.py").splitlines())
    assert list(hashes) == ["FedAvg", "FedProx", "Scaffold", "FedNova", "FedDyn"]
    assert len({hashes[name] for name in ("FedAvg", "FedProx", "Scaffold", "FedDyn")}) == 4  # FedNova: equal steps


def test_the_readme_s_five_lines_make_a_script_a_client(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", page, flags=re.S)
    assert len(re.findall(r"^[+]", diff, flags=re.M)) == 5
    before, after = before_and_after(diff)
    (tmp_path / "plain.py").write_text(before)
    (tmp_path / "client.py").write_text(after)
    (tmp_path / "model.py").write_text("import torch\ndef Net():\n    return torch.nn.Linear(2, 2)\n")
    (tmp_path / "data.py").write_text(
        "import torch\ndef batches():\n    return [(torch.eye(2), torch.tensor([0, 1]))] * 3\n"
    )
    ran(tmp_path, "plain.py")
    (command,) = re.findall(r"^roundelay (run --script .*)$", page, flags=re.M)
    assert "sha256: " in ran(tmp_path, "roundelay", *command.split())


@pytest.mark.parametrize("page", ["README.md", "docs/deploy.md"])
def test_what_the_pages_have_typed_into_two_terminals_trains_on_a_device(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text().replace(" \\\n ", "")
    (serve,) = re.findall(r"^roundelay (serve .*--host 127.0.0.1.*)$", text, flags=re.M)
    joins = re.findall(r"^roundelay (join https://127.0.0.1:8443 --token TOKEN --pin PIN .*)$", text, flags=re.M)
    if page == "README.md":
        (tmp_path / "examples").symlink_to(ROOT / "examples")
    else:
        (tmp_path / "job.toml").write_text(re.findall(r"```toml\n(.*?)```", text, flags=re.S)[0])
    with ExitStack() as stack:
        serving = begun(stack, tmp_path, serve.split(), "--port", "0")  # others may use the machine
        line = waited(serving, "roundelay join").split()[1:]
        sites = [begun(stack, tmp_path, line, *join.split()[6:]) for join in joins]
        (came,) = re.findall(r"sha256: ([0-9a-f]{64})", serving.stdout.read())
        assert [one.wait(60) for one in (serving, *sites)] == [0] * (1 + len(sites))
    alone = [word for word in serve.split()[1:] if word not in ("--host", "127.0.0.1")]
    assert came in ran(tmp_path, "roundelay", "run", *alone)


def test_the_readme_s_workers_train_as_printed_and_as_simulated(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (run,) = re.findall(r"^roundelay (run .* --workers .*)$", text, flags=re.M)
    with ExitStack() as stack:
        workers = []
        for words in (line.split() for line in re.findall(r"^roundelay (worker .*)$", text, flags=re.M)):
            printed = words[words.index("--port") + 1]
            worker = begun(stack, tmp_path, words, "--port", "0")
            (port,) = re.findall(r":(\d+)$", waited(worker, "waits on").strip())
            assert f":{printed}" in run
            run = run.replace(f":{printed}", f":{port}")
            workers.append(worker)
        assert len(workers) == 3
        (came,) = re.findall(r"sha256: ([0-9a-f]{64})", ran(tmp_path, "roundelay", *run.split()))
        for worker in workers:
            worker.terminate()
    assert came in ran(tmp_path, "roundelay", *run.split(), "--simulate")
    folder = max((tmp_path / "runs").glob("*/journal")).parent
    assert came in ran(tmp_path, "roundelay", "run", "--replay", str(folder))


def begun(stack: ExitStack, folder: Path, words: Sequence[str], *more: str) -> Forked:
    return stack.enter_context(Forked(folder, ["roundelay", *words, *more], environment={"COLUMNS": "200"}))


def waited(process: Forked, words: str) -> str:
    """Return the first line that holds these words."""
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
            return line
    raise AssertionError("".join(said))


IN_ONE_PROCESS = ("--set", "simulation.executor=serial")
SMALL = ("--set", "partition.num_clients=20", "--set", "clients_per_round=4", "--set", "learner.local_epochs=1")


def test_the_digits_job_runs_from_the_command_line_and_can_be_resumed_swept_listed_and_compared(tmp_path: Path) -> None:
    def roundelay(*arguments: str, status: int = 0) -> str:
        with Forked(tmp_path, ["roundelay", *arguments]) as process:
            shown, _ = process.communicate(timeout=200)
        assert process.returncode == status, shown
        return shown

    job = str(ROOT / "examples" / "digits" / "job.toml")
    line = [ROUNDELAY, "run", job, "--set", "num_rounds=2", "--set", "tracking.name=a", *SMALL]
    first = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True).stdout
    sha = re.search(r"sha256: ([0-9a-f]{64})", first)
    assert sha is not None
    assert (tmp_path / "runs" / "a" / "accuracy.png").exists()
    assert (tmp_path / "runs" / "a" / "partition.png").exists()
    again = roundelay("run", "runs/a/job.toml", "--set", "tracking.name=b")  # the resolved file reproduces the run
    assert sha.group() in again
    assert sha.group() in roundelay("resume", "runs/a")
    longer = roundelay("run", job, "--set", "num_rounds=3", "--set", "tracking.name=c", *SMALL, *IN_ONE_PROCESS)
    longer_sha = re.search(r"sha256: [0-9a-f]{64}", longer)
    assert longer_sha is not None
    assert longer_sha.group() in roundelay("resume", "runs/a", "--set", "num_rounds=3")
    assert "a" in roundelay("runs", "list")
    assert "accuracy" in roundelay("runs", "compare", "runs/a", "runs/b", "--plot", "both.png")
    assert (tmp_path / "both.png").exists()
    assert sha.group(1) in roundelay("runs", "show", "runs/b")
    swept = roundelay("sweep", job, "--seeds", "0..1", "--set", "learner.lr=0.05,0.1", "--set", "num_rounds=1",
                      *SMALL, *IN_ONE_PROCESS)  # fmt: skip
    assert "learner.lr=0.1" in swept
    assert "called num_rounds here" in roundelay("run", job, "--set", "comm_round=3", status=2)
    assert "did you mean 'batch_size'" in roundelay("run", job, "--set", "learner.batchsize=3", status=2)
