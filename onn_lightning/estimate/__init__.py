"""What a training run needs before it is started, from its shapes alone."""
