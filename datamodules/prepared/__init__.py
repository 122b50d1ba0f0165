"""The prepared data set on disk: Arrow shards of encoded documents and a manifest."""
