"""What a server of real devices remembers of one run, so that ``kill -9`` costs nobody anything."""
