"""What the terminal shows of a run."""

import pytest
from torch import nn

from roundelay.report.progress import final_table, summary
from roundelay.run import History

COUNTS = {"round": 1, "refused": 0, "lost": 0, "late": 0, "bytes_down": 8, "bytes_up": 8, "seconds": 0.5}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"accuracy": 0.5, "loss": 1.5, "train_loss": 1.0}, "accuracy 0.5000, loss 1.5000"),
        ({"accuracy": None, "loss": None, "train_loss": 1.0}, "train_loss 1.0000"),
        ({"train_loss": 1.0, "train_accuracy": 0.25, "lost": 2}, "train_accuracy 0.2500, train_loss 1.0000, 2 lost"),
    ],
)
def test_a_round_is_told_by_the_server_s_numbers_or_else_by_the_clients(row: dict[str, float], line: str) -> None:
    assert summary({**COUNTS, **row}) == line


def test_the_result_shows_what_clients_reported_where_nobody_else_measured() -> None:
    rows = [{**COUNTS, "train_accuracy": 0.5}, {**COUNTS, "train_accuracy": 0.25}]
    names, values = final_table(History(rows, nn.Identity(), "", None, "done")).columns
    assert dict(zip(names._cells, values._cells, strict=True))["train_accuracy"] == "0.2500 (best 0.5000)"
