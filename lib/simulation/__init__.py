"""Query strategies against each other: labels revealed on request, retrained, judged on one test set."""
