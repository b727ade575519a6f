"""Shakespeare's roles: what the files say is what the windows hold; a file that does not say it is named."""

import json
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from support import data_folder

from roundelay import config
from roundelay.data.examples import Examples
from roundelay.data.speeches import from_plays
from roundelay.data.text import LEAF_CHARACTERS, TFF_CHARACTERS, shakespeare
from roundelay.data.text_windows import IGNORED, TextWindows
from roundelay.errors import ConfigError, DataError, MissingExtra

PLAY = """# Pyramus

## ACT I

### SCENE I. Ninus' tomb.

_Enter THISBE, and a Lion
behind her_

**THISBE**
This is old Ninny's tomb. _\\[Looks round]_ Where is my love?

**Lion**
[Roaring] Oh--

_Exit_

**THISBE**
*Runs off.*

**THISBE**¶
O wall,\\--sweet wall,¶
___\\[Within]_
my love is — here!

### SCENE II. The same.

**LION**
_Moonshine shines.

Well roared; and what I say goes on for longer than eighty-one characters, in one speech of two lines,
that is.

**Thisbe**
Adieu.
""".replace("¶", "  ")  # as Markdown ends a line
SPEECHES = {
    "PYRAMUS_THISBE": [
        "This is old Ninny's tomb.  Where is my love?",
        "O wall,--sweet wall,\nmy love is — here!",
        "Adieu.",
    ],
    "PYRAMUS_LION": [
        "Oh--",
        "Well roared; and what I say goes on for longer than eighty-one characters, in one speech of two lines,\n"
        "that is.",
    ],
}


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    (tmp_path / "pyramus.md").write_text(PLAY, encoding="utf-8")
    return tmp_path


def pairs(examples: Examples | None) -> list[tuple[list[int], list[int]]]:
    assert examples is not None
    inputs, targets = next(examples.batches(torch.arange(len(examples)), len(examples)))
    assert inputs.dtype == targets.dtype == torch.int64
    return list(zip(inputs.tolist(), targets.tolist(), strict=True))


