"""The Shakespeare task ends in the same bits in this process, in workers and on devices, federated or centralised."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from deployments import require_same
from devices import deployed

import roundelay as rd
from roundelay import config, seeds
from roundelay.data import shakespeare
from roundelay.models import CharLSTM

SAID = "It was the nightingale and not the lark that pierced the fearful hollow of thine ear; believe me, love."


def write_play(folder: Path) -> None:
    speeches = []
    for number in range(18):
        words = (SAID.split()[(number * 7 + at * (number + 1)) % 19] for at in range(9 + 7 * number % 29))
        speeches.append(f"**ROLE {number % 3}**\n{' '.join(words)}\n")
    (folder / "play.md").write_text("\n".join(speeches))


def task(folder: Path, **changes: object) -> rd.Job:
    """The task as it is, with a smaller model and a play that was made up."""
    write_play(folder)
    settings = {"data.folder": folder, "data.min_characters": 0, "tracking.root": folder, "num_rounds": 2,
                "clients_per_round": 2, "model.hidden_size": 12, "evaluation.every": 1, "evaluation.clients_every": 2,
                "simulation.executor": "serial", **changes}  # fmt: skip
    return config.load("task:shakespeare", [f"{name}={value}" for name, value in settings.items()])


PAGE = Path(__file__).parents[2] / "docs" / "tasks" / "shakespeare.md"
LEAF = {"data.variant": "leaf", "model.vocabulary_size": 80, "model.every_position": "false", "learner.batch_size": 64}
CENTRALISED = {"data.pooled": "true", "clients_per_round": 1}
VARIANTS: Mapping[str, Mapping[str, object]] = {"fed_shakespeare": {}, "leaf": LEAF, "centralised": CENTRALISED}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_task_ends_in_the_same_bits_wherever_its_clients_are(tmp_path: Path, changes: Mapping[str, object]) -> None:
    job = task(tmp_path, **changes)
    here, workers = job.run(), job.run(rd.Simulation("processes", num_workers=2))
    require_same(here, workers)
    with deployed(job.prepared()) as deployment:
        for _ in deployment.run:
            pass
    require_same(here, deployment.run.history())
    last = here.rows[-1]
    assert {"token_accuracy", "client_token_accuracy", "pooled_token_accuracy"} <= last.keys()
    # the server holds out what all clients are tested on: one measure, two ways to it
    assert last["pooled_token_accuracy"] == last["token_accuracy"]


def test_one_client_with_all_data_and_the_full_batch_is_gradient_descent(tmp_path: Path) -> None:
    job = task(tmp_path, **CENTRALISED, **{"learner.batch_size": 0})
    data = shakespeare(tmp_path).pooled().train("all")
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(1, 0, 0, "", "model"))
        model = CharLSTM(hidden_size=12)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    inputs, targets = next(data.batches(torch.arange(len(data)), len(data)))
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(inputs)
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets).backward()  # padding is -100, torch's own
        optimizer.step()
    for name, reached in job.run().model.state_dict().items():
        torch.testing.assert_close(reached, model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_every_command_of_its_page_makes_a_job() -> None:
    made = [
        config.load("task:shakespeare", re.findall(r"--set (\S+)", line))
        for line in PAGE.read_text().splitlines()
        if line.startswith("roundelay run task:shakespeare")
    ]
    assert len(made) == 7
    assert {job.num_rounds for job in made} >= {1200}
