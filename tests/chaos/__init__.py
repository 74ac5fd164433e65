"""Kill servers and trainings at random moments, round after round, over one studies folder.

Run with `python -m tests.chaos --rounds N` or `make chaos ROUNDS=N`. The modules: `stage` (folders and
processes), `ledger` (requests and their outcomes), `load` (clients that send requests continuously),
`moments` (when to kill), `checks` (the conditions that must hold after every kill), `campaign` (the rounds).
"""