def tokens_of_tff(speeches: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """The steps of FedML's preprocess and split, one after the other, with TensorFlow Federated's numbers."""
    made = []
    for speech in speeches:
        tokens = [TFF_CHARACTERS.index(byte) + 1 if byte in TFF_CHARACTERS else 87 for byte in speech.encode()]
        tokens = [88, *tokens, 89]
        while len(tokens) % 81:
            tokens.append(0)
        for start in range(0, len(tokens), 81):
            window = tokens[start : start + 81]
            made.append((window[:-1], [token if token else IGNORED for token in window[1:]]))
    return made


def samples_of_leaf(speeches: Sequence[str]) -> list[tuple[str, str]]:
    """LEAF's steps: one text, spaces for newlines, one for many; a window at each character."""
    text = re.sub(r"   *", " ", " ".join(speeches).replace("\n", " "))
    return [(text[at : at + 80], text[at + 80]) for at in range(len(text) - 80)]


def letters(text: str) -> list[int]:
    known = LEAF_CHARACTERS.decode()
    return [known.index(letter) if letter in known else 79 for letter in text]


def test_a_role_s_speeches_are_what_it_says_without_stage_directions(plays: Path) -> None:
    spoken = from_plays(plays, 0, 0.2)
    assert {client: [*pieces.train, *pieces.test] for client, pieces in spoken.items()} == SPEECHES
    assert {client: len(pieces.test) for client, pieces in spoken.items()} == {"PYRAMUS_THISBE": 1, "PYRAMUS_LION": 1}
    assert set(from_plays(plays, 100, 0.2)) == {"PYRAMUS_LION"}


@pytest.mark.parametrize(("fraction", "num_test"), [(0.2, 2), (0.19, 1), (0.01, 1), (0.5, 5)])
def test_the_last_share_of_the_speeches_rounded_down_and_at_least_one_is_for_testing(
    tmp_path: Path, fraction: float, num_test: int
) -> None:
    lines = [f"**A**\nspeech {number}\n" for number in range(10)]
    (tmp_path / "p.md").write_text("\n".join([*lines, "**B**\nonly once\n"]))
    spoken = from_plays(tmp_path, 0, fraction)
    assert list(spoken) == ["P_A"]  # B has nothing to be tested on
    assert spoken["P_A"].test == [f"speech {number}" for number in range(10 - num_test, 10)]


def test_federated_shakespeare_has_the_tokens_and_windows_of_tensorflow_federated(plays: Path) -> None:
    assert len(set(TFF_CHARACTERS)) == 86
    data = shakespeare(plays)
    assert data.clients == ("PYRAMUS_LION", "PYRAMUS_THISBE")
    for client, speeches in SPEECHES.items():
        assert pairs(data.train(client)) == tokens_of_tff(speeches[:-1])
        assert pairs(data.test(client)) == tokens_of_tff(speeches[-1:])
    assert pairs(data.held_out) == [pair for client in data.clients for pair in tokens_of_tff(SPEECHES[client][-1:])]
    first, targets = data.train("PYRAMUS_LION")[0]
    assert first[:6].tolist() == [88, *(TFF_CHARACTERS.index(byte) + 1 for byte in b"Oh--"), 89]
    assert targets[:7].tolist() == [*first[1:6].tolist(), IGNORED, IGNORED]
    assert pairs(data.train("PYRAMUS_THISBE"))[1][0].count(87) == len("—".encode())  # a byte is a token


def test_its_hdf5_files_hold_the_same(tmp_path: Path) -> None:
    write_hdf5(tmp_path, SPEECHES)
    data = shakespeare(tmp_path)
    for client, speeches in SPEECHES.items():
        assert pairs(data.train(client)) == tokens_of_tff(speeches[:-1])
        assert pairs(data.test(client)) == tokens_of_tff(speeches[-1:])


def write_hdf5(folder: Path, spoken: Mapping[str, Sequence[str]]) -> None:
    import h5py

    for name, part in (("train", slice(None, -1)), ("test", slice(-1, None))):
        with h5py.File(folder / f"shakespeare_{name}.h5", "w") as file:
            for client, speeches in spoken.items():
                snippets = [speech.encode() for speech in speeches[part]]
                file.create_dataset(f"examples/{client}/snippets", data=snippets, dtype=h5py.string_dtype())


def test_leaf_slides_over_all_that_a_role_says_and_predicts_one_character(tmp_path: Path) -> None:
    one, two = "Oh-- " * 20, "a — line\nand   another\u00e9 " * 6
    (tmp_path / "p.md").write_text(f"**A**\n{one}\n\n**A**\n{two}\n\n**A**\n{one}\n", encoding="utf-8")
    data = shakespeare(tmp_path, "leaf", test_fraction=0.34)
    said = ["Oh-- " * 19 + "Oh--", "\n".join(("a — line\nand   anotheré " * 6).strip().split(" \n"))]
    pieces = from_plays(tmp_path, 0, 0.34)["P_A"]
    assert pieces.train[0] == said[0]
    expected = [(letters(x), letters(y)[0]) for x, y in samples_of_leaf(pieces.train)]
    assert pairs(data.train("P_A")) == expected
    assert data.train("P_A").labels().tolist() == [target for _, target in expected]
    assert pairs(data.test("P_A")) == [(letters(x), letters(y)[0]) for x, y in samples_of_leaf(pieces.test)]
    assert len(LEAF_CHARACTERS) == 80


def test_who_has_no_window_to_train_on_or_to_be_tested_on_is_left_out(tmp_path: Path) -> None:
    long, short = "so it goes on " * 9, "So."
    for role, speeches in {"A": (long, long), "B": (long, short), "C": (short, long)}.items():
        (tmp_path / f"{role}.md").write_text("\n".join(f"**{role}**\n{speech}\n" for speech in speeches))
    data = shakespeare(tmp_path, "leaf")
    assert data.clients == ("A_A",)
    assert len(data.held_out or ()) == len(long) - 1 - 80
    assert shakespeare(tmp_path).clients == ("A_A", "B_B", "C_C")  # a speech has a window, however short it is


def write_leaf(folder: Path, parts: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]) -> None:
    for part, users in parts.items():
        (folder / part).mkdir()
        user_data = {user: {"x": [x for x, _ in s], "y": [y for _, y in s]} for user, s in users.items()}
        document = {"users": list(users), "num_samples": list(map(len, users.values())), "user_data": user_data}
        (folder / part / "all_data_0.json").write_text(json.dumps(document))


