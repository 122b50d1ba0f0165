"""The `onn` command: one file a verb; `main.py` chooses and imports nothing heavy before it knows."""
