"""Mutated files, sent to a real server by every way, or given to the readers directly.

Run with `python -m tests.fuzz --requests N` or `make fuzz REQUESTS=N`. The modules: `good_files` (valid files
of each format), `mutations` and `dicom_mutations` (what is changed), `ways` (how a file reaches the server),
`watch` (whether the server lives, and what it touches), `campaign` (the requests), `direct` (the readers
without a server), `results` (counts that add up over several runs).
"""
