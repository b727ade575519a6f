"""Conversations that Hypothesis draws: the same ones each time, however long an example takes."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def converse(machine: type[RuleBasedStateMachine], examples: int, steps: int = 30, *, shrink: bool = True) -> None:
    """Have a state machine take so many times so many steps. Where one fails, its steps are made fewer first."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=phases, deadline=None, derandomize=True,
            database=None, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
