"""What is typed wrong is told in one line, before anything is made, asked or trained."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from roundelay import cli

URL = "https://127.0.0.1:1"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["join", URL, "--token-file", "nowhere"], "nowhere: cannot open it (No such file or directory)"),
        (["join", URL, "--id", "../alice"], "client '../alice': expected"),
        (["worker", "--id", "../alice"], "client '../alice': expected"),
        (["worker", "--id", "a", "--script", "x.py", "--script-args", '"open'], "close what is quoted"),
        (["run", "--script", "x.py", "--model", "model:Net", "--script-args", '"open'], "close what is quoted"),
        (["run", "job.toml", "--simulate"], "is for --workers"),
        (["run", "--replay", "runs/a", "--workers", "a@127.0.0.1:1"], "leave --workers and --script out"),
        (["serve", "job.toml", "--clients", "0"], "expected a number from 1 on"),
        (["serve", "job.toml", "--folder", "job.toml/keys"], "cannot keep there who is who"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_words_that_cannot_be_are_refused(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(
        'num_rounds = 1\nmodel = "networks:Awkward"\ndata = "networks:federated"\n[learner]\nlr = 0.1\n'
    )
    Path("x.py").write_text("")
    Path("model.py").write_text("import torch\n\n\ndef Net():\n    return torch.nn.Linear(1, 1)\n")
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, ValueError), result.output  # which main() tells in one line
    assert told in str(result.exception)
    assert not Path(".roundelay").exists()
