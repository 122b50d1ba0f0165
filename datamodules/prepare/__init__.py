"""From raw corpora to a prepared data set: the steps of `onn prepare`, run by datatrove.

`readers/` turn files into documents, `filters/` judge them, `deduplication.py` finds copies, `tokenize.py`
writes shards (`datamodules.prepared` is their format); `plan.py` divides the work, `pipeline.py` puts
the stages together, `executors/` run them. What a training run reads never imports this package.
"""