def test_leaf_s_json_gives_its_samples_in_order_and_what_overlaps_is_kept_once(tmp_path: Path) -> None:
    said = samples_of_leaf(["The quick brown fox jumps; over the lazy dog é and sleeps. " * 6])
    drawn = [sample for number, sample in enumerate(said) if number % 5]  # as of LEAF's random split
    write_leaf(tmp_path, {"train": {"b": drawn, "a": said[:3]}, "test": {"b": said[::5], "a": said[3:4]}})
    data = shakespeare(tmp_path, "leaf")
    assert data.clients == ("a", "b")
    assert pairs(data.train("b")) == [(letters(x), letters(y)[0]) for x, y in drawn]
    assert pairs(data.test("b")) == [(letters(x), letters(y)[0]) for x, y in said[::5]]
    assert (len(data.train("a")), len(data.test("a") or ())) == (3, 1)
    held_out = data.held_out
    assert isinstance(held_out, TextWindows)
    assert len(held_out.text.codes) < 84 + len(drawn) / 4 * 84 + len(said[::5]) * 81 + 83 + 81


def test_a_window_costs_nothing_and_a_client_a_hundred_bytes(tmp_path: Path) -> None:
    lines = [f"**R{number % 500}**\n{'to be, or not to be ' * 20}\n" for number in range(1500)]
    (tmp_path / "p.md").write_text("\n".join(lines))
    for variant in ("fed_shakespeare", "leaf"):
        data = shakespeare(tmp_path, variant)
        held_out = data.held_out
        assert isinstance(held_out, TextWindows)
        rest = len(pickle.dumps(data._train)) + len(pickle.dumps(data.clients)) - held_out.text.codes.nbytes
        assert rest / len(data.clients) < 100
        assert held_out.text.codes.nbytes < 1.3 * 1500 * 400
        part = data.train(data.clients[0])
        assert isinstance(part, TextWindows)
        assert part.text is held_out.text


def test_a_pickled_view_takes_its_own_windows_along(plays: Path) -> None:
    data = shakespeare(plays)
    part = data.train("PYRAMUS_THISBE").select(torch.tensor([1]))
    again = pickle.loads(pickle.dumps(part))
    assert pairs(again) == pairs(part)
    assert len(again.text.codes) == 81
    everything = pickle.loads(pickle.dumps(data))
    assert pairs(everything.held_out) == pairs(data.held_out)


def test_one_client_for_all_holds_the_windows_of_all_on_the_same_text(plays: Path) -> None:
    apart, data = shakespeare(plays), shakespeare(plays, pooled=True)
    assert data.clients == ("all",)
    assert pairs(data.train("all")) == [pair for client in apart.clients for pair in pairs(apart.train(client))]
    assert pairs(data.test("all")) == pairs(data.held_out) == pairs(apart.held_out)
    train, held_out = data.train("all"), data.held_out
    assert isinstance(train, TextWindows)
    assert isinstance(held_out, TextWindows)
    assert train.text is held_out.text


def test_a_window_of_which_every_character_is_predicted_has_no_class(plays: Path) -> None:
    with pytest.raises(DataError, match="no class of its own"):
        shakespeare(plays).train("PYRAMUS_LION").labels()


