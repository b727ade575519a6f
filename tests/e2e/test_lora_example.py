"""The example of low-rank adapters, on generated text: a base is trained in one place, and its adapters are tuned."""

import random
import sys
from pathlib import Path

import pytest
import torch

from roundelay.config import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "lora"
SMALL = ("num_rounds=2", "clients_per_round=2", "data.min_characters=200", "evaluation.every=1", "model.rank=2",
         'simulation.executor="serial"')  # fmt: skip


def play(folder: Path, name: str, roles: tuple[str, ...]) -> None:
    draw = random.Random(name)
    speech = [" ".join(draw.choice(("honour", "crown", "the", "of", "night")) for _ in range(30)) for _ in range(20)]
    (folder / f"{name}.md").write_text(
        "\n".join(f"**{roles[i % len(roles)]}**\n{text}\n" for i, text in enumerate(speech))
    )


def test_a_base_is_trained_and_its_adapters_are_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = tmp_path / "plays"
    plays.mkdir()
    play(plays, "as-you-like-it", ("ROSALIND", "ORLANDO"))
    play(plays, "henry-v", ("KING HENRY", "CHORUS", "PISTOL"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("model", "roles", "pretrain"):  # other examples have modules of these names
        monkeypatch.delitem(sys.modules, name, raising=False)
    import pretrain  # type: ignore[import-not-found, unused-ignore]
    from roles import histories, public  # type: ignore[import-not-found, unused-ignore]

    assert all(client.startswith("HENRY_V_") for client in histories(str(plays), 200).clients)
    assert len(public(str(plays)).train("all")) > 0
    pretrain.main(str(plays), 3)
    base = torch.load("base.pt", weights_only=True)
    history = load(EXAMPLE / "job.toml", [*SMALL, f"data.folder={plays}"]).run()
    adapters = 3 * 2 * 2 * (2 * 96)  # layers, queries and values, A and B of rank 2
    assert [row["bytes_up"] for row in history.rows] == [2 * 4 * adapters] * 2
    state = history.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    assert state["blocks.0.q.lora_b"].any()
    for name in ("model", "roles", "pretrain"):
        sys.modules.pop(name, None)
