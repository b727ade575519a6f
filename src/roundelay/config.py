"""Job files: TOML whose keys are constructor arguments. ``load`` reads one, ``--set`` overrides change a key of it."""

import inspect
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from inspect import isclass
from pathlib import Path
from typing import Any

from roundelay import aggregators, algorithms, attacks, learner, models, tasks, workflows
from roundelay.components import Namespace, Table, build, call, checked, find, namespace, unknown_message
from roundelay.data import (
    augment,
    augment_boxes,
    client_tables,
    detection,
    ecg,
    images,
    ncctg,
    partition,
    partition_boxes,
    tabular,
    text,
)
from roundelay.errors import ConfigError
from roundelay.federation import Stopping
from roundelay.guard import Guard
from roundelay.job import Evaluation, Job
from roundelay.privacy import CentralDP
from roundelay.simulation import loads, network
from roundelay.simulation.network.network import Network
from roundelay.simulation.settings import Simulation
from roundelay.stages import codecs, triggers
from roundelay.stages.downlink import Downlink
from roundelay.stages.uplink import Uplink
from roundelay.tracking.run_folder import Tracking
from roundelay.workflows.readiness import Readiness
from roundelay.world import Deployment

FIXED = {
    "evaluation": Evaluation,
    "stopping": Stopping,
    "guard": Guard,
    "simulation": Simulation,
    "deployment": Deployment,
    "tracking": Tracking,
    "privacy": CentralDP,
    "uplink": Uplink,
    "downlink": Downlink,
}
"""Tables that configure one known class."""

CHOSEN: Mapping[str, tuple[Namespace, str | None]] = {
    "model": (namespace(models), None),
    "data": (namespace(client_tables, detection, ecg, images, ncctg, tabular, text), None),
    "partition": (namespace(partition, partition_boxes), None),
    "algorithm": (namespace(algorithms), "fedavg"),
    "learner": ({"LocalSGD": learner.LocalSGD}, "localsgd"),
    "workflow": (namespace(workflows), "rounds"),
    "aggregator": (namespace(aggregators), None),
}
"""Tables whose ``use`` chooses a class or function, where short names are looked up, and what is chosen by default."""

ON_THE_AIR = namespace(codecs, triggers)
LINKS = {"uplink": ("codec", "trigger"), "downlink": ("codec",)}
"""Where codecs and triggers are looked up, and in which keys of which tables."""

INSIDE = namespace(learner, augment, augment_boxes)
NESTING: Mapping[str, Namespace] = {
    **{name: CHOSEN[name][0] for name in ("aggregator", "partition")},
    "workflow": {**CHOSEN["workflow"][0], "Readiness": Readiness},
    "simulation": namespace(loads),
    **dict.fromkeys(LINKS, ON_THE_AIR),
}
"""Where short names inside a table are looked up: schedules, measures, losses, augmentations; for some tables somewhere
else.
"""

