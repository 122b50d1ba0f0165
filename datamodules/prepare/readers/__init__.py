"""Raw corpora: one file a kind."""
