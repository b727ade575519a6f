"""From what a site brought and what a server told it: the hands that do a client's tasks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from roundelay import algorithms, config
from roundelay.algorithms.protocol import Algorithm
from roundelay.client.exchange import Scalar, Site
from roundelay.client.launch import ScriptLearner
from roundelay.components import build, call, find, namespace, resolve
from roundelay.data.examples import Data, as_examples
from roundelay.data.federated import FederatedData, read
from roundelay.data.partition import IID, Partitioner
from roundelay.data.split import Split
from roundelay.deployment.device.hands import Hands, ScriptHands, TrainerHands, broadcast_lengths
from roundelay.deployment.offered import HAS_INIT
from roundelay.errors import ConfigError, DataError, WireError
from roundelay.job import Job
from roundelay.layout import Layout
from roundelay.messages import Memory
from roundelay.site import offered as settings
from roundelay.site.brought import Brought
from roundelay.site.offered import Settings
from roundelay.stages.downlink import Downlink
from roundelay.trainer import Trainer
from roundelay.wire import Frame

if TYPE_CHECKING:  # its packages come with an extra, which a simulation does without
    from roundelay.deployment.protocol import Briefing, Holding

FOLDER = "folder="
OnScalar = Callable[[str, int, Scalar], None]


def hands_for(brought: Brought, briefing: "Briefing", folder: Path, on_scalar: OnScalar) -> Hands:
    """Return what does the tasks of the client that was briefed. A script lives in a folder of its own below
    ``folder``; what it logs goes to ``on_scalar(client, round, scalar)``.

    Raises:
        ConfigError, DataError, LayoutError: what was brought does not fit the server's run, or the server asks for what
            is not allowed here.
    """
    site, offered = _told(briefing), settings.read_settings(briefing.settings)
    own = None if brought.job is None else settings.installed_job(brought.job)
    script = _script(brought, own)
    if own is not None:
        settings.require_agreement(own, offered, script is not None)
    if script is not None:
        first = _scripts_first_memory(brought, site, offered, own, script)
        uplink, downlink = settings.offered_links(offered, brought.allow)
        return ScriptHands(script, _for_script(site, brought), first, brought.allow, folder, on_scalar, uplink=uplink,
                           downlink=downlink, lengths=_lengths(site, downlink))  # fmt: skip
    job = own or settings.offered_job(offered, brought.allow, None)
    _require_first_values(job, job.algorithm, site.layout, offered)
    data = _data(brought, job, own, offered, site.name)
    return TrainerHands(replace(job, data=data, partition=None, attacks=()).prepared().work, site)


def holding(hands: Hands, tell_labels: bool) -> "Holding | None":
    """Return what to tell of a client's data: its size and, if allowed, how many examples of each class; None where a
    script has it, which tells of it what it likes.
    """
    from roundelay.deployment.protocol import Holding  # see above

    if not isinstance(hands, TrainerHands):
        return None
    counts = label_counts(hands) if tell_labels else None
    return Holding(num_examples=len(hands.examples), label_counts=counts)


def label_counts(hands: TrainerHands) -> list[int] | None:
    """Return how many examples of each class a client trains on, None where that cannot be told."""
    try:
        labels = hands.examples.labels()
    except DataError:  # regression, or text: nothing to count
        return None
    return torch.bincount(labels).tolist() if len(labels) and int(labels.min()) >= 0 else None


# ---- what was told --------------------------------------------------------------------------------------------------


def _told(briefing: "Briefing") -> Site:
    try:
        site = Site.read(Frame("welcome", briefing.site, {}))
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # ours are ValueErrors too
        raise WireError(f"the server's description of its run cannot be read: {error!r}") from error
    shapes = [size for spec in site.layout.specs for size in spec.shape]
    for value, kind in ((site.config, Mapping), (site.algorithm, Mapping), (site.seed, int), (site.num_rounds, int)):
        if not isinstance(value, kind):
            raise WireError(f"the server's description of its run holds {value!r}; expected {kind.__name__}")
    if not all(isinstance(size, int) and size >= 0 for size in shapes):
        raise WireError(f"the server's description of its model holds the sizes {shapes}")
    if site.name != briefing.client:
        raise WireError(f"the server briefs client {briefing.client!r} as {site.name!r}")
    return site


def _require_first_values(job: Job, algorithm: Algorithm, layout: Layout, offered: Settings) -> None:
    if offered[HAS_INIT] and job.init is None and (layout.frozen or _hangs_on_values(algorithm, layout)):
        what = "keep_local" if layout.local_names else type(algorithm).__name__
        if layout.frozen:
            what = "frozen parameters"
        raise ConfigError(
            f"with {what}, a client begins with the model's first values, which the server has from init and not from "
            "the seed: bring the job and its init with --job FILE"
        )


def _hangs_on_values(algorithm: Algorithm, layout: Layout) -> bool:
    """Tell whether what a client remembers at first depends on the values of the first model."""
    zeros = torch.zeros(layout.num_params, dtype=layout.dtype)
    one, other = algorithm.first_memory(zeros), algorithm.first_memory(zeros + 1)
    return bool(layout.local_names) or any(not torch.equal(one[name], other[name]) for name in one)


# ---- scripts --------------------------------------------------------------------------------------------------------


def _script(brought: Brought, own: Job | None) -> ScriptLearner | None:
    if brought.script is not None:
        return ScriptLearner(brought.script.resolve(), tuple(brought.script_args))
    if own is None or own.script is None:
        return None
    if brought.data is not None:
        raise ConfigError(f"the clients of {brought.job} are scripts, which read their own data: leave --data out")
    return own.script_learner()


def _for_script(site: Site, brought: Brought) -> Site:
    """Say which part of the data is this script's, in the words of a simulation; the server names no file here."""
    told = site.config.get("partition")
    part = {k: v for k, v in told.items() if k != "file"} if isinstance(told, dict) else {}
    if brought.part is not None:
        number, count = brought.part
        part = {"number": number, "num_clients": count}
    elif brought.split is not None:
        clients = Split.load(brought.split).clients
        _require_held(site.name, clients, str(brought.split))
        part = {"number": clients.index(site.name), "num_clients": len(clients), "file": str(brought.split.resolve())}
    return replace(site, config={**site.config, "partition": {**part, "client": site.name}})


