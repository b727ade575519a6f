"""What works between a site and its server, what does not, and what to do."""