SYNONYMS: Mapping[str, tuple[str, str]] = {
    "comm_round": ("num_rounds", "FedML"),
    "num-server-rounds": ("num_rounds", "Flower"),
    "num_server_rounds": ("num_rounds", "Flower"),
    "global_epoch": ("num_rounds", "FL-bench"),
    "global_rounds": ("num_rounds", "PFLlib"),
    "fraction_fit": ("clients_per_round (a fraction such as 0.1)", "Flower"),
    "fraction_train": ("clients_per_round (a fraction such as 0.1)", "Flower"),
    "join_ratio": ("clients_per_round (a fraction such as 0.1)", "PFLlib"),
    "proportion": ("clients_per_round (a fraction such as 0.1)", "FLGo"),
    "client_num_per_round": ("clients_per_round", "FedML"),
    "sample_clients": ("clients_per_round", "NVFlare"),
    "client_num_in_total": ("partition.num_clients", "FedML"),
    "num_supernodes": ("partition.num_clients", "Flower"),
    "num-supernodes": ("partition.num_clients", "Flower"),
    "n_clients": ("partition.num_clients", "NVFlare"),
    "num_clients": ("partition.num_clients", "other frameworks"),
    "epochs": ("learner.local_epochs", "FedML"),
    "local_epoch": ("learner.local_epochs", "FL-bench"),
    "local-epochs": ("learner.local_epochs", "Flower"),
    "num_epochs": ("learner.local_epochs", "FLGo"),
    "num_steps": ("learner.local_batches", "FLGo"),
    "local_steps": ("learner.local_batches", "other frameworks"),
    "learning_rate": ("learner.lr", "other frameworks"),
    "client_optimizer": ("learner.optimizer", "FedML"),
    "min_fit_clients": ("workflow.quorum", "Flower"),
    "min_responses": ("workflow.quorum", "NVFlare"),
    "min_available_clients": ("workflow.quorum", "Flower"),
    "min_clients": ("workflow.quorum", "NVFlare"),
    "worker_num": (
        "simulation.num_workers (processes of this machine; the population is partition.num_clients)",
        "FedML",
    ),
    "workers": ("simulation.num_workers", "other frameworks"),
    "client_resources": ("simulation.num_workers and simulation.devices", "Flower"),
    "gpu_mapping_file": ('simulation.gpu_mapping = "file.yaml#mapping"', "FedML"),
    "device": ("simulation.devices", "other frameworks"),
    "partition_alpha": ("partition.alpha", "FedML"),
    "random_seed": ("seed", "FedML"),
    "MAX_NUM_ROUNDS": ("num_rounds", "FATE's detection benchmark"),
    "NUM_CLIENTS_CONTACTED_PER_ROUND": ("clients_per_round", "FATE's detection benchmark"),
    "NUM_TOLERATE": ("stopping.patience", "FATE's detection benchmark"),
    "MIN_NUM_WORKERS": ("deployment.wait_for_clients_s", "FATE's detection benchmark"),
    "federated_optimizer": ("algorithm.use", "FedML"),
    "strategy": ("algorithm.use", "Flower"),
}
"""What other frameworks call a key, what it is called here, and by whom. They are explained, not accepted: one name a
thing.
"""


NUM_SITES = 2
"""How many clients run a script where nothing else says."""


def load(path: str | Path, overrides: Sequence[str] = (), attacked: Sequence[str] = ()) -> Job:
    """Read a job file, the resolved one of a run folder, or a reference task's, "task:NAME". ``use = "module:Name"``
    finds modules beside the file. ``attacked`` adds attacks such as "alie:fraction=0.2" to those of the file.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; names it.
    """
    if tasks.is_task(path):
        document = tasks.document(str(path))
        _override(document, overrides, attacked)
        return build_job(document)
    path = Path(path)
    if path.suffix == ".py":
        raise ConfigError(f"{path} is no job file; a training script is run by: roundelay run --script {path} --model "
                          "MODULE:NAME")  # fmt: skip
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the job file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or bytes that are no text
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    _override(document, overrides, attacked)
    beside = path.resolve().parent
    import_from(beside)
    if "script" in document:
        document["script"] = str(beside / document["script"])
    if (beside / "run.json").exists():  # a run folder: its modules lie where they lay when the run began
        found = json.loads((beside / "run.json").read_text())["import_path"]
        sys.path += [entry for entry in found if entry not in sys.path]
    document.setdefault("name", path.stem if path.stem != "job" else path.resolve().parent.name)
    return build_job(document)


def for_script(
    script: Path, settings: Mapping[str, Any], overrides: Sequence[str] = (), attacked: Sequence[str] = ()
) -> Job:
    """Make the job in which every client runs ``script``; ``settings`` are what a job file would hold beside it.
    ``use = "module:Name"`` finds modules beside the script.
    """
    document: dict[str, Any] = {"name": script.stem, **settings, "script": str(script)}
    _override(document, overrides, attacked)
    if "partition" not in document:
        document.setdefault("simulation", {}).setdefault("num_clients", NUM_SITES)
    import_from(script.resolve().parent)
    return build_job(document)


def build_job(document: Mapping[str, Any]) -> Job:
    """Make a job from what a job file holds."""
    return Job(**checked(Job, parts_of(document), {}, "job"))


