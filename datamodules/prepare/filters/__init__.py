"""Quality filters: one file a kind."""
