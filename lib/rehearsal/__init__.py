"""The whole loop against a running server, as clients see it: submit, train, judge, serve."""
