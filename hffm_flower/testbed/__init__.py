"""A tree on this machine whose links are those of the radio model: rate, delay, loss, faults."""