def _scripts_first_memory(
    brought: Brought, site: Site, offered: Settings, own: Job | None, script: ScriptLearner
) -> Memory:
    settings.refuse_foreign(site.algorithm, "algorithm", brought.allow)
    algorithm: Algorithm = build(site.algorithm, namespace(algorithms), "algorithm")
    if not _hangs_on_values(algorithm, site.layout):
        return algorithm.first_memory(torch.zeros(site.layout.num_params, dtype=site.layout.dtype))
    job = own or settings.offered_job(offered, brought.allow, script.path)
    _require_first_values(job, algorithm, site.layout, offered)
    data = FederatedData.elsewhere([site.name])
    simulation = replace(job.simulation, num_clients=None)
    job = replace(job, learner=None, script=script.path, data=data, partition=None, attacks=(), simulation=simulation)
    trainer = Trainer(job.prepared().work)
    site.layout.require_same(trainer.layout, f"client {site.name!r}: the model that is built here")
    return {**trainer.first_local(), **algorithm.first_memory(trainer.bound.params().clone())}


def _lengths(site: Site, downlink: Downlink | None) -> dict[str, int]:
    algorithm: Algorithm = build(site.algorithm, namespace(algorithms), "algorithm")
    return broadcast_lengths(algorithm, torch.zeros(site.layout.num_params, dtype=site.layout.dtype), downlink)


# ---- data -----------------------------------------------------------------------------------------------------------


