"""How a network is spread over processes: the parallelism of a model lives beside it, not inside it."""
