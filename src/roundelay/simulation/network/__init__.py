"""The network of a simulation: what computing, waiting for the band and being on the air take, and what they cost."""
