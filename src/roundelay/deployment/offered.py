"""What a server tells devices of its job: names of parts, and plain values; nothing that names a file of its own."""

import tomllib

import tomli_w

BUILT = ("model", "learner", "algorithm", "evaluation", "partition", "uplink", "downlink")
OFFERED = ("name", "num_rounds", "seed", "keep_local", *BUILT)
"""The parts of a job that a server tells: nothing that names a file of its own."""

HAS_INIT = "has_init"
"""Says, beside them, that the first model came from elsewhere than the seed."""


def offered_settings(resolved: str) -> str:
    """Return what a server tells of a job, given as the TOML that ``Job.to_toml`` writes."""
    document = tomllib.loads(resolved)
    offered = {name: document[name] for name in OFFERED if name in document}
    partition = offered.get("partition", {})
    while partition.get("use") == "named":  # the names are those of this run's clients, the parts are not
        offered["partition"] = partition = partition["inner"]
    if partition.get("use") == "fromfile":
        offered["partition"] = {"use": "fromfile"}
    if "init" in document:
        offered[HAS_INIT] = True
    return tomli_w.dumps(offered)
