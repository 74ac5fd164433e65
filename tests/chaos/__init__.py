"""Servers and trainings killed at random moments, round after round, over one studies folder.

`python -m tests.chaos --rounds N`, or `make chaos ROUNDS=N`. The parts: `stage` (folders and processes),
`ledger` (what was answered), `load` (clients that never stop asking), `moments` (when to kill),
`checks` (what must hold whatever was killed), `campaign` (the rounds).
"""
