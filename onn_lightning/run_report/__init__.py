"""`onn report`: one self-contained HTML page of a run folder.

`plain_json`, `record` and `samples` are what a run leaves behind about itself; `folder` reads a run folder.
"""
