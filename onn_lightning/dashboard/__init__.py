"""The live pictures of a run: curves out of its logs, neurons over time, and the process that draws them.

Notable: all but `distributions` know neither torch nor Lightning, so that the drawing process starts in a
moment; `draw`, and with it matplotlib's drawing, is imported there and not in training.
"""
