"""The workloads in Flower's simulation: its FedAvg, on its Ray backend, an actor a core.

    FLWR_TELEMETRY_ENABLED=0 python benchmarks/peers/run_flower.py WORKLOAD --rounds N --folder DIR

As its guide advises for speed: one CPU a client, so that as many clients train at once as there are cores. A worker
keeps model and data from one client to the next. Nothing is evaluated; the function that would evaluate notes the time.
"""

import sys

import flwr
import ray
from flower_client import client_app
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from runner import Asked, first_model, now


def server_app(asked: Asked) -> ServerApp:
    app, workload = ServerApp(), asked.workload

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        ended, model = list[float](), first_model(workload)

        def note(number: int, arrays: ArrayRecord) -> None:
            if number:
                ended.append(now())

        strategy = FedAvg(
            fraction_train=workload.cohort / workload.num_clients, fraction_evaluate=0.0,
            min_train_nodes=workload.cohort, min_available_nodes=workload.num_clients,
        )  # fmt: skip
        result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=asked.rounds, evaluate_fn=note)
        model.load_state_dict(result.arrays.to_torch_state_dict())  # raises where no client answered
        asked.tell(model, ended, {"flwr": flwr.__version__, "ray": ray.__version__})

    return app


def main() -> None:
    asked = Asked.read()
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(server_app(asked), client_app(asked), asked.workload.num_clients, backend_config=resources)


if __name__ == "__main__":
    sys.exit(main())
