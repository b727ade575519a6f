"""Send by events: a UE whose step hardly differs from the one that it sent last says so in a few bits, and no more.

    python examples/wireless/events.py

Send on delta with three thresholds on the cell of job.toml, against sending always. What is not sent is taken as a step
of nothing (on_silence = "zero"), and error feedback keeps it for the next time; after four silences a UE speaks.
"""

import sweeping


def by_events(threshold: float) -> list[str]:
    delta = f'{{use="send_on_delta", threshold={threshold}}}'
    return [f'uplink.trigger={{use="max_silence", rounds=4, then={delta}}}', 'uplink.on_silence="zero"',
            'uplink.feedback="error"']  # fmt: skip


EVENTS = {"always": [], "delta-0.5": by_events(0.5), "delta-1": by_events(1.0)}


def main() -> None:
    asked = sweeping.arguments(__doc__ or "", "events", target=0.9).parse_args()
    chosen = {name: EVENTS[name] for name in asked.only or EVENTS}
    runs = sweeping.trained(sweeping.HERE / "job.toml", asked.out, chosen, asked)
    found = sweeping.compared([folder for folders in runs.values() for folder in folders], asked.target)
    sweeping.tell(found, asked.out)


if __name__ == "__main__":
    main()