def test_what_is_absent_or_no_play_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; make it and put shakespeare_train\.h5 and"):
        shakespeare(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no plays are there; put LEAF's folders train and test"):
        shakespeare(tmp_path, "leaf")
    (tmp_path / "readme.md").write_text("# Read me\n\nNot a play.\n")
    with pytest.raises(DataError, match=r"readme\.md: no speech is in it; expected lines \*\*ROLE\*\*"):
        shakespeare(tmp_path)
    (tmp_path / "readme.md").write_text("**A**\n\n_Exit_\n\n**A**\n\n_Enter_\n")
    with pytest.raises(DataError, match=r"readme\.md: no speech is in it"):
        shakespeare(tmp_path)
    (tmp_path / "readme.md").write_bytes(b"**A**\n\xff\xfe")
    with pytest.raises(DataError, match=r"readme\.md: expected a play as UTF-8 text"):
        shakespeare(tmp_path)
    (tmp_path / "readme.md").write_text("**A**\nOh.\n\n**A**\nOh!\n")
    with pytest.raises(DataError, match=r"nobody there speaks twice, and at least 7 characters"):
        shakespeare(tmp_path, min_characters=7)
    with pytest.raises(DataError, match=r"nobody has 81 characters to train on"):
        shakespeare(tmp_path, "leaf")
    with pytest.raises(ConfigError, match=r"variant 'lead' is unknown; did you mean 'leaf'"):
        shakespeare(tmp_path, "lead")
    with pytest.raises(ConfigError, match="test_fraction"):
        shakespeare(tmp_path, test_fraction=1.0)


def test_an_hdf5_file_that_is_not_tensorflow_federated_s_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_hdf5(tmp_path, SPEECHES)
    test = tmp_path / "shakespeare_test.h5"
    test.unlink()
    with pytest.raises(DataError, match=r"shakespeare_test\.h5: no such file; put both files"):
        shakespeare(tmp_path)
    test.write_bytes(b"\x89HDF no")
    with pytest.raises(DataError, match=r"shakespeare_test\.h5: not an HDF5 file, or a damaged one"):
        shakespeare(tmp_path)
    test.unlink()
    with h5py.File(test, "w") as file:
        file.create_group("clients")
    with pytest.raises(DataError, match=r"shakespeare_test\.h5: it has no group 'examples', but \['clients'\]"):
        shakespeare(tmp_path)
    with h5py.File(test, "w") as file:
        file.create_group("examples/PYRAMUS_LION/lines")
    with pytest.raises(DataError, match=r"shakespeare_test\.h5: client 'PYRAMUS_LION' has no data set 'snippets'"):
        shakespeare(tmp_path)
    with h5py.File(test, "w") as file:
        file.create_dataset("examples/PYRAMUS_LION/snippets", data=[b"Oh"], dtype=h5py.string_dtype())
    with pytest.raises(DataError, match=r"client 'PYRAMUS_THISBE' is in one of"):
        shakespeare(tmp_path)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shakespeare_train.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[text\]"):
        shakespeare(tmp_path)


X, Y = "x" * 80, "y"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object with users, num_samples, user_data"),
        ('{"users": [], "user_data": {}}', "expected an object with users, num_samples, user_data"),
        ('{"users": ["a"], "num_samples": [], "user_data": {}}', "1 users, but 0 num_samples"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {}}', "user 'a': expected lists x and y of 1 strings"),
        (
            json.dumps({"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [X], "y": []}}}),
            "user 'a': expected lists x and y of 1",
        ),
        (
            json.dumps({"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [X[:-1]], "y": [Y]}}}),
            "user 'a': expected 80 characters and the next one",
        ),
        (
            json.dumps({"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [X], "y": [7]}}}),
            "user 'a': expected 80 characters and the next one",
        ),
    ],
)
def test_json_that_is_not_leaf_s_is_named(tmp_path: Path, content: str, says: str) -> None:
    write_leaf(tmp_path, {"train": {"a": [(X, Y)]}, "test": {"a": [(X, Y)]}})
    file = tmp_path / "test" / "all_data_0.json"
    file.write_text(content)
    with pytest.raises(DataError, match=re.escape(str(file))) as caught:
        shakespeare(tmp_path, "leaf")
    assert says in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match=r"test: no JSON file is there"):
        shakespeare(tmp_path, "leaf")


@pytest.mark.slow
def test_the_38_plays() -> None:
    folder = data_folder("shakespeare")
    everybody, speakers = shakespeare(folder), shakespeare(folder, min_characters=1000)
    assert (len(everybody.clients), len(speakers.clients)) == (1154, 646)
    assert "HAMLET_HORATIO" in speakers.clients
    for data in (everybody, speakers, shakespeare(folder, "leaf")):
        sizes = [(len(data.train(client)), len(data.test(client) or ())) for client in data.clients]
        held_out = data.held_out
        assert isinstance(held_out, TextWindows)
        assert len(held_out) == sum(test for _, test in sizes)
        assert len(held_out.text) == sum(train + test for train, test in sizes)
        assert held_out.text.codes.nbytes < 6e6
    spoken = from_plays(folder, 0, 0.2)
    said = "".join(speech for pieces in spoken.values() for part in pieces for speech in part)
    assert 4.2e6 < len(said) < 4.4e6
    assert not set("_*[]#\\") & set(said)
    assert sum(letter.encode() not in TFF_CHARACTERS for letter in said) < 100


@pytest.mark.slow
def test_two_rounds_on_the_plays_learn_more_than_the_commonest_character(tmp_path: Path) -> None:
    settings = ["num_rounds=2", "clients_per_round=2", "evaluation.every=2", f"tracking.root={tmp_path}"]
    folder = data_folder("shakespeare")
    job = config.load("task:shakespeare", [*settings, f"data.folder={folder}", "data.min_characters=40000"])
    assert job.run().rows[-1]["token_accuracy"] > 0.17
