"""The recipe: which model, which script, how many rounds; and where it is run."""

import roundelay as rd

from model import Net

job = rd.Job(
    name="my-project",
    model=Net,
    script="client.py",
    script_args="--lr 0.05 --epochs 1",
    data=rd.data.digits,  # what the server measures on; without it, there is what the clients measure
    algorithm=rd.FedAvg(),
    num_rounds=5,
)

history = job.run(rd.Simulation(num_clients=2))  # executor="threads": a breakpoint() in client.py stops there
for row in history.rows:
    print(f"round {row['round']}: accuracy {row['accuracy']:.3f}, on the clients {row['train_accuracy']:.3f}")
print(f"run folder: {history.run_folder}")
