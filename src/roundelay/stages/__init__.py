"""What a vector goes through between an algorithm and the wire; the same in simulation, in scripts and on devices."""
