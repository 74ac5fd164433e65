"""Import of labelled cases from other formats into a studies folder."""
