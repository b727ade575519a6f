"""The server that devices talk to: its routes, and the thread that serves them."""
