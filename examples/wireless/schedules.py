"""Three schedules on UEs of unequal speed: rounds that wait for everybody, rounds with a deadline, and FedBuff.

    python examples/wireless/schedules.py

The cell is that of job.toml, and some UEs compute ten times as long as others (schedules.toml). Rounds are not the same
thing under three schedules, so what counts is what each took to the target.
"""

import sweeping

SCHEDULES = {
    "synchronous": ["num_rounds=20"],
    "deadline": ["num_rounds=25", 'workflow={use="rounds", deadline_s=0.9}'],
    "fedbuff": ["num_rounds=40", 'workflow={use="buffered", buffer_size=5, concurrency=10}'],
}


def main() -> None:
    asked = sweeping.arguments(__doc__ or "", "schedules", target=0.9).parse_args()
    chosen = {name: SCHEDULES[name] for name in asked.only or SCHEDULES}
    runs = sweeping.trained(sweeping.HERE / "schedules.toml", asked.out, chosen, asked)
    found = sweeping.compared([folder for folders in runs.values() for folder in folders], asked.target)
    sweeping.tell(found, asked.out)


if __name__ == "__main__":
    main()
