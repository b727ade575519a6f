"""What every run of the tests loads."""

pytest_plugins = ["figures"]
