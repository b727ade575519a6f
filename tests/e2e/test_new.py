"""``roundelay new``: each template is written and run as a user would; what is there is never written into."""

import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from forked import ran
from typer.testing import CliRunner

import roundelay as rd
import roundelay.client as fl
from roundelay import templates
from roundelay.cli import app
from roundelay.errors import ConfigError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "roundelay"
FILES = {
    "pytorch": {".gitignore", "README.md", "data.py", "job.toml", "model.py"},
    "script": {".gitignore", "README.md", "client.py", "job.py", "model.py"},
}


def new(*arguments: str) -> list[str]:
    """Return the lines that ``roundelay new`` printed."""
    result = CliRunner().invoke(app, ["new", *arguments])
    assert result.exit_code == 0, result.output
    return [line.strip() for line in result.output.splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_template_is_a_job_that_learns_and_is_called_as_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("some/where/first")[-2:] == ["cd some/where/first", "roundelay run job.toml"]
    project = tmp_path / "some" / "where" / "first"
    assert {path.name for path in project.iterdir()} == FILES["pytorch"]
    output = ran(project, "roundelay", "run", "job.toml", "--set", "num_rounds=3")
    (run,) = (project / "runs").iterdir()
    assert run.name.startswith("first-")
    found = re.search(r"accuracy\D*(0\.\d+) \(best", output)
    assert found is not None
    assert float(found[1]) > 0.5  # guessing: 0.1


def test_the_script_template_runs_by_its_recipe_and_without_it(tmp_path: Path) -> None:
    project = tmp_path / "second"
    assert new(str(project), "--template", "script")[-2:] == [f"cd {project}", "python job.py"]
    assert {path.name for path in project.iterdir()} == FILES["script"]
    accuracies = [float(text) for text in re.findall(r"accuracy (0\.\d+)", ran(project, "job.py"))]
    assert len(accuracies) == 5
    assert accuracies[-1] > 0.8
    (run,) = (project / "runs").glob("second-*")
    assert "round 4, epoch 0" in (run / "sites" / "site-2" / "output.log").read_text()
    line = "roundelay run --script client.py --clients 2 --rounds 2 --model model:Net"
    without = ran(project, *line.split())
    assert re.search(r"round 2/2: train_accuracy 0\.[6-9]", without)  # the model of round 1, by what clients measure


def test_a_client_of_the_script_template_takes_the_part_that_a_partition_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "third"
    templates.write(project, "script")
    rd.Split.from_parts({"a": range(3), "b": range(100, 110)}, 4000).save(project / "split.json")
    config = {"partition": {"client": "b", "number": 1, "num_clients": 2, "file": str(project / "split.json")}}
    for name, value in (("init", None), ("is_running", False), ("get_config", config)):
        monkeypatch.setattr(fl, name, lambda value=value: value)
    monkeypatch.setattr(sys, "argv", ["client.py"])
    monkeypatch.syspath_prepend(project)
    try:
        held = runpy.run_path(str(project / "client.py"))
    finally:
        sys.modules.pop("model", None)
    assert (len(held["train"]), len(held["test"])) == (8, 2)


@pytest.mark.parametrize("template", templates.TEMPLATES)
def test_a_project_bears_no_trace_of_the_template(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = templates.write(Path("über_7.b"), template)  # valid: letters of any alphabet
    assert {path.name for path in written} == FILES[template]
    texts = {path.name: path.read_text(encoding="utf-8") for path in written}
    assert texts["README.md"].startswith("# über_7.b\n")
    assert not [name for name, text in texts.items() if templates.PLACEHOLDER in text]
    assert "runs/" in texts[".gitignore"].split()


def test_what_an_installer_compiled_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "installed"
    for file in FILES["script"]:
        (installed / "templates" / "script" / "__pycache__").mkdir(parents=True, exist_ok=True)
        (installed / "templates" / "script" / file).write_text("")
    (installed / "templates" / "script" / "__pycache__" / "client.pyc").write_bytes(b"\xff")
    monkeypatch.setattr(templates.resources, "files", lambda package: installed)
    assert {path.name for path in templates.write(tmp_path / "project", "script")} == FILES["script"]


def test_an_empty_folder_is_taken_and_the_folder_at_hand_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    templates.write(Path("."), "pytorch")
    assert (tmp_path / "empty" / "README.md").read_text().startswith("# empty\n")


@pytest.mark.parametrize(
    ("name", "template", "told"),
    [
        ("taken", "pytorch", r"taken is there already, with \.hidden in it"),
        ("twice", "script", r"with \.gitignore, README\.md, client\.py and 2 more in it"),
        ("file", "pytorch", "file is a file"),
        ("file/below", "pytorch", "cannot write the project into file/below: "),
        ("linked", "pytorch", "cannot write the project into linked: "),
        ("fine", "pytroch", "did you mean 'pytorch'.* Known: pytorch, script"),
        ("fine", "../templates/script", "Known: pytorch, script"),
        ("a b", "pytorch", "got 'a b'"),
        ('a"b', "pytorch", "expected letters, digits"),
        (".hidden", "pytorch", "a letter or digit first"),
        ("fine\n", "pytorch", r"got 'fine\\n'"),
        ("/", "pytorch", "got ''"),
        ("n" * 300, "pytorch", "cannot write the project"),
    ],
)
def test_a_project_that_cannot_be_is_refused_and_nothing_is_touched(
    name: str, template: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/.hidden").write_text("mine")
    templates.write(Path("twice"), "script")
    Path("twice/client.py").write_text("mine")
    Path("file").write_text("mine")
    Path("linked").symlink_to("nowhere")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=told):
        templates.write(Path(name), template)
    assert snapshot(tmp_path) == before
    result = CliRunner().invoke(app, ["new", name, "--template", template])
    assert isinstance(result.exception, ConfigError)  # which main() tells in one line


def test_a_file_that_somebody_puts_there_meanwhile_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = templates._texts

    def late(template: str) -> list[tuple[str, str]]:
        (tmp_path / "p" / "model.py").write_text("mine")
        return texts(template)

    monkeypatch.setattr(templates, "_texts", late)
    with pytest.raises(ConfigError, match="File exists"):
        templates.write(tmp_path / "p", "pytorch")
    assert (tmp_path / "p" / "model.py").read_text() == "mine"


def test_a_wheel_holds_every_file_of_every_template() -> None:
    folders = {path.name for path in (SOURCE / "templates").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(templates.TEMPLATES) == set(FILES)
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = metadata["tool"]["setuptools"]["package-data"]["roundelay"]
    packed = {path for pattern in patterns for path in SOURCE.glob(pattern)}
    for template, files in FILES.items():
        assert {path.name for path in packed if path.parent.name == template} == files
        assert {name for name, _ in templates._texts(template)} == files
