"""What a checkpoint holds beside weights, and how it is read without executing anything."""