def parts_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a job that a document describes, by the names that ``Job`` has for them."""
    _explain_unknown(document, [f.name for f in fields(Job)], "the job file")
    parts: dict[str, Any] = {}
    for name, value in document.items():
        if name in CHOSEN:
            parts[name] = _chosen(name, _table(name, value))
        elif name == "attacks":
            if not isinstance(value, list):
                raise ConfigError(f'attacks must be a list of tables with use = "...", got {value!r}')
            parts[name] = tuple(build(_table("attacks", table), namespace(attacks), "attacks") for table in value)
        elif name in FIXED:
            table = _table(name, value)
            _explain_unknown(table, [f.name for f in fields(FIXED[name])], f"[{name}]")
            if name in LINKS:  # codec = "eden" is a codec without arguments
                table = {key: {"use": use} if key in LINKS[name] and isinstance(use, str) else use
                         for key, use in table.items()}  # fmt: skip
            if name == "simulation" and isinstance(table.get("network"), Mapping):
                table = {**table, "network": _network(table["network"])}
            parts[name] = call(FIXED[name], table, NESTING.get(name, INSIDE), name)
        else:
            parts[name] = value
    return parts


def _override(document: dict[str, Any], overrides: Sequence[str], attacked: Sequence[str]) -> None:
    for override in overrides:
        apply_override(document, override)
    if attacked:
        document["attacks"] = [*document.get("attacks", []), *map(parse_attack, attacked)]


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set "table.key=value" in place; the value is read as TOML, or as text where it is not."""
    path, equals, text = override.partition("=")
    *tables, key = path.strip().split(".")
    if not equals or not key:
        raise ConfigError(f"cannot read {override!r}; expected table.key=value, for example learner.lr=0.05")
    place = document
    for table in tables:
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise ConfigError(f"cannot set {path.strip()!r}: {table!r} is not a table")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    # "algorithm=fedprox" chooses anew: the arguments of what was chosen before do not fit it
    place[key] = {"use": value} if path.strip() in CHOSEN and isinstance(value, str) else value


def parse_attack(text: str) -> Table:
    """Return the table that "signflip:fraction=0.2,scale=3" stands for; "module:Name" finds one of your own.

    >>> parse_attack("alie:fraction=0.2")
    {'use': 'alie', 'fraction': 0.2}
    """
    use, _, arguments = text.rpartition(":") if "=" in text else (text, "", "")
    if "=" in use or (arguments and not use):
        raise ConfigError(f"cannot read the attack {text!r}; expected a name and settings, as in alie:fraction=0.2")
    table: dict[str, Any] = {"use": use}
    for setting in top_level_commas(arguments) if arguments else ():
        apply_override(table, setting)
    return table


def top_level_commas(text: str) -> Iterator[str]:
    """Split at commas that are not inside brackets, braces or quotes."""
    depth, quoted, start = 0, "", 0
    for at, char in enumerate(text):
        if quoted:
            quoted = "" if char == quoted else quoted
        elif char in "\"'":
            quoted = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _chosen(name: str, table: Table) -> Any:  # Any: a component of any class
    known, default = CHOSEN[name]
    arguments = dict(table)
    use = arguments.pop("use", default)
    if not isinstance(use, str):
        raise ConfigError(f'[{name}] needs use = "..."; known are {", ".join(sorted(n.lower() for n in known))}')
    component = find(use, known, f"[{name}]")
    if not callable(component):
        raise ConfigError(f"[{name}] use = {use!r} is a {type(component).__name__}; expected a class or a function")
    signature = getattr(component, "__dataclass_fields__", {})
    if signature:
        _explain_unknown(arguments, list(signature), f"[{name}]")
    if name in ("model", "data"):  # built when the job runs, in every process that needs it
        return partial(component, **checked(component, arguments, INSIDE, name))
    if isclass(component):
        if name == "workflow" and isinstance(arguments.get("readiness"), Mapping):
            arguments["readiness"] = {"use": "readiness", **arguments["readiness"]}
        return call(component, arguments, NESTING.get(name, INSIDE), name)
    parameters = inspect.signature(component).parameters  # of a user's own function, which is the component itself
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _explain_unknown(arguments, list(parameters), f"[{name}]")
    return partial(component, **arguments) if arguments else component


def _network(table: Table) -> Network:
    arguments = {name: value for name, value in table.items() if name != "use"}
    _explain_unknown(arguments, [f.name for f in fields(Network)], "[simulation.network]")
    made: Network = call(Network, arguments, namespace(network), "simulation.network")
    return made


def _explain_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key in known:
            continue
        if key in SYNONYMS:
            ours, framework = SYNONYMS[key]
            raise ConfigError(f"{where}: {key!r} ({framework}) is called {ours} here")
        raise ConfigError(unknown_message(f"{where}: key {key!r}", key, known))


def import_from(folder: Path) -> None:
    """Let ``use = "module:Name"`` find the modules of a folder."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _table(name: str, value: object) -> Table:
    if isinstance(value, str):
        return {"use": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a table, got {value!r}")
    return value
