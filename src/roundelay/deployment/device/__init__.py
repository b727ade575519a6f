"""A device's side: its folder, its link to a server, its agent, and what does its tasks."""
