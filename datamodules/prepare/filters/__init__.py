"""Quality filters: one file a kind, chosen by `class_path` in a config's `filters`.

`characters`, `words` and `layout` turn a text into arrays, on which the filters count. Defaults are those of
Gopher, C4 and FineWeb where these fit Chinese and English, verse and drama too; every one is an argument.

Not datatrove's own filters of these names: they take their words from a table of language names (Chinese:
spaCy with jieba, 2 ms a thousand characters), have no place for another segmenter and no thresholds
that count characters; and their loops run at 1 to 5 MB/s, ours at 10 to 100.
"""
