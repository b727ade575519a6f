"""The run's side: a federation whose clients are real devices, and how it waits for them."""
