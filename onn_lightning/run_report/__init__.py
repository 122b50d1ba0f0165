"""`onn report`: one self-contained HTML page of a run folder.

`record` and `samples` are what a run leaves behind about itself (`plain_json`: how); `run` reads a run folder
with `checkpoints` and `settings`, `state` judges how it stands. `page` is the page: `sections/` are its
parts, `chart` draws what `charts` chose and `thinning` thinned, `markup` escapes.
"""
