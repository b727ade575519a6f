"""How much of what a server tells of a job is believed: names of roundelay's own parts, and plain values."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roundelay import config
from roundelay.components import checked, foreign, resolve
from roundelay.data.federated import FederatedData
from roundelay.data.partition import Partitioner
from roundelay.deployment.offered import BUILT, HAS_INIT, OFFERED, offered_settings
from roundelay.errors import ConfigError
from roundelay.job import Job
from roundelay.stages.downlink import Downlink
from roundelay.stages.uplink import Uplink
from roundelay.tasks import is_task

Settings = Mapping[str, Any]  # Any: what TOML can hold

DECISIVE = ("seed", "keep_local", "model", "algorithm", "learner", "uplink", "downlink")
MEASURED = ("loss", "measures", "batch_size", "client_test_fraction")
"""What a job that is installed here must have in common with the server's, to come to the same bits."""

LOSSES = frozenset(
    f"torch.nn.functional:{name}"
    for name in (
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "hinge_embedding_loss",
        "huber_loss", "kl_div", "l1_loss", "mse_loss", "multi_margin_loss", "multilabel_margin_loss",
        "multilabel_soft_margin_loss", "nll_loss", "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss",
    )
)  # fmt: skip
"""Functions of torch that a server may name without being asked."""

_DOTTED, _MOST_PARTS = re.compile(r"\.[^,=\n{}\[\]]*"), 100
"""From a first point on to where a key ends. The parser takes the square of how many parts a key has."""


def read_settings(text: str) -> Settings:
    """Return those settings of a server's that mean something here; what else it says is not looked at.

    Raises:
        ConfigError: it is no TOML, or one that no server writes.
    """
    if any(key.count(".") > _MOST_PARTS for key in _DOTTED.findall(text)):
        raise ConfigError(f"the server's settings cannot be read: a key has more than {_MOST_PARTS} parts")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the server's settings cannot be read: {error}") from error
    offered = {name: document[name] for name in OFFERED if name in document}
    return {**offered, HAS_INIT: document.get(HAS_INIT) is True}


def refuse_foreign(value: Any, where: str, allow: Sequence[str]) -> None:  # Any: what TOML can hold
    """Refuse what building would import, unless it was allowed: before anything is imported.

    Raises:
        ConfigError: it names something that is neither our own nor allowed.
    """
    for place, name in foreign(value, where):
        if "<" in name:
            raise ConfigError(f"{place}: the server's is {name!r}, which only its own process has; bring the job: "
                              "--job FILE, the same one that the server runs")  # fmt: skip
        if name not in LOSSES and name not in allow:
            raise ConfigError(f"{place}: the server asks for {name!r}, which is not one of roundelay's own; if it is "
                              f"installed here and you trust it, allow it with --allow {name}, or bring the job with "
                              "--job FILE")  # fmt: skip


def offered_job(offered: Settings, allow: Sequence[str], script: Path | None) -> Job:
    """Make the job that a server's settings describe, without data.

    Raises:
        ConfigError: they ask for what is not allowed here, or make no job.
    """
    document = {name: offered[name] for name in OFFERED if name in offered and name != "partition"}
    if script is not None:
        document.pop("learner", None)
    elif "learner" not in document:
        raise ConfigError("this run's clients are scripts: bring yours with --script FILE")
    for name in BUILT:
        refuse_foreign(document.get(name), name, allow)
    parts = config.parts_of(document)
    parts = {**parts, "data": FederatedData.elsewhere(["-"]), "script": script, "tracking": None}
    return Job(**checked(Job, parts, {}, "the server's settings"))


def offered_links(offered: Settings, allow: Sequence[str]) -> tuple[Uplink | None, Downlink | None]:
    """Return how vectors travel in the server's job.

    Raises:
        ConfigError: through something that is not allowed here.
    """
    tables = {name: offered[name] for name in ("uplink", "downlink") if name in offered}
    for name, table in tables.items():
        refuse_foreign(table, name, allow)
    parts = config.parts_of(tables)
    return parts.get("uplink"), parts.get("downlink")


def offered_partition(offered: Settings, allow: Sequence[str]) -> Partitioner | None:
    """Return how the server's job splits its data, None where it does not say.

    Raises:
        ConfigError: by a file there, or by something that is not allowed here.
    """
    table = offered.get("partition")
    if table is None:
        return None
    refuse_foreign(table, "partition", allow)
    for inner in _tables(table):
        use = inner.get("use")
        if isinstance(use, str) and use.replace("_", "").replace("-", "").lower() == "fromfile":
            raise ConfigError("the server's data is split by a file: bring a copy with --split FILE instead of --shard")
    partition: Partitioner = config.parts_of({"partition": table})["partition"]
    return partition


def _tables(value: Any) -> Iterator[Settings]:  # Any: what TOML can hold
    if isinstance(value, Mapping):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _tables(inner)


def installed_job(word: str) -> Job:
    """Return the job of a job file, of a reference task, or of "module:NAME", which may be a function that returns one.

    Raises:
        ConfigError: there is none.
    """
    if ":" not in word or is_task(word) or Path(word).exists():
        return config.load(word)
    config.import_from(Path.cwd())
    found = resolve(word, "--job")
    job = found if isinstance(found, Job) or not callable(found) else found()
    if not isinstance(job, Job):
        raise ConfigError(f"--job {word}: expected a roundelay.Job or a function that returns one, got a "
                          f"{type(job).__name__}")  # fmt: skip
    return replace(job, tracking=None)


def require_agreement(own: Job, offered: Settings, script: bool) -> None:
    """Compare a job that is installed here with the server's; where a ``script`` trains, the learner does not count.

    Raises:
        ConfigError: they differ in what decides bits; names the key and both values.
    """
    mine = tomllib.loads(offered_settings(own.to_toml()))
    here, there = _decisive(mine), _decisive(offered)
    for key in sorted({**here, **there}):
        if script and key.split(".")[0] == "learner":
            continue
        if here.get(key, _NOTHING) != there.get(key, _NOTHING):
            raise ConfigError(f"{key} is {_shown(here, key)} in the job that is installed here, and "
                              f"{_shown(there, key)} in the server's: take the same job on both sides")  # fmt: skip


_NOTHING = object()


def _shown(settings: Settings, key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def _decisive(settings: Settings) -> dict[str, Any]:
    evaluation = settings.get("evaluation")
    measured = {} if not isinstance(evaluation, Mapping) else evaluation
    return {
        **dict(_flat({name: settings[name] for name in DECISIVE if name in settings}, "")),
        **dict(_flat({name: measured[name] for name in MEASURED if name in measured}, "evaluation.")),
    }


def _flat(table: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
