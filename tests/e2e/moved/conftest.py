"""The files beside this one are scripts of users': to be run as clients, not to be imported in search of doctests."""

collect_ignore_glob = ["*.py"]
