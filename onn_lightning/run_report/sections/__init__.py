"""The sections of the page, one file each; every one makes a `Section` of a run."""
