"""The same job, simulated: what each client of a list would have on a device of its own."""

from collections.abc import Sequence
from dataclasses import replace

from roundelay.data.examples import Data
from roundelay.data.federated import FederatedData, read
from roundelay.data.partition import IID, FromFile, Named
from roundelay.data.split import Split
from roundelay.errors import ConfigError
from roundelay.job import Job


def simulated(job: Job, names: Sequence[str]) -> Job:
    """Return the job whose clients bear these names: the k-th of n has what a device with ``--shard k/n`` has, or where
    the data is in its clients' hands already, what the client of that name has.

    Raises:
        ConfigError: the names are not different, or the data knows other ones.
    """
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"expected names of clients, each once, got {list(names)}")
    if job.script is not None:  # how many there are is said by the names
        job = replace(job, simulation=replace(job.simulation, num_clients=None))
    if job.partition is not None and not (job.data is None and isinstance(job.partition, FromFile)):
        return replace(job, partition=Named(tuple(names), job.partition))
    data = read(job.data, job.seed)
    if isinstance(job.partition, FromFile):
        _require_known(names, Split.load(job.partition.path).clients, all_of_them=True)
        return job
    if isinstance(data, FederatedData) and not data.clients:  # all that is here is the server's
        return replace(job, data=FederatedData.elsewhere(names, data.held_out))
    if isinstance(data, FederatedData):
        _require_known(names, data.clients)
        return replace(job, data=data.among(names))
    if job.script is None:
        return replace(job, partition=Named(tuple(names), IID(len(names))))
    held_out = data.test if isinstance(data, Data) else None
    return replace(job, data=FederatedData.elsewhere(names, held_out))


def _require_known(names: Sequence[str], clients: Sequence[str], all_of_them: bool = False) -> None:
    unknown = sorted(set(names) - set(clients)) or (sorted(set(clients) - set(names)) if all_of_them else [])
    if unknown:
        raise ConfigError(f"client {unknown[0]!r}: the job's data is in the hands of {', '.join(clients[:5])}"
                          f"{', ...' if len(clients) > 5 else ''}, and the workers are {', '.join(names)}: give them "
                          "the same names")  # fmt: skip