def _data(brought: Brought, job: Job, own: Job | None, offered: Settings, client: str) -> FederatedData:
    """Return the client's part, to the bit that of a simulation: the same examples in the same order."""
    if brought.data is None and own is None:
        raise ConfigError("say which data is this site's: --data NAME[:FOLDER] or --data module:function")
    data = read(job.data if brought.data is None else _source(brought.data), job.seed)
    if isinstance(data, FederatedData):
        return _held(brought, data, client)
    if not isinstance(data, Data):
        data = Data(as_examples(data))
    if brought.part is not None:
        partition = job.partition if own is not None else settings.offered_partition(offered, brought.allow)
        positions = _shard(data, partition, brought.part, job.seed)
    elif brought.data is not None and brought.split is None:
        positions = torch.arange(len(data.train))
    else:
        positions = _by_name(brought, job, data, client)
    split = Split.from_parts({client: positions}, len(data.train))
    return FederatedData.from_split(data, split, job.evaluation.client_test_fraction, job.seed)


def _source(word: str) -> Any:  # Any: data, or a function that returns some
    """Return what --data names: a set that roundelay reads, with its folder, or settings that begin with that; or a
    function of the site's own.
    """
    known = config.CHOSEN["data"][0]
    name, _, rest = word.partition(":")
    if name.lower() not in {own.lower() for own in known}:
        config.import_from(Path.cwd())
        return resolve(word, "--data") if rest else find(word, known, "--data")
    component = find(name, known, "--data")
    table: Mapping[str, Any]
    takes_folder = bool(rest) and "folder" in inspect.signature(component).parameters
    if takes_folder and rest.startswith(FOLDER):  # which is text, also where it is called 100
        folder, *more = config.top_level_commas(rest.removeprefix(FOLDER))
        table = {**config.parse_attack(f"{name}:{','.join(more)}"), "folder": folder}
    else:
        table = {"folder": rest} if takes_folder else config.parse_attack(word) if rest else {}
    arguments = {key: value for key, value in table.items() if key != "use"}
    return lambda: call(component, arguments, {}, f"--data {name}")


def _held(brought: Brought, data: FederatedData, client: str) -> FederatedData:
    if brought.split is not None:
        raise ConfigError("this data is in its clients' hands already: leave --split out")
    if brought.part is None:
        _require_held(client, data.clients, "this data")
        return data.held_by(client, client)
    number, count = brought.part
    _require_count(len(data.clients), count)
    return data.held_by(data.clients[number], client)


def _shard(data: Data, partition: Partitioner | None, part: tuple[int, int], seed: int) -> torch.Tensor:
    number, count = part
    partition = partition or IID(count)
    _require_count(getattr(partition, "num_clients", count), count)  # before it deals out to however many it says
    split = partition.split(data, seed)
    _require_count(len(split.clients), count)
    return split[split.clients[number]]


def _by_name(brought: Brought, job: Job, data: Data, client: str) -> torch.Tensor:
    if brought.split is not None:
        split, whose = Split.load(brought.split), str(brought.split)
        if split.num_examples != len(data.train):
            raise DataError(f"{whose}: it splits {split.num_examples} examples, {data.name} has {len(data.train)}; was "
                            "it made from another data set?")  # fmt: skip
    elif job.partition is not None:
        split, whose = job.partition.split(data, job.seed), "the job's partition"
    else:
        raise ConfigError("nothing says which part of the job's data is this site's: give --shard i/n or --split FILE")
    _require_held(client, split.clients, whose)
    return split[client]


def _require_held(client: str, clients: Sequence[str], whose: str) -> None:
    if client not in clients:
        known = ", ".join(clients[:5]) + (f", ... ({len(clients)} in all)" if len(clients) > 5 else "")
        raise ConfigError(f"client {client!r}: {whose} has no part of that name, only {known}; take one of these names,"
                          " or say which part it is: --shard i/n")  # fmt: skip


def _require_count(there: int, count: int) -> None:
    if there != count:
        raise ConfigError(f"--shard .../{count}: the job splits its data among {there} clients; give --shard i/{there}")
